"""Cron and systemd start the jobs as the user's shell does; installing changes no other job."""

import re
import shlex
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from commandline import Told
from machine import Machine

from asset_sync.model import Lane
from asset_sync.schedule import installation, installed, systemd
from asset_sync.schedule.crontab import BEGIN, END
from asset_sync.schedule.installation import SECRET_FILES, Installation, ScheduleError
from asset_sync.settings import SECRET_VARIABLES, SHIPPED_FILE

KEY = "s3same-key"


class Crontab(Machine):
    """A user's home, with the test's own `crontab` and `systemctl`."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.environ |= {
            "PATH": f"{home / 'bin'}:/usr/bin:/bin",
            "POLYGON_API_KEY_FILE": str(home / "polygon.key"),
        }

    @property
    def table(self) -> Path:
        return self.home / "table"

    @property
    def settings(self) -> Path:
        return self.home / "assets.toml"

    def schedule(self, *arguments: str, **environ: str) -> Told:
        return self.tell("schedule", *arguments, **environ)

    def jobs(self) -> dict[Lane, str]:
        """Return the command of each job in the crontab, as cron passes it to the shell."""
        text = self.table.read_text(errors="replace")
        lines = [line for line in text.splitlines() if "asset-sync sync" in line]
        # cron ends a command at a % without a backslash
        kept = [re.split(r"(?<!\\)%", line.split(None, 5)[5])[0] for line in lines]
        commands = [command.replace(r"\%", "%") for command in kept]
        return {lane: next(one for one in commands if lane.value in one) for lane in Lane}


CRONTAB = """
case "$*" in
  -l) cat {table} 2>/dev/null || { echo "no crontab for me" >&2; exit 1; } ;;
  -) cat >{table}.new
     if [ -s {table}.new ] && [ -n "$(tail -c1 {table}.new)" ]; then
       echo "new crontab file is missing newline before EOF, can't install." >&2; exit 1
     fi
     mv {table}.new {table} ;;
  *) exit 2 ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Crontab:
    made = Crontab(tmp_path)
    made.program("crontab", CRONTAB.replace("{table}", str(made.table)))
    made.program("systemctl", "exit 0")
    made.file(SHIPPED_FILE.read_text())
    (tmp_path / "polygon.key").write_text(KEY)
    monkeypatch.setattr(installed, "SYSTEM_CRONTABS", tmp_path / "cron.d")
    monkeypatch.setattr(installed, "SYSTEM_CRONTAB", tmp_path / "etc-crontab")
    monkeypatch.setattr(systemd, "SYSTEM_UNITS", tmp_path / "units")
    return made


# --- cron --------------------------------------------------------------------------------------


def test_the_block_names_this_installation_and_does_not_depend_on_the_jobs_environment(
    machine: Crontab,
) -> None:
    told = machine.schedule("cron", POLYGON_TIER="starter", PGSSLMODE="require")

    begin, *jobs, end = told.out.splitlines()
    assert (told.code, told.err) == (0, "")
    assert begin.startswith(BEGIN)
    assert end == END
    for job, lane in zip(jobs, Lane, strict=True):
        *times, command = job.split(None, 5)
        assert times == ["*/5", "*", "*", "*", "*"]
        words = shlex.split(command)
        assert words[0] == "env"
        assert set(words[1:-4]) == {
            f"ASSET_SYNC_CONFIG={machine.settings}",
            f"POLYGON_API_KEY_FILE={machine.home / 'polygon.key'}",
            f"XDG_DATA_HOME={machine.home / '.local/share'}",
            "POLYGON_TIER=starter",
            "HISTORY_ENABLED=false",
            "PGSSLMODE=require",
        }
        assert words[-4:] == [str(Path(sys.executable).parent / "asset-sync"), "sync", lane, "-q"]
    assert not machine.table.exists(), "it only prints"


def test_each_secret_has_a_variable_for_its_file() -> None:
    assert set(SECRET_FILES) == set(SECRET_VARIABLES)


