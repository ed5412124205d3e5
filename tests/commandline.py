"""Runs the command line within this process: a new Python would take 400 ms to start."""

import io
import os
import re
import sys
from collections.abc import Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from asset_sync.cli import main


class Told(NamedTuple):
    """What a command returned: exit code, stdout and stderr."""

    code: int
    out: str
    err: str


def asset_sync(
    *arguments: str, environ: Mapping[str, str], directory: Path, columns: int | None = None
) -> Told:
    """Run one command line with only this environment; every exception except its exit is raised.

    With `columns`, stdout is a terminal so wide, without colours.
    """
    # As Python opens them: a character that cannot be encoded is an error only on stdout.
    kind = io.TextIOWrapper if columns is None else _Screen
    out = kind(io.BytesIO(), "utf-8", write_through=True)
    if columns is not None:
        environ = {**environ, "COLUMNS": str(columns), "NO_COLOR": "1"}
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)
    with (
        mock.patch.dict(os.environ, environ, clear=True),
        mock.patch.object(sys, "argv", ["asset-sync", *arguments]),
        chdir(directory),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        code: object = None
        try:
            main()
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int), "it ends with a number for cron"
    return Told(int(code), _text(out), _text(err))


class _Screen(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


LOG_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


def without_times(err: str) -> str:
    """The lines of a run's log, each without the time with which it begins."""
    lines = err.splitlines(keepends=True)
    assert all(re.match(f"{LOG_TIME} ", line) for line in lines), err
    return "".join(line.split(" ", 1)[1] for line in lines)


def _text(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()
