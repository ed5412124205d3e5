"""The doctor finds each fault of the set-up and names its cure."""

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import pytest
from machine import Machine

from asset_sync import database
from asset_sync.database import Connection, query
from asset_sync.demo.server import StandIn
from asset_sync.model import Lane
from asset_sync.ops import doctor, doctor_jobs
from asset_sync.schedule import installed
from asset_sync.secret import Secret
from asset_sync.settings import SHIPPED_FILE, load
from asset_sync.store import runs

Findings: TypeAlias = dict[str, tuple[str, str]]
Examine: TypeAlias = Callable[..., tuple[int, Findings]]
Cron: TypeAlias = Callable[..., None]


@pytest.fixture
def machine(url: str, tmp_path: Path) -> Machine:
    """A machine with the shipped settings, and with neither cron nor systemd."""
    home = tmp_path / "home"
    home.mkdir()
    machine = Machine(
        home,
        url,
        PATH="/nowhere",
        POLYGON_API_KEY="demo-key",
        POLYGON_BASE_URL="http://127.0.0.1:1",
    )
    machine.file(SHIPPED_FILE.read_text())
    return machine


@pytest.fixture
def examine(machine: Machine) -> Examine:
    """Run the doctor; return its exit code and each subject's grade and text."""

    def run(*arguments: str, **changes: str) -> tuple[int, Findings]:
        machine.environ |= changes
        told = machine.tell("doctor", "--json", *arguments)
        findings = json.loads(told.out)["findings"]
        return told.code, {one["subject"]: (one["grade"], one["text"]) for one in findings}

    return run


def test_if_all_is_well_every_line_is_ok(
    db: Connection, examine: Examine, cron: Cron, url: str
) -> None:
    ran(db, "priority", "queue", minutes_ago=2)
    with StandIn("free") as api:
        cron(POLYGON_BASE_URL=api.base_url)
        code, found = examine(POLYGON_BASE_URL=api.base_url)
        assert len(api.log) == 1, "the key costs one call"

    assert code == 0
    assert {grade for grade, _ in found.values()} == {"ok"}
    assert set(found) == {
        *("settings", "database", "schema", "rights", "clock", "key", "plan"),
        *("sync priority", "sync queue", "monitoring", "cron"),
    }


def test_the_doctors_call_counts_in_the_budget(db: Connection, examine: Examine) -> None:
    with StandIn("free") as api:
        for _ in range(5):
            examine(POLYGON_BASE_URL=api.base_url)
        _, found = examine(POLYGON_BASE_URL=api.base_url)

        assert api.refused == 0
    assert found["key"][0] == "warning"
    assert "the budget is used up" in found["key"][1]


def test_the_doctor_makes_no_call_with_offline(db: Connection, examine: Examine) -> None:
    with StandIn("free") as api:
        _, found = examine("--offline", POLYGON_BASE_URL=api.base_url)

        assert api.log == []
    assert "key" not in found


def test_a_revoked_key_is_an_error(db: Connection, examine: Examine) -> None:
    with StandIn("free") as api:
        code, found = examine(POLYGON_BASE_URL=api.base_url, POLYGON_API_KEY="s3same")

    assert code == 1
    assert found["key"][0] == "error"
    assert "POLYGON_API_KEY" in found["key"][1]
    assert "s3same" not in str(found)


def test_an_api_that_does_not_answer_is_a_warning(db: Connection, examine: Examine) -> None:
    code, found = examine()

    assert code == 0
    assert found["key"][0] == "warning"


def test_a_missing_key_is_an_error(db: Connection, examine: Examine) -> None:
    code, found = examine(POLYGON_API_KEY="")

    assert code == 1
    assert found["key"] == (
        "error",
        "POLYGON_API_KEY is not set: export it, or POLYGON_API_KEY_FILE",
    )


