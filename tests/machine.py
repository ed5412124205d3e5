"""A user's machine for the tests: a home, an environment, and the command line."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self, TypeAlias

import commandline
from commandline import Told

import asset_sync
from asset_sync.database import Connection, query
from asset_sync.demo import replay
from asset_sync.demo.replay import HOUR_MS
from asset_sync.demo.server import StandIn

SOURCE = Path(asset_sync.__file__).parents[1]
"""The directory of the package under test, which may differ from the installed package."""

Process: TypeAlias = "subprocess.Popen[str]"


def environment(home: Path, url: str = "", api: StandIn | None = None) -> dict[str, str]:
    """Return the environment of a user of this database and this API.

    It inherits only PATH and the variables of coverage from the tests' own environment.
    """
    environ = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE")}
    environ |= {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(SOURCE)}
    environ["HISTORY_ENABLED"] = "false"  # its calls would not end before the run does
    if url:
        environ["DATABASE_URL"] = url
    if api is not None:
        environ |= {"POLYGON_API_KEY": api.key, "POLYGON_BASE_URL": api.base_url}
    return environ


class Machine:
    """A home directory, an environment, and the processes started there.

    The end of the block ends these processes. No output may hold a traceback or one of `secrets`.
    """

    def __init__(
        self,
        home: Path,
        url: str = "",
        api: StandIn | None = None,
        *,
        secrets: tuple[str, ...] = (),
        **environ: str,
    ) -> None:
        self.home = home
        self.environ = environment(home, url, api) | environ
        self.secrets = secrets
        self._started: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            process.kill()
            process.communicate()

    def file(self, text: str) -> Path:
        """Write the settings file into the home, where the program finds it."""
        path = self.home / "assets.toml"
        path.write_text(text)
        return path

    def program(self, name: str, script: str) -> None:
        """Put a shell script first on the machine's PATH."""
        path = self.home / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def tell(self, *arguments: str, **environ: str) -> Told:
        """Run the command line in this process."""
        return self._checked(
            commandline.asset_sync(
                *arguments,
                environ=self.environ | environ,
                directory=self.home,
            )
        )

    def run(self, *arguments: str, **environ: str) -> Told:
        """Run the command line as another process."""
        return self.end(self.start(*arguments, **environ))

    def start(self, *arguments: str, **environ: str) -> Process:
        """Start the command line as another process."""
        return self.python("-m", "asset_sync", *arguments, **environ)

    def python(self, *words: str, **environ: str) -> Process:
        """Start a Python."""
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=self.home,
            env=self.environ | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def end(self, process: Process, *, seconds: float = 60) -> Told:
        """Wait until a process has ended, and return its exit code and output."""
        out, err = process.communicate(timeout=seconds)
        return self._checked(Told(process.returncode, out, err))

    def _checked(self, told: Told) -> Told:
        for secret in self.secrets:
            assert secret not in told.out + told.err
        assert "Traceback" not in told.out + told.err
        return told


def until(condition: Callable[[], object], *, seconds: float = 20) -> None:
    """Check again and again until this is true: other processes and threads need time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def version_of(path: Path) -> tuple[int, int, int]:
    """Return what changes if a file is written or replaced, but not if it is read."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def waits_for_a_reader(process: "subprocess.Popen[Any]") -> bool:
    """Return whether a thread of the process waits for room in a pipe."""
    threads = Path(f"/proc/{process.pid}/task").glob("*/wchan")  # which function of the kernel
    for thread in threads:
        with suppress(OSError):  # it has ended
            if "pipe_write" in thread.read_text():
                return True
    return False


def one_bar(
    db: Connection, symbol: str, ticker: str, *, hours_ago: int = 1, now_ms: int | None = None
) -> int:
    """Give an asset one bar, as if it had last been synced then: a first sync takes long.

    Return when the bar starts. If the market was closed then, it is the last bar before.
    """
    if now_ms is None:
        now_ms = int(time.time() * 1000)
    bar = replay.newest(ticker, 0, now_ms - hours_ago * HOUR_MS, now_ms)
    assert bar is not None
    query(
        db,
        """
        with new as (insert into trading.symbols (symbol) values (%s) returning id)
        insert into market_data.ohlcv_5m
        select id, to_timestamp(%s / 1000.0), %s, %s, %s, %s, %s, %s, %s from new
        """,
        (symbol, *bar),
    )
    return bar.start_ms


def close_at(ticker: str, price: Mapping[str, Any]) -> float:
    """Return the close of the newest bar, over or not, at the time of a stored price."""
    at_ms = int(datetime.fromisoformat(price["timestamp"]).timestamp() * 1000)
    bar = replay.newest(ticker, 0, at_ms - 1, at_ms)
    assert bar is not None
    return bar.close
