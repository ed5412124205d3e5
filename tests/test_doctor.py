"""What the doctor finds, and that it says what cures it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from asset_sync import runs
from asset_sync.cli import main
from asset_sync.database import Connection, query
from asset_sync.demo.server import StandIn
from asset_sync.settings import Secret
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
    assert "no call is left" in found["key"][1]


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


def test_jobs_that_nobody_starts_are_told(db: Connection, examine: Examine) -> None:
    _, found = examine("--offline")

    assert found["sync queue"] == (
        "warning",
        "has never run, and nobody here starts it: see crontab.example",
    )


def test_a_job_that_cron_should_have_started_is_told(
    db: Connection, examine: Examine, tmp_path: Path
) -> None:
    crontab = tmp_path / "crontab"
    crontab.write_text("#!/bin/sh\necho '*/5 * * * * asset-sync sync queue -q'\n")
    crontab.chmod(0o755)
    query(
        db,
        """
        insert into asset_sync.runs (command, host, pid, started_at)
        values ('queue', 'h', 1, now() - interval '20 min')
        """,
    )

    _, found = examine("--offline", PATH=f"{tmp_path}:/bin:/usr/bin")

    assert found["sync queue"][0] == "warning"
    assert found["sync queue"][1].startswith("last ran 20 min ago, though cron should start it")


def test_a_key_without_the_snapshots_of_its_plan_is_told(db: Connection, examine: Examine) -> None:
    with StandIn("free") as api:
        settings = {"POLYGON_TIER": "starter", "POLYGON_BASE_URL": api.base_url}
        query(
            db,
            """
            insert into asset_sync.denials (key_fingerprint, plan, capability)
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