def test_the_installed_line_starts_the_job_from_an_empty_environment(machine: Crontab) -> None:
    """A path with blanks, a quote and a percent sign is passed unchanged."""
    machine.schedule("cron", "--install", POLYGON_API_KEY_FILE=odd_key(machine))

    [job] = [job for lane, job in machine.jobs().items() if lane is Lane.QUEUE]
    ran = subprocess.run(
        ["/bin/sh", "-c", f"{job} --dry-run --log-format=json -v"],
        env={"PATH": "/usr/bin:/bin", "DATABASE_URL": "postgresql://127.0.0.1:1/none"},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 3, "it read settings and key, and found no database"
    assert str(machine.settings) in ran.stderr


def odd_key(machine: Crontab) -> str:
    path = machine.home / "a 100% 'odd' path" / "polygon.key"
    path.parent.mkdir()
    path.write_text(KEY)
    return str(path)


TABLES = {
    "none": None,
    "empty": b"",
    "others": b"# my jobs\nMAILTO=me@example.org\n0 4 * * *  backup\n",
    "no final newline": b"0 4 * * *  backup",
    "not UTF-8": b"# f\xfcr die Kurse\n0 4 * * *  backup\n",
    "CRLF": b"# from Windows\r\n0 4 * * *  backup\r\n",
}


@pytest.mark.parametrize("before", TABLES.values(), ids=TABLES)
def test_installing_changes_no_other_byte_of_the_crontab(
    machine: Crontab, before: bytes | None
) -> None:
    if before is not None:
        machine.table.write_bytes(before)
    others = (before or b"") + (b"\n" if before and not before.endswith(b"\n") else b"")

    installed = machine.schedule("cron", "--install")
    table = machine.table.read_bytes()

    assert installed.code == 0, installed.err
    assert table.startswith(others)
    assert table[len(others) :].decode() == machine.schedule("cron").out
    assert set(machine.jobs()) == set(Lane)

    assert machine.schedule("cron", "--remove").code == 0
    assert machine.table.read_bytes() == others


def test_installing_shows_the_difference(machine: Crontab) -> None:
    machine.table.write_text("0 4 * * *  backup\n")

    told = machine.schedule("cron", "--install")

    assert told.out.startswith("--- crontab (before)\n+++ crontab (now)\n")
    assert " 0 4 * * *  backup\n" in told.out
    assert told.out.endswith(f"\n+{END}\n")
    assert "starts the jobs from now on" in told.err


def test_no_written_line_changes_other_jobs(machine: Crontab) -> None:
    machine.schedule("cron", "--install", POLYGON_TIER="starter")

    lines = machine.table.read_text().splitlines()

    assert [line for line in lines if not line.startswith(("#", "*/5 "))] == []


def test_installing_replaces_the_earlier_block_in_its_place(machine: Crontab) -> None:
    machine.table.write_text("A=1\n")
    machine.schedule("cron", "--install")
    machine.table.write_text(machine.table.read_text() + "B=2\n0 4 * * *  backup\n")

    again = machine.schedule("cron", "--install", BATCH_INTERVAL_MINUTES="15")

    table = machine.table.read_text()
    assert again.code == 0
    assert table.count(BEGIN) == table.count(END) == 1
    assert table.startswith("A=1\n# BEGIN")
    assert table.endswith("# END asset-sync\nB=2\n0 4 * * *  backup\n")
    assert table.count("*/15 * * * *") == 2
    assert "*/5" not in table


def test_installing_the_same_again_changes_nothing(machine: Crontab) -> None:
    machine.schedule("cron", "--install")

    told = machine.schedule("cron", "--install")

    assert (told.code, told.out) == (0, "")
    assert "nothing was changed" in told.err


def test_removing_jobs_that_are_not_installed_changes_nothing(machine: Crontab) -> None:
    told = machine.schedule("cron", "--remove")

    assert (told.code, told.out) == (0, "")
    assert "nothing was changed" in told.err
    assert not machine.table.exists()


@pytest.mark.parametrize("table", [f"{BEGIN}\n*/5 * * * *  x\n", f"{END}\n{BEGIN}\n"])
def test_a_crontab_with_unpaired_marks_is_not_changed(machine: Crontab, table: str) -> None:
    machine.table.write_text(table)

    for action in ("--install", "--remove"):
        told = machine.schedule("cron", action)
        assert told.code == 2
        assert "crontab -e" in told.err
    assert machine.table.read_text() == table


def test_a_crontab_command_that_fails_is_reported_in_a_sentence(machine: Crontab) -> None:
    machine.program("crontab", "echo 'You (me) are not allowed to use this program' >&2; exit 1")

    told = machine.schedule("cron", "--install")

    assert told.code == 2
    assert "You (me) are not allowed to use this program" in told.err
    assert "Traceback" not in told.err


def test_without_cron_the_message_says_what_to_do(machine: Crontab) -> None:
    told = machine.schedule("cron", "--install", PATH="/nowhere")

    assert told.code == 2
    assert "install cron" in told.err
    assert "asset-sync schedule systemd" in told.err


def test_a_crontab_that_cron_refuses_is_reported_in_a_sentence(machine: Crontab) -> None:
    machine.program("crontab", '[ "$1" = -l ] || { echo "bad minute" >&2; exit 1; }')

    told = machine.schedule("cron", "--install")

    assert told.code == 2
    assert "bad minute" in told.err


# --- secrets -----------------------------------------------------------------------------------


def test_a_secret_in_a_variable_is_not_written_and_the_variable_for_its_file_is_named(
    machine: Crontab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "_secrets_directory", lambda _: machine.home / "secrets")
    environ = {"POLYGON_API_KEY_FILE": "", "POLYGON_API_KEY": KEY}

    refused = machine.schedule("cron", "--install", **environ)

    assert refused.code == 2
    assert not machine.table.exists()
    assert KEY not in refused.out + refused.err
    [step] = [line for line in refused.err.splitlines() if line.startswith("  ")]
    subprocess.run(["/bin/sh", "-c", step], env=machine.environ | environ, check=True)
    file = machine.home / "secrets" / "polygon.key"
    assert file.read_text().strip() == KEY
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    installed = machine.schedule("cron", "--install", **environ)
    assert installed.code == 0, installed.err
    assert f"POLYGON_API_KEY_FILE={file}" in machine.table.read_text()
    assert KEY not in installed.out + machine.table.read_text()


def test_without_a_key_nothing_is_scheduled(machine: Crontab) -> None:
    told = machine.schedule("cron", POLYGON_API_KEY_FILE="")

    assert (told.code, told.out) == (2, "")
    assert "POLYGON_API_KEY_FILE" in told.err


@pytest.mark.parametrize(
    "environ", [{"PGPASSWORD": "s3same"}, {"HTTPS_PROXY": "http://me:s3same@proxy:3128"}]
)
def test_a_password_in_a_variable_of_another_program_is_not_written(
    machine: Crontab, environ: dict[str, str]
) -> None:
    told = machine.schedule("cron", **environ)

    assert told.code == 2
    assert next(iter(environ)) in told.err
    assert "s3same" not in told.out + told.err


def test_crontab_and_systemctl_get_no_secret(machine: Crontab) -> None:
    seen = machine.home / "seen"
    machine.program("systemctl", f"env >>{seen}")
    machine.program("crontab", f"env >>{seen}; cat >/dev/null")

    machine.schedule("cron", "--install", REDIS_URL="redis://:s3same@r", POLYGON_API_KEY_FILE="")
    machine.schedule(
        "cron", "--remove", POLYGON_API_KEY=KEY, DATABASE_URL="postgresql://s3same@h/d"
    )

    assert "PATH=" in seen.read_text()
    assert "s3same" not in seen.read_text()


# --- cron or systemd, not both -----------------------------------------------------------------


def test_jobs_that_systemd_starts_are_not_installed_in_cron(machine: Crontab) -> None:
    machine.program("systemctl", 'case "$*" in list-timers*) echo asset-sync-queue.timer ;; esac')

    told = machine.schedule("cron", "--install")

    assert told.code == 2
    assert "systemd already starts sync queue (asset-sync-queue.timer)" in told.err
    assert not machine.table.exists()


def test_jobs_that_cron_starts_are_not_installed_in_systemd(machine: Crontab) -> None:
    machine.schedule("cron", "--install")

    told = machine.schedule("systemd", "--user", "--install")

    assert told.code == 2
    assert "cron already starts sync priority" in told.err
    assert not (machine.home / ".config").exists()


def test_jobs_in_the_crontab_outside_of_the_block_are_not_started_twice(machine: Crontab) -> None:
    machine.table.write_text("# mine\n*/5 * * * *  asset-sync sync queue -q\n")

    told = machine.schedule("cron", "--install")

    assert told.code == 2
    assert "line 2" in told.err
    assert BEGIN not in machine.table.read_text()


def test_jobs_in_the_systems_crontabs_are_not_started_twice(machine: Crontab) -> None:
    (machine.home / "cron.d").mkdir()
    (machine.home / "cron.d" / "market").write_text("*/5 * * * * root asset-sync sync queue\n")

    told = machine.schedule("cron", "--install")

    assert told.code == 2
    assert str(machine.home / "cron.d" / "market") in told.err


# --- intervals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("minutes", "cron", "systemd"),
    [
        ("1", "* * * * *", "*:0/1"),
        ("20", "*/20 * * * *", "*:0/20"),
        ("60", "0 * * * *", "0/1:00"),
        ("360", "0 */6 * * *", "0/6:00"),
        ("1440", "0 0 * * *", "0:00"),
    ],
)
def test_the_interval_is_that_of_the_settings(
    machine: Crontab, minutes: str, cron: str, systemd: str
) -> None:
    lines = machine.schedule("cron", BATCH_INTERVAL_MINUTES=minutes).out.splitlines()[1:-1]
    units = machine.schedule("systemd", "--user", BATCH_INTERVAL_MINUTES=minutes).out

    assert [line.split("  ")[0] for line in lines] == [cron, cron]
    assert units.count(f"OnCalendar={systemd}\n") == 2


