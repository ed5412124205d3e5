"""Finds the jobs that cron and systemd start on this machine, and what each job reads."""

import os
import pwd
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from asset_sync.model import Lane
from asset_sync.schedule import crontab
from asset_sync.schedule.programs import run

SYSTEM_CRONTAB, SYSTEM_CRONTABS = Path("/etc/crontab"), Path("/etc/cron.d")


class Scheduler(StrEnum):
    """The program that starts jobs."""

    CRON = "cron"
    SYSTEMD = "systemd"


@dataclass(frozen=True, slots=True)
class Job:
    """A job in a crontab or a systemd timer."""

    lane: Lane
    scheduler: Scheduler
    where: str
    """The line or the unit, for people."""

    user: str | None
    """The user that it runs as; None for one that systemd makes for each run."""

    environ: Mapping[str, str] = field(default_factory=dict)
    """What the job finds in its environment."""

    directory: Path = Path("/")
    program: str = ""
    """The program that the line starts; empty if it is another one, such as a script."""

    config: Path | None = None
    """The file of --config."""

    mails_to: str | None = None
    """The address to which cron mails the job's output; None if it mails nobody."""


def jobs() -> tuple[Job, ...]:
    """Return the jobs that this user's cron, the system's cron and systemd start."""
    return (*_of_user(), *_of_system(), *_of_systemd(), *_of_systemd("--user"))


def jobs_outside_the_block() -> tuple[Job, ...]:
    """Return cron's jobs, except those of asset-sync's own block in the user's crontab."""
    table = crontab.without_block(crontab.read())
    return (*_of_table(table, f"{_me()}'s crontab", _me()), *_of_system())


def jobs_of_systemd() -> tuple[Job, ...]:
    """Return the jobs that timers start, the system's and the user's."""
    return (*_of_systemd(), *_of_systemd("--user"))


def _me() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


# --- cron --------------------------------------------------------------------------------------


def _of_user() -> Iterator[Job]:
    with suppress(crontab.CrontabError):  # no cron here, or none for this user
        yield from _of_table(crontab.read(), f"{_me()}'s crontab", _me())


def _of_system() -> Iterator[Job]:
    for path in (SYSTEM_CRONTAB, *sorted(SYSTEM_CRONTABS.glob("*"))):
        # cron itself skips names with a dot, such as a package manager's copies
        if path.parent == SYSTEM_CRONTABS and not re.fullmatch(r"[A-Za-z0-9_-]+", path.name):
            continue
        with suppress(OSError):
            yield from _of_table(path.read_bytes(), str(path), None)


_VARIABLE = re.compile(r"""\s*(["']?)(\w+)\1\s*=\s*(.*?)\s*""")
_ENTRY = re.compile(r"\s*(?:@\w+|(?:\S+\s+){4}\S+)\s+(.*\S)\s*")
# `asset-sync … sync queue`, or a script that is called asset-sync-queue or the like.
_JOBS = {
    lane: re.compile(
        rf"asset[-_]sync(?:\S*\s(?:[^;&|]*\s)?sync\s(?:[^;&|]*\s)?|\S*-){lane.value}\b"
    )
    for lane in Lane
}


