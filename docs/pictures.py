"""Draws the pictures of the pages: the program's output on a terminal of 80 columns, as SVG.

`make pictures` runs it. It uses the real program, the stand-in API and its own database.
"""

import io
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.text import Text

from asset_sync.demo.server import StandIn

HERE = Path(__file__).parent
WIDTH, WINDOW_SECONDS = 80, 20


def main() -> None:
    """Draw a run while it waits for a slot, and the queue's status at that moment."""
    with (
        StandIn("free", period_seconds=WINDOW_SECONDS) as api,
        tempfile.TemporaryDirectory() as tmp,
    ):
        settings = Path(tmp) / "assets.toml"
        shipped = (HERE.parent / "assets.toml").read_text()
        settings.write_text(
            shipped.replace("# calls = 5", "calls = 5").replace(
                "# period_seconds = 60", f"period_seconds = {WINDOW_SECONDS}"
            )
        )
        environ = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TERM": "xterm-256color",
            "HOME": tmp,
            "COLUMNS": str(WIDTH),
            "ASSET_SYNC_CONFIG": str(settings),
            "POLYGON_BASE_URL": api.base_url,
            "POLYGON_API_KEY": api.key,
        }
        seen("asset-sync sync priority", environ)
        with Terminal("asset-sync sync queue", environ) as run:
            run.read_until("waiting for a slot")
            status = seen("asset-sync queue status", environ)
            draw("run", run.screen())
        draw("queue-status", status)


def seen(command: str, environ: dict[str, str]) -> str:
    """Run a command to its end and return the text on the screen."""
    with Terminal(command, environ) as terminal:
        terminal.read_until(None)
        return terminal.screen()


class Terminal:
    """A command on its own terminal."""

    def __init__(self, command: str, environ: dict[str, str]) -> None:
        self._command = command
        self._output = ""
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(  # noqa: S603  # our own program
            command.split(), env=environ, stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._master)

    def read_until(self, text: str | None) -> None:
        """Read until this has been printed, or to the end."""
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up and (text is None or text not in self._output):
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    self._output += os.read(self._master, 65536).decode()
                except OSError:  # the other end is closed
                    return

    def screen(self) -> str:
        """Return the text on the screen; of a line that was drawn several times, the last state."""
        lines = [""]
        for piece in re.split(r"(\r\n|\n|\r|\x1b\[2K|\x1b\[1A|\x1b\[\?25[lh])", self._output):
            if piece in {"\n", "\r\n"}:
                lines.append("")
            elif piece == "\x1b[1A":
                lines.pop()
            elif piece in {"\r", "\x1b[2K"}:
                lines[-1] = ""
            elif not piece.startswith("\x1b[?"):
                lines[-1] += piece
        return f"$ {self._command}\n" + "\n".join(lines).rstrip()


def draw(name: str, text: str) -> None:
    """Write the screen as an SVG."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(text))
    console.save_svg(str(HERE / f"{name}.svg"), title="asset-sync")


if __name__ == "__main__":
    main()