@pytest.mark.parametrize("minutes", ["7", "0.5", "90", "1000"])
@pytest.mark.parametrize("scheduler", ["cron", "systemd"])
def test_an_interval_that_does_not_divide_the_hour_or_day_is_refused(
    machine: Crontab, minutes: str, scheduler: str
) -> None:
    users = ["--user"] if scheduler == "systemd" else []

    told = machine.schedule(scheduler, *users, BATCH_INTERVAL_MINUTES=minutes)

    assert (told.code, told.out) == (2, "")
    assert "batch.interval_minutes" in told.err


def test_a_command_that_is_too_long_for_cron_is_refused(machine: Crontab) -> None:
    told = machine.schedule("cron", NO_PROXY="h," * 500)

    assert told.code == 2
    assert "cron takes at most" in told.err


# --- systemd -----------------------------------------------------------------------------------


def test_the_users_units_are_written_and_started(machine: Crontab) -> None:
    machine.program("systemctl", f'echo "$@" >>{machine.home}/asked')
    directory = machine.home / ".config" / "systemd" / "user"

    told = machine.schedule("systemd", "--user", "--install")

    assert told.code == 0, told.err
    assert {path.name for path in directory.iterdir()} == UNITS
    assert (machine.home / "asked").read_text().splitlines()[-2:] == [
        "--user daemon-reload",
        "--user enable --now asset-sync-priority.timer asset-sync-queue.timer",
    ]
    assert "loginctl enable-linger" in told.err
    assert f"+ExecStart={Path(sys.executable).parent}/asset-sync sync queue" in told.out
    assert machine.schedule("systemd", "--user", "--install").out == "", "nothing is left to change"

    removed = machine.schedule("systemd", "--user", "--remove")

    assert removed.code == 0
    assert list(directory.iterdir()) == []


