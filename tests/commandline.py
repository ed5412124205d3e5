"""The command line within this process: as a user has it, without the 400 ms of a new Python."""

import io
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from asset_sync.cli import main


@dataclass(frozen=True, slots=True)
class Told:
    """What cron, a program and a person get of a command."""

    code: int
    out: str
    err: str


def asset_sync(*arguments: str, environ: Mapping[str, str], directory: Path) -> Told:
    """Run one command line with nothing but this environment; any exception but its end escapes."""
    # As Python opens them: what cannot be encoded is an error on stdout only.
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)
    with (
        mock.patch.dict(os.environ, environ, clear=True),
        mock.patch.object(sys, "argv", ["asset-sync", *arguments]),
        chdir(directory),
        redirect_stdout(out),
        redirect_stderr(err),
        _signals_as_they_were(),
    ):
        code: object = None
        try:
            main()
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int), "it ends with a number for cron"
    return Told(int(code), _text(out), _text(err))


def _text(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


@contextmanager
def _signals_as_they_were() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
