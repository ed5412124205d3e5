"""What the doctor finds, and that it says what cures it."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest

from asset_sync import database, doctor, runs
from asset_sync.cli import main
from asset_sync.database import Connection, query
from asset_sync.demo.server import StandIn
from asset_sync.settings import SHIPPED_FILE, Secret, load
from asset_sync.slots import Lane

Findings: TypeAlias = dict[str, tuple[str, str]]
Examine: TypeAlias = Callable[..., tuple[int, Findings]]


@pytest.fixture
def examine(
    url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Examine:
    """Run the doctor; return its exit code and each subject's grade and text."""
    for name, value in {
        "DATABASE_URL": url,
        "POLYGON_API_KEY": "demo-key",
        "POLYGON_BASE_URL": "http://127.0.0.1:1",
        "PATH": "/nowhere",  # neither cron nor systemd
    }.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str, **changes: str) -> tuple[int, Findings]:
        for name, value in changes.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["asset-sync", "doctor", "--json", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        told = json.loads(capfd.readouterr().out)["findings"]
        found = {one["subject"]: (one["grade"], one["text"]) for one in told}
        return int(ended.value.code or 0), found

    return run


def test_where_all_is_well_every_line_is_ok(db: Connection, examine: Examine) -> None:
    for lane in Lane:
        runs.start(db, lane.value)
    with StandIn("free") as api:
        code, found = examine(POLYGON_BASE_URL=api.base_url)
        assert len(api.log) == 1, "the key costs one call"

    assert code == 0
    assert {grade for grade, _ in found.values()} == {"ok"}
    assert set(found) == {
        *("settings", "database", "schema", "rights", "clock", "key", "plan"),
        *("sync priority", "sync queue", "monitoring"),
    }


def test_the_call_is_one_of_the_budget(db: Connection, examine: Examine) -> None:
    with StandIn("free") as api:
        for _ in range(5):
            examine(POLYGON_BASE_URL=api.base_url)
        _, found = examine(POLYGON_BASE_URL=api.base_url)

        assert api.refused == 0
    assert found["key"][0] == "warning"
    assert "the budget is used up" in found["key"][1]


def test_offline_it_makes_no_call(db: Connection, examine: Examine) -> None:
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
def test_a_secret_that_others_may_read_is_told(
    db: Connection, examine: Examine, tmp_path: Path, mode: int, grade: str
) -> None:
    key = tmp_path / "key"
    key.write_text("demo-key")
    key.chmod(mode)

    _, found = examine("--offline", POLYGON_API_KEY="", POLYGON_API_KEY_FILE=str(key))

    assert found["POLYGON_API_KEY_FILE"][0] == grade


def test_a_secret_that_others_may_write_is_told(
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


@pytest.mark.parametrize(("mode", "grade"), [(0o644, "ok"), (0o664, "warning"), (0o646, "warning")])
def test_settings_that_others_may_write_are_told(
    db: Connection, examine: Examine, tmp_path: Path, mode: int, grade: str
) -> None:
    file = tmp_path / "assets.toml"
    file.write_text(SHIPPED_FILE.read_text())
    file.chmod(mode)

    code, found = examine("--offline", ASSET_SYNC_CONFIG=str(file))

    assert (code, found["settings"][0]) == (0, grade)


@pytest.mark.parametrize(
    ("mode", "environ", "grade"),
    [(0o600, {}, "ok"), (0o644, {}, "warning"), (0o644, {"PING_URL": "https://other.org"}, "ok")],
)
def test_settings_with_a_url_to_ping_that_others_may_read_are_told(
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
    old = replace(database.status(db), server="12.22")

    [finding] = doctor.examine_database(db, load(SHIPPED_FILE, {}), old)

    assert finding.grade == "error"
    assert finding.text == "embedded PostgreSQL 12.22 is too old: 13 or newer is needed"


def test_jobs_that_nobody_starts_are_told(db: Connection, examine: Examine) -> None:
    _, found = examine("--offline")

    assert found["sync queue"] == (
        "warning",
        "has never run, and nobody here starts it: see crontab.example",
    )


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], str]:
    """Make a program that prints this; return a PATH with it."""

    def make(name: str, prints: str) -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{prints}\nEND\n")
        path.chmod(0o755)
        return f"{tmp_path}:/bin:/usr/bin"

    return make


Program: TypeAlias = Callable[[str, str], str]


def ran(db: Connection, *commands: str, minutes_ago: int) -> None:
    for command in commands:
        query(
            db,
            """
            insert into asset_sync.runs (command, host, pid, started_at)
            values (%s, 'h', 1, now() - make_interval(mins => %s))
            """,
            (command, minutes_ago),
        )


def test_a_job_that_cron_should_have_started_is_told(
    db: Connection, examine: Examine, program: Program
) -> None:
    ran(db, "queue", minutes_ago=20)

    path = program("crontab", "*/5 * * * *  asset-sync -q sync queue")
    _, found = examine("--offline", PATH=path)

    assert found["sync queue"] == (
        "warning",
        "last ran 20 min ago, though cron should start it: cron's mail says why",
    )
    assert "nobody here starts it" in found["sync priority"][1], "of each job by itself"


def test_a_crontab_need_not_be_utf_8(db: Connection, examine: Examine, tmp_path: Path) -> None:
    ran(db, "queue", minutes_ago=20)
    crontab = tmp_path / "crontab"
    crontab.write_bytes(b"#!/bin/sh\necho '# f\xfcr die Kurse'\necho 'x asset-sync sync queue'\n")
    crontab.chmod(0o755)

    _, found = examine("--offline", PATH=str(tmp_path))

    assert "though cron should start it" in found["sync queue"][1]


@pytest.mark.parametrize(
    "line", ["#*/5 * * * *  asset-sync sync queue -q", "@daily  asset-sync queue status --json"]
)
def test_a_job_that_is_commented_out_or_another_is_not_started(
    db: Connection, examine: Examine, program: Program, line: str
) -> None:
    path = program("crontab", line)
    _, found = examine("--offline", PATH=path)

    assert "nobody here starts it" in found["sync queue"][1]


def test_who_starts_a_job_that_runs_is_told(
    db: Connection, examine: Examine, program: Program
) -> None:
    ran(db, "priority", "queue", minutes_ago=2)

    path = program("systemctl", "Fri 2026-11-20 asset-sync-queue.timer asset-sync-queue.service")
    _, found = examine("--offline", PATH=path)

    assert found["sync queue"] == ("ok", "last ran 2 min ago (started by systemd)")
    assert found["sync priority"] == (
        "ok",
        "last ran 2 min ago (by neither this user's cron nor systemd)",
    )


def test_a_crontab_of_the_system_counts(
    db: Connection, examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "asset-sync").write_text("*/5 * * * * market asset-sync sync queue -q\n")
    monkeypatch.setattr(doctor, "_SYSTEM_CRONTABS", tmp_path)
    ran(db, "queue", minutes_ago=2)

    _, found = examine("--offline")

    assert found["sync queue"] == ("ok", "last ran 2 min ago (started by cron)")


def test_jobs_that_both_cron_and_systemd_start_are_told(
    db: Connection, examine: Examine, program: Program
) -> None:
    program("crontab", "*/5 * * * *  asset-sync sync queue -q")
    path = program("systemctl", "asset-sync-queue.timer asset-sync-queue.service")
    _, found = examine("--offline", PATH=path)

    assert found["scheduler"] == (
        "warning",
        "both cron and systemd start the jobs: take one away",
    )


def test_a_key_without_the_snapshots_of_its_plan_is_told(db: Connection, examine: Examine) -> None:
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


def test_it_says_who_is_told_of_a_failure_and_not_the_url(
    examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "assets.toml"
    path.write_text(f'monitoring.on_failure = ["{sys.executable}", "sesame"]')

    _, found = examine("--offline", PING_URL="https://hc.example/sesame")
    told = f"each run pings its URL; one that fails starts {sys.executable}"
    assert found["monitoring"] == ("ok", told)

    path.write_text('monitoring.on_failure = ["/no/such/program"]')
    grade, text = examine("--offline")[1]["monitoring"]
    assert grade == "warning"
    assert "/no/such/program" in text