UNITS = {f"asset-sync-{lane.value}.{kind}" for lane in Lane for kind in ("service", "timer")}


def test_if_systemd_does_not_run_the_commands_for_later_are_named(machine: Crontab) -> None:
    machine.program("systemctl", "echo 'System has not been booted with systemd' >&2; exit 1")

    told = machine.schedule("systemd", "--user", "--install")

    assert told.code == 1
    assert "System has not been booted with systemd" in told.err
    assert "\n  systemctl --user enable --now asset-sync-priority.timer" in told.err


@pytest.fixture
def server_installation() -> Installation:
    etc = Path("/etc/asset-sync")
    return Installation(
        program=("/opt/asset-sync/bin/asset-sync",),
        interval_minutes=5,
        environment=(("ASSET_SYNC_CONFIG", f"{etc}/assets.toml"),),
        secrets=(("POLYGON_API_KEY", etc / "polygon.key"), ("DATABASE_URL", etc / "database.url")),
        settings_file=etc / "assets.toml",
        embedded=False,
    )


def test_the_units_in_the_repository_match_the_printed_ones(
    server_installation: Installation,
) -> None:
    directory = Path(__file__).parent.parent / "systemd"

    units = systemd.system_units(server_installation, directory)

    assert {file.path for file in units} == set(directory.iterdir())
    for file in units:
        assert file.path.read_text() == file.text


@pytest.mark.parametrize(
    "change",
    [
        {"embedded": True},
        {"program": ("/home/me/bin/asset-sync",)},
        {"settings_file": Path("/root/assets.toml")},
    ],
)
def test_units_of_the_system_that_could_not_work_are_refused(
    server_installation: Installation, change: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(ScheduleError):
        systemd.system_units(replace(server_installation, **change), tmp_path)  # type: ignore[arg-type]


def test_systemd_accepts_the_users_units(machine: Crontab, tmp_path: Path) -> None:
    told = machine.schedule("systemd", "--user", "--install", POLYGON_TIER="starter")
    directory = tmp_path / ".config" / "systemd" / "user"

    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, sorted(directory.iterdir()))],
        capture_output=True,
        text=True,
        check=False,
    )

    assert told.code == 0
    assert verified.returncode == 0, verified.stderr
    assert str(directory) not in verified.stderr


def test_a_value_that_no_unit_can_hold_is_refused(machine: Crontab) -> None:
    told = machine.schedule("systemd", "--user", POLYGON_API_KEY_FILE=odd_key(machine))

    assert (told.code, told.out) == (2, "")
    assert "blank" in told.err