def _of_table(table: bytes, name: str, user: str | None) -> Iterator[Job]:
    """Yield a table's jobs; if `user` is None, each line names its user, as in /etc/crontab."""
    variables: dict[str, str] = {}
    for number, line in enumerate(os.fsdecode(table).splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if (given := _VARIABLE.fullmatch(line)) is not None:
            variables[given[2]] = _unquoted(given[3])
        elif (entry := _ENTRY.fullmatch(line)) is not None:
            who, command = user, entry[1]
            if who is None:
                who, _, command = command.replace("\t", " ").partition(" ")
            # Up to the first % that is not escaped; the rest is the command's input.
            command = re.sub(r"(?<!\\)%.*", "", command).replace(r"\%", "%")
            for lane, pattern in _JOBS.items():
                if pattern.search(command):
                    where = f"{name}, line {number}"
                    yield _of_command(lane, command.strip(), where, who, variables)


def _unquoted(value: str) -> str:
    quoted = re.fullmatch(r"""(["'])(.*)\1""", value)
    return quoted[2] if quoted else value


def _of_command(
    lane: Lane, command: str, where: str, user: str, variables: Mapping[str, str]
) -> Job:
    try:
        home = pwd.getpwnam(user).pw_dir
    except KeyError:
        home = "/"
    environ = {"HOME": home, "LOGNAME": user, "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh"}
    environ |= variables
    addressee = environ.get("MAILTO", user) or None
    nothing = _Started("", environ, Path(environ["HOME"]), None)
    started = _started(lane, command, environ, nothing.directory) or nothing
    return Job(
        lane=lane,
        scheduler=Scheduler.CRON,
        where=where,
        user=user,
        environ=started.environ,
        directory=started.directory,
        program=started.program,
        config=started.config,
        # cron does not mail output that goes through a pipe or to a file.
        mails_to=None if re.search(r"[|>]", command) else addressee,
    )


@dataclass(frozen=True, slots=True)
class _Started:
    program: str
    environ: Mapping[str, str]
    directory: Path
    config: Path | None


def _started(
    lane: Lane, command: str, environ: Mapping[str, str], directory: Path
) -> _Started | None:
    """Return how the command line starts asset-sync, None if it starts something else."""
    given = dict(environ)
    for words in _simple_commands(command):
        if words[0] in {".", "source"}:  # may set anything
            return None
        if words[0] == "cd" and len(words) > 1:
            directory /= _expanded(words[1], given)
        elif words[0] == "export":
            given |= dict(_assignments(words[1:], given))
        elif (at := _program_at(words)) is not None:
            if lane.value not in words[at:]:
                continue
            given |= dict(_assignments(words[:at], given))
            config = _option(words[at:], "--config")
            named = directory / _expanded(config, given) if config else None
            return _Started(_expanded(words[at], given), given, directory, named)
        else:
            for inner in (word for word in words if _JOBS[lane].search(word)):  # as in sh -c '…'
                if inner != command:
                    return _started(lane, inner, given, directory)
    return None


def _program_at(words: list[str]) -> int | None:
    """Return the place of the program among a simple command's words, if it is asset-sync."""
    for at, word in enumerate(words):
        if Path(word).name == "asset-sync":
            return at
        if word == "asset_sync" and words[at - 1] == "-m" and at > 1:
            return at - 2
    return None


def _simple_commands(command: str) -> Iterator[list[str]]:
    """Split as a shell does, at `;`, `&&`, `|` and the like, and at redirections."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    try:
        for word in lexer:
            if word and set(word) <= set("();<>|&"):
                if words:
                    yield words
                words = []
            else:
                words.append(word)
    except ValueError:  # a quote that does not end; the shell would refuse it, too
        return
    if words:
        yield words


def _assignments(words: list[str], environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for word in words:
        if (given := re.fullmatch(r"(\w+)=(.*)", word, re.DOTALL)) is not None:
            yield given[1], _expanded(given[2], environ)


def _expanded(word: str, environ: Mapping[str, str]) -> str:
    """Return the word with `~/` and `$NAME` replaced, but nothing else that a shell replaces."""
    if word == "~" or word.startswith("~/"):
        word = environ.get("HOME", "~") + word[1:]
    return re.sub(r"\$(?:(\w+)|\{(\w+)\})", lambda m: environ.get(m[1] or m[2], ""), word)


def _option(words: list[str], name: str) -> str | None:
    for word, value in zip(words, [*words, ""][1:], strict=True):
        if word == name:
            return value or None
        if word.startswith(f"{name}="):
            return word.removeprefix(f"{name}=")
    return None


# --- systemd -----------------------------------------------------------------------------------


def _of_systemd(*scope: str) -> Iterator[Job]:
    listed = _output_of("systemctl", *scope, "list-timers", "--full")
    for lane in Lane:
        name = f"asset-sync-{lane.value}"
        if not re.search(rf"\b{name}\b", listed):
            continue
        unit = _output_of("systemctl", *scope, "cat", f"{name}.service")
        yield _of_unit(
            lane, f"{name}.timer{' of the user' if scope else ''}", unit, users=bool(scope)
        )


def _of_unit(lane: Lane, where: str, unit: str, *, users: bool) -> Job:
    lines = re.findall(r"^(\w+)=(.*)$", unit, re.MULTILINE)
    settings = dict(lines)
    sources = dict(
        value.split(":", 1) for key, value in lines if key == "LoadCredential" and ":" in value
    )
    user = _me() if users else settings.get("User", "root")
    environ = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    if settings.get("DynamicUser") != "yes" or users:
        with suppress(KeyError):
            environ["HOME"] = pwd.getpwnam(user).pw_dir
    for value in (value for key, value in lines if key == "Environment"):
        for name, text in _assignments(_words(value), {}):
            # `%d` exists only for the job; the credential's source is a file that can be read here.
            credential = re.fullmatch(r"%d/(.+)", text)
            environ[name] = (
                sources.get(credential[1], text) if credential else _percent(text, environ)
            )
    words = _words(settings.get("ExecStart", ""))
    config = _option(words, "--config")
    return Job(
        lane=lane,
        scheduler=Scheduler.SYSTEMD,
        where=where,
        user=None if settings.get("DynamicUser") == "yes" and not users else user,
        environ=environ,
        directory=Path(
            settings.get("WorkingDirectory") or (environ.get("HOME", "/") if users else "/")
        ),
        program=_percent(words[0], environ) if words else "",
        config=Path(config) if config else None,
    )


def _words(value: str) -> list[str]:
    try:
        return shlex.split(value)
    except ValueError:
        return []


def _percent(text: str, environ: Mapping[str, str]) -> str:
    return text.replace("%h", environ.get("HOME", "%h")).replace("%%", "%")


def _output_of(program: str, *arguments: str) -> str:
    ended = run(program, *arguments)
    return "" if ended is None else ended.out.decode(errors="replace")