@pytest.mark.parametrize(("mode", "grade"), [(0o600, "ok"), (0o640, "warning")])
def test_a_secret_file_that_others_may_read_is_reported(
    db: Connection, examine: Examine, tmp_path: Path, mode: int, grade: str
) -> None:
    key = tmp_path / "key"
    key.write_text("demo-key")
    key.chmod(mode)

    _, found = examine("--offline", POLYGON_API_KEY="", POLYGON_API_KEY_FILE=str(key))

    assert found["POLYGON_API_KEY_FILE"][0] == grade


def test_a_secret_file_that_others_may_write_is_reported(
    db: Connection, examine: Examine, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("demo-key")
    key.chmod(0o622)

    _, found = examine("--offline", POLYGON_API_KEY="", POLYGON_API_KEY_FILE=str(key))

    assert found["POLYGON_API_KEY_FILE"] == (
        "warning",
        f"others may write {key}: chmod 600 {key}",
    )


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(0o644, (0, "ok")), (0o664, (0, "warning")), (0o646, (1, "error"))],
)
def test_settings_that_others_may_write_are_reported(
    db: Connection, examine: Examine, tmp_path: Path, mode: int, expected: tuple[int, str]
) -> None:
    file = tmp_path / "assets.toml"
    file.write_text(SHIPPED_FILE.read_text())
    file.chmod(mode)

    code, found = examine("--offline", ASSET_SYNC_CONFIG=str(file))

    assert (code, found["settings"][0]) == expected


@pytest.mark.parametrize(
    ("mode", "environ", "grade"),
    [(0o600, {}, "ok"), (0o644, {}, "warning"), (0o644, {"PING_URL": "https://other.org"}, "ok")],
)
def test_settings_with_a_ping_url_that_others_may_read_are_reported(
    db: Connection, examine: Examine, tmp_path: Path, mode: int, environ: dict[str, str], grade: str
) -> None:
    file = tmp_path / "assets.toml"
    file.write_text(f'monitoring.ping_url = "https://a.org/s3same"\n{MINE}')
    file.chmod(mode)

    _, found = examine("--offline", ASSET_SYNC_CONFIG=str(file), **environ)

    assert found["settings"][0] == grade
    assert "s3same" not in str(found)


MINE = """
[[priority_assets]]
symbol = "XAUUSD"
polygon_ticker = "C:XAUUSD"
asset_type = "forex"
"""


def test_every_mistake_of_the_settings_is_an_error(db: Connection, examine: Examine) -> None:
    code, found = examine(POLYGON_TIER="gold")

    assert code == 1
    assert found["settings"][0] == "error"
    assert "POLYGON_TIER" in found["settings"][1]


def test_a_database_that_is_down_is_an_error(examine: Examine) -> None:
    code, found = examine(DATABASE_URL="postgresql://me:s3same@127.0.0.1:1/x")

    assert code == 1
    assert found["database"][0] == "error"
    assert "s3same" not in str(found)


def test_a_database_that_was_not_initialised_is_an_error_with_its_cure(
    empty_url: str, examine: Examine
) -> None:
    code, found = examine(DATABASE_URL=empty_url)

    assert code == 1
    assert found["database"][0] == "ok"
    assert found["schema"][0] == "error"
    assert "asset-sync db init" in found["schema"][1]


def test_a_server_that_is_too_old_is_an_error(db: Connection) -> None:
    old = database.status(db)._replace(server="12.22")

    [finding] = doctor.examine_database(db, load(SHIPPED_FILE, {}), old)

    assert finding.grade == "error"
    assert finding.text == "embedded PostgreSQL 12.22 is too old: 14 or newer is needed"


def test_jobs_that_nothing_starts_are_reported(db: Connection, examine: Examine) -> None:
    _, found = examine("--offline")

    grade, text = found["sync queue"]
    assert grade == "warning"
    assert text.startswith("has never run on this host; nothing starts it: `asset-sync schedule")


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], str]:
    """Make a program that prints this; return a PATH that has it."""

    def make(name: str, prints: str) -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{prints}\nEND\n")
        path.chmod(0o755)
        return f"{tmp_path}:/bin:/usr/bin"

    return make


Program: TypeAlias = Callable[[str, str], str]


