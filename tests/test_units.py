"""Systemd accepts the units, and the units start this program."""

import configparser
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from asset_sync.cli import app
from asset_sync.model import Lane
from asset_sync.ops import hooks
from asset_sync.settings import SHIPPED_FILE, VARIABLES, load
from asset_sync.store.entitlements import Missing
from asset_sync.sync.scope import Scope

UNITS = Path(__file__).parent.parent / "systemd"
JOBS = ("priority", "queue")


def unit(name: str) -> dict[str, str]:
    """Return the settings of a unit's file; of a repeated setting the last one."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / name)
    return {key: value for section in parser.sections() for key, value in parser[section].items()}


@pytest.mark.parametrize("job", JOBS)
def test_a_unit_starts_an_existing_command(job: str) -> None:
    words = unit(f"asset-sync-{job}.service")["ExecStart"].split()

    assert words[0] == "/opt/asset-sync/bin/asset-sync"
    assert words[1:] == ["sync", job]
    assert job in app.commands["sync"].commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("job", JOBS)
def test_a_unit_passes_the_secrets_as_credentials(job: str) -> None:
    text = (UNITS / f"asset-sync-{job}.service").read_text()
    names = re.findall(r"^LoadCredential=([^:]+):", text, re.MULTILINE)
    given = dict(re.findall(r"^Environment=(\w+)=(.+)$", text, re.MULTILINE))

    assert set(given) <= set(VARIABLES)
    assert {given["POLYGON_API_KEY_FILE"], given["DATABASE_URL_FILE"]} == {
        f"%d/{name}" for name in names
    }


@pytest.mark.parametrize("job", JOBS)
def test_a_timer_starts_its_job_as_often_as_the_settings_say(job: str) -> None:
    minutes = load(SHIPPED_FILE, {}).batch.interval_minutes

    assert unit(f"asset-sync-{job}.timer")["OnCalendar"] == f"*:0/{minutes:.0f}"


@pytest.mark.parametrize("job", JOBS)
def test_a_units_time_limit_is_longer_than_the_longest_run_and_its_last_ping(job: str) -> None:
    """A priority run of many assets may take several windows."""
    settings = load(SHIPPED_FILE, {})
    many = tuple(replace(settings.critical[0], symbol=f"A{number}") for number in range(100))
    nothing = Missing(today=False, past=False, snapshot=False, snapshot_symbols=frozenset())
    run = Scope(replace(settings, assets=many), Lane(job), nothing)
    told = hooks.START_SECONDS + hooks.END_SECONDS + hooks.COMMAND_SECONDS

    longest = run.runtime_seconds + told
    assert int(unit(f"asset-sync-{job}.service")["TimeoutStartSec"]) > longest


@pytest.mark.parametrize("job", JOBS)
def test_a_unit_has_only_the_rights_that_it_needs(job: str) -> None:
    service = unit(f"asset-sync-{job}.service")

    assert service["Type"] == "oneshot"
    assert service["ProtectSystem"] == "strict"
    assert service["NoNewPrivileges"] == service["DynamicUser"] == service["ProtectHome"] == "yes"
    assert service["CapabilityBoundingSet"] == ""


@pytest.mark.parametrize("job", JOBS)
def test_systemd_rates_the_units_as_hardened(job: str) -> None:
    """The score goes from 0 to 10; a service that is not hardened has 9.6."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze here")
    scored = subprocess.run(
        [
            *(analyze, "security", "--no-pager", "--offline=true", "--threshold=20"),
            UNITS / f"asset-sync-{job}.service",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unrecognized option" in scored.stderr:
        pytest.skip("this systemd-analyze is older than 250")

    assert scored.returncode == 0, scored.stdout.splitlines()[-1] + scored.stderr


@pytest.mark.parametrize("job", JOBS)
def test_systemd_accepts_the_units(job: str, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze here")
    for kind in ("service", "timer"):
        name = f"asset-sync-{job}.{kind}"
        # systemd-analyze needs the program to exist.
        text = (UNITS / name).read_text().replace("/opt/asset-sync/bin/asset-sync", "/bin/true")
        (tmp_path / name).write_text(text)

    verified = subprocess.run(
        [analyze, "verify", *map(str, tmp_path.iterdir())],
        capture_output=True,
        text=True,
        check=False,
    )

    assert verified.returncode == 0, verified.stderr
    assert str(tmp_path) not in verified.stderr