@pytest.fixture
def cron(
    machine: Machine, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> Cron:
    """Give this user a crontab with both jobs, which find what this shell does but for changes."""
    sendmail = tmp_path / "sendmail"
    sendmail.touch(mode=0o755)
    monkeypatch.setattr(doctor_jobs, "_SENDMAIL_PATH", str(tmp_path))
    asset_sync = str(Path(sys.executable).parent / "asset-sync")

    def make(*lines: str, command: str = asset_sync, **changes: str) -> None:
        names = ("DATABASE_URL", "POLYGON_API_KEY", "POLYGON_BASE_URL")
        variables = {name: machine.environ[name] for name in names}
        variables["ASSET_SYNC_CONFIG"] = str(machine.home / "assets.toml")
        given = [f"{name}={value}" for name, value in (variables | changes).items() if value]
        jobs = [f"*/5 * * * *  {command} sync {lane.value} -q" for lane in Lane]
        machine.environ["PATH"] = program("crontab", "\n".join([*lines, *given, *jobs]))

    return make


def ran(
    db: Connection,
    *commands: str,
    minutes_ago: int,
    by: str | None = "cron",
    ended: str = "done",
) -> None:
    for command in commands:
        query(
            db,
            """
            insert into asset_sync.runs
              (command, host, pid, started_at, ended_at, started_by, reason_ended)
            values (%s, %s, 1, now() - make_interval(mins => %s), now(), %s, %s)
            """,
            (command, socket.gethostname(), minutes_ago, by, ended),
        )


def test_a_job_that_cron_did_not_start_in_time_is_reported(
    db: Connection, examine: Examine, cron: Cron
) -> None:
    cron()
    ran(db, "queue", minutes_ago=20)

    _, found = examine("--offline")

    late = "cron should start it but has not for 20 min: cron's mail or log says why"
    assert found["sync queue"] == ("warning", f"last ran 20 min ago, started by cron; {late}")
    assert found["sync priority"] == (
        "warning",
        "has never run on this host; cron should start it",
    )


def test_a_crontab_need_not_be_utf_8(db: Connection, examine: Examine, tmp_path: Path) -> None:
    crontab = tmp_path / "crontab"
    crontab.write_bytes(
        b"#!/bin/sh\necho '# f\xfcr die Kurse'\necho '* * * * * asset-sync sync queue'\n"
    )
    crontab.chmod(0o755)

    _, found = examine("--offline", PATH=str(tmp_path))

    assert "cron should start it" in found["sync queue"][1]


@pytest.mark.parametrize(
    "line", ["#*/5 * * * *  asset-sync sync queue -q", "@daily  asset-sync queue status --json"]
)
def test_a_commented_out_line_or_another_program_does_not_count_as_a_job(
    db: Connection, examine: Examine, program: Program, line: str
) -> None:
    path = program("crontab", line)
    _, found = examine("--offline", PATH=path)

    assert "nothing starts it" in found["sync queue"][1]


@pytest.mark.parametrize(
    ("by", "words"),
    [
        ("cron", ", started by cron"),
        ("terminal", ", started by hand"),
        ("other", ", started by neither cron, systemd nor a terminal"),
        (None, ""),
    ],
)
def test_a_run_that_cron_did_not_start_is_never_attributed_to_cron(
    db: Connection, examine: Examine, cron: Cron, by: str | None, words: str
) -> None:
    cron()
    ran(db, "queue", minutes_ago=4)
    ran(db, "queue", minutes_ago=2, by=by)

    _, found = examine("--offline")

    assert found["sync queue"] == ("ok", f"last ran 2 min ago{words}")


def test_a_run_by_hand_does_not_hide_that_cron_starts_no_run(
    db: Connection, examine: Examine, cron: Cron
) -> None:
    cron()
    ran(db, "priority", minutes_ago=90)
    ran(db, "priority", "queue", minutes_ago=1, by="terminal")

    _, found = examine("--offline")

    assert found["sync queue"][0] == found["sync priority"][0] == "warning"
    assert "started by hand; cron should start it but never has" in found["sync queue"][1]
    assert "cron should start it but has not for 90 min" in found["sync priority"][1]


def test_a_run_that_a_test_starts_was_not_started_by_cron(
    db: Connection, examine: Examine, cron: Cron
) -> None:
    cron()
    runs.start(db, "queue")

    _, found = examine("--offline")

    assert "started by cron" not in found["sync queue"][1]


@pytest.mark.parametrize(
    ("reason", "grade", "words"),
    [
        ("key_refused", "error", "refused the key"),
        ("plan_refused", "error", "refused the plan"),
        ("provider_unavailable", "warning", "did not answer"),
        ("broken", "warning", "ended with an error"),
    ],
)
def test_the_end_of_crons_last_run_is_reported_even_if_a_later_run_by_hand_succeeded(
    db: Connection, examine: Examine, cron: Cron, reason: str, grade: str, words: str
) -> None:
    cron()
    ran(db, "queue", minutes_ago=3, ended=reason)
    ran(db, "queue", minutes_ago=1, by="terminal")

    _, found = examine("--offline")

    assert found["sync queue"][0] == grade
    assert found["sync queue"][1].startswith("the run of 3 min ago, started by cron, ")
    assert words in found["sync queue"][1]


def test_runs_of_another_host_do_not_count_for_this_hosts_cron(
    db: Connection, examine: Examine, cron: Cron
) -> None:
    cron()
    ran(db, "queue", minutes_ago=1)
    query(db, "update asset_sync.runs set host = 'another'")

    _, found = examine("--offline")

    assert found["sync queue"][1] == "has never run on this host; cron should start it"


def test_timers_are_found(db: Connection, examine: Examine, program: Program) -> None:
    ran(db, "queue", minutes_ago=2, by="systemd")

    path = program("systemctl", "Fri 2026-11-20 asset-sync-queue.timer asset-sync-queue.service")
    _, found = examine("--offline", PATH=path)

    assert found["sync queue"] == ("ok", "last ran 2 min ago, started by systemd")
    assert "nothing starts it" in found["sync priority"][1], "of each job by itself"


def test_jobs_in_a_crontab_of_the_system_are_found(
    db: Connection, examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "asset-sync").write_text("*/5 * * * *\tnobody\tasset-sync sync queue -q\n")
    monkeypatch.setattr(installed, "SYSTEM_CRONTABS", tmp_path)

    _, found = examine("--offline")

    assert found["sync queue"][1] == "has never run on this host; cron should start it"


def test_jobs_that_both_cron_and_systemd_start_are_reported(
    db: Connection, examine: Examine, program: Program
) -> None:
    program("crontab", "*/5 * * * *  asset-sync sync queue -q")
    path = program("systemctl", "asset-sync-queue.timer asset-sync-queue.service")
    _, found = examine("--offline", PATH=path)

    assert found["scheduler"] == (
        "warning",
        "both cron and systemd start the jobs: remove one (`asset-sync schedule`)",
    )


# --- through cron's eyes -----------------------------------------------------------------------


def test_settings_that_cron_does_not_read_are_reported(
    db: Connection, examine: Examine, cron: Cron, tmp_path: Path
) -> None:
    """`assets add` in this shell writes to a file that cron does not read."""
    its = tmp_path / "its.toml"
    its.write_text(MINE)
    cron(ASSET_SYNC_CONFIG=str(its))

    _, found = examine("--offline")

    grade, text = found["cron"]
    assert grade == "warning"
    assert f"its jobs read {its}, this shell reads assets.toml" in text
    assert "assets add" in text


def test_the_doctor_looks_for_settings_in_the_jobs_own_home_and_directory(
    db: Connection, examine: Examine, cron: Cron, tmp_path: Path
) -> None:
    its = tmp_path / ".config" / "asset-sync" / "assets.toml"
    its.parent.mkdir(parents=True)
    its.write_text(MINE)
    cron(ASSET_SYNC_CONFIG="", HOME=str(tmp_path))

    assert f"its jobs read {its}," in examine("--offline")[1]["cron"][1]


def test_a_key_that_differs_from_crons_is_reported_and_neither_is_shown(
    db: Connection, examine: Examine, cron: Cron
) -> None:
    cron(POLYGON_API_KEY="s3same-of-cron")

    _, found = examine("--offline", POLYGON_API_KEY="s3same-of-mine")

    assert found["cron"][0] == "warning"
    assert "another key than this shell" in found["cron"][1]
    assert "s3same" not in str(found)


def test_the_doctor_tries_the_key_that_cron_uses(
    db: Connection, examine: Examine, cron: Cron
) -> None:
    with StandIn("free") as api:
        cron(POLYGON_API_KEY="revoked", POLYGON_BASE_URL=api.base_url)
        code, found = examine(POLYGON_BASE_URL=api.base_url)

    assert code == 1
    assert found["key"][0] == "error"


def test_a_job_without_a_key_is_an_error(db: Connection, examine: Examine, cron: Cron) -> None:
    cron(POLYGON_API_KEY="")

    code, found = examine("--offline")

    assert (code, found["cron"][0]) == (1, "error")
    assert "has no key: give it POLYGON_API_KEY_FILE" in found["cron"][1]


def test_a_database_that_differs_from_crons_is_reported_without_a_password(
    db: Connection, examine: Examine, cron: Cron
) -> None:
    cron(DATABASE_URL="postgresql://me:s3same@elsewhere/market")

    _, found = examine("--offline")

    assert found["cron"][0] == "warning"
    assert 'its jobs write to the database "market" at elsewhere:5432' in found["cron"][1]
    assert "s3same" not in str(found)


def test_an_embedded_database_in_another_place_than_crons_is_reported(
    examine: Examine, cron: Cron, tmp_path: Path
) -> None:
    cron(DATABASE_URL="", HOME=str(tmp_path))

    _, found = examine("--offline")

    assert f"the embedded PostgreSQL in {tmp_path}/.local/share/asset-sync" in found["cron"][1]


def test_a_file_of_the_jobs_that_is_missing_is_an_error(
    db: Connection, examine: Examine, cron: Cron
) -> None:
    cron(POLYGON_API_KEY="", POLYGON_API_KEY_FILE="/no/such/polygon.key")

    code, found = examine("--offline")

    assert (code, found["cron"][0]) == (1, "error")
    assert "/no/such/polygon.key" in found["cron"][1]


def test_a_missing_program_is_an_error(db: Connection, examine: Examine, cron: Cron) -> None:
    cron(command="/opt/gone/bin/asset-sync")
    assert "which does not exist" in examine("--offline")[1]["cron"][1]

    cron(command="asset-sync")
    code, found = examine("--offline")
    assert (code, found["cron"][0]) == (1, "error")
    assert "which is not in cron's PATH (/usr/bin:/bin)" in found["cron"][1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look at another user's jobs")
@pytest.mark.parametrize(("mode", "grade"), [(0o600, "error"), (0o644, "ok")])
def test_a_file_that_the_jobs_user_may_not_read_is_an_error(
    db: Connection,
    examine: Examine,
    cron: Cron,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: int,
    grade: str,
) -> None:
    with TemporaryDirectory() as open_to_all:
        Path(open_to_all).chmod(0o755)
        key = Path(open_to_all) / "polygon.key"
        key.write_text("demo-key")
        key.chmod(mode)
        command = f"env POLYGON_API_KEY_FILE={key} /usr/bin/nice /usr/bin/asset-sync sync queue"
        (tmp_path / "asset-sync").write_text(f"* * * * * nobody {command}\n")
        monkeypatch.setattr(installed, "SYSTEM_CRONTABS", tmp_path)

        [job] = [job for job in installed.jobs() if job.user == "nobody"]
        wrong = [text for _, text in doctor_jobs._files(job)]

    where = f"{tmp_path}/asset-sync, line 1"
    cure = f"make it that user's: chown nobody {key}"
    refused = f"{where}: nobody may not read {key} (POLYGON_API_KEY_FILE); {cure}"
    assert wrong == ([] if grade == "ok" else [refused])


def test_the_doctor_says_that_it_cannot_see_into_a_script_around_the_program(
    db: Connection, examine: Examine, program: Program
) -> None:
    path = program("crontab", "*/5 * * * *  . /etc/env && asset-sync sync queue -q")
    _, found = examine("--offline", PATH=path)

    assert found["cron"][0] == "warning"
    assert "which settings it reads is not known" in found["cron"][1]


@pytest.mark.parametrize(
    "command",
    [
        "/bin/asset-sync --config /e/a.toml sync queue -q",
        "cd /e && A=1 /bin/asset-sync sync queue --config=a.toml 2>&1 | logger",
        "flock -n /tmp/lock nice -n 5 /bin/asset-sync sync --config /e/a.toml queue",
        "sh -c 'cd /e; exec /bin/asset-sync sync queue --config a.toml'",
        "env HOME=/e /bin/asset-sync sync queue --config $HOME/a.toml",
        "/bin/asset-sync sync priority; /bin/asset-sync sync queue --config /e/a.toml",
    ],
)
def test_the_doctor_finds_the_program_that_a_crontab_line_starts(
    program: Program, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("PATH", program("crontab", f"HOME=/e\n*/5 * * * *  {command}"))

    [job] = [job for job in installed.jobs() if job.lane is Lane.QUEUE]

    assert (job.program, job.config) == ("/bin/asset-sync", Path("/e/a.toml"))


# --- whom a failure reaches --------------------------------------------------------------------


def test_a_failure_that_cron_mails_is_ok(examine: Examine, cron: Cron) -> None:
    cron("MAILTO=ops@example.org")

    assert examine("--offline")[1]["monitoring"] == ("ok", "cron mails failures to ops@example.org")


def test_if_nobody_hears_of_a_failure_there_is_a_warning(
    examine: Examine, cron: Cron, tmp_path: Path
) -> None:
    cron('MAILTO=""')
    assert nobody(examine, "MAILTO is empty")

    cron()
    (tmp_path / "sendmail").unlink()
    assert nobody(examine, "there is no sendmail")


def test_if_nothing_starts_the_jobs_there_is_a_warning_that_nobody_hears_of_a_failure(
    examine: Examine,
) -> None:
    assert nobody(examine, "nothing starts the jobs")


def nobody(examine: Examine, why: str) -> bool:
    grade, text = examine("--offline")[1]["monitoring"]
    return (
        grade == "warning"
        and text.startswith("a failed run notifies nobody (")
        and why in text
        and "monitoring.ping_url" in text
    )


def test_a_key_without_the_snapshots_of_its_plan_is_reported(
    db: Connection, examine: Examine
) -> None:
    with StandIn("free") as api:
        settings = {"POLYGON_TIER": "starter", "POLYGON_BASE_URL": api.base_url}
        query(
            db,
            """
            insert into asset_sync.entitlements (key_fingerprint, plan, capability)
            values (%s, 'starter', 'snapshot')
            """,
            (Secret("demo-key").fingerprint(),),
        )
        _, found = examine(**settings)

    assert found["plan"][0] == "warning"
    assert "set POLYGON_TIER to free" in found["plan"][1]


def test_redis_that_is_down_is_a_warning_without_its_password(
    db: Connection, examine: Examine
) -> None:
    code, found = examine("--offline", REDIS_URL="redis://:s3same@127.0.0.1:1")

    assert code == 0
    assert found["redis"][0] == "warning"
    assert "s3same" not in str(found)


def test_the_doctor_says_who_hears_of_a_failure_and_hides_the_url(
    examine: Examine, machine: Machine
) -> None:
    path = machine.file(f'monitoring.on_failure = ["{sys.executable}", "sesame"]')

    _, found = examine("--offline", PING_URL="https://hc.example/sesame")
    told = f"each run pings its URL; one that fails starts {sys.executable}"
    assert found["monitoring"] == ("ok", told)

    path.write_text('monitoring.on_failure = ["/no/such/program"]')
    grade, text = examine("--offline")[1]["monitoring"]
    assert grade == "warning"
    assert "/no/such/program" in text
