"""Draws the pictures of the pages: a terminal of 80 columns as SVG, `report` in Chromium as WebP.

`make pictures` runs it. It uses the real program, the stand-in API and its own database.
"""

import base64
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

from asset_sync.database import embedded, migrate, query, raw_session
from asset_sync.demo.server import StandIn
from asset_sync.secret import Secret

HERE = Path(__file__).parent
WIDTH, WINDOW_SECONDS = 80, 20

sys.path.insert(0, str(HERE.parent / "tests"))
import browsers  # noqa: E402  # beside the tests that it is for


def main() -> None:
    """Draw a run, the queue's status and the page for people."""
    draw_terminal()
    draw_page()


def draw_terminal() -> None:
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


def draw_page() -> None:
    """Draw the page of a day on which one asset fails and another was given up."""
    with (
        StandIn("free", calls=40, period_seconds=1.0) as api,
        tempfile.TemporaryDirectory() as tmp,
    ):
        server = embedded.start(Path(tmp) / "data")
        try:
            environ = {
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "HOME": tmp,
                "DATABASE_URL": embedded.create_database(server, "pictures"),
                "POLYGON_BASE_URL": api.base_url,
                "POLYGON_API_KEY": api.key,
            }
            page = Path(tmp) / "report.html"
            write_a_day(environ, page)
            for name, width, height, dark in (
                ("report", 1280, 900, False),
                ("report-phone", 360, 900, True),
            ):
                photograph(page, name, width, height, dark=dark)
        finally:
            server.leave()


def write_a_day(environ: dict[str, str], page: Path) -> None:
    """Fetch most of two years, spread the calls over a day, add trouble, and write the page."""
    settings = page.parent / "assets.toml"
    shipped = (HERE.parent / "assets.toml").read_text()
    settings.write_text(
        shipped.replace("# calls = 5", "calls = 40").replace(
            "# period_seconds = 60", "period_seconds = 1"
        )
    )
    with raw_session(Secret(environ["DATABASE_URL"])) as db:
        migrate(db)
        run(environ, "sync", "priority")
        run(environ, "sync", "queue", "--max-runtime", "45")
        run(environ, "sync", "priority")
        settings.write_text(shipped)
        query(db, _A_DAY)
    run(environ, "report", "--output", str(page))


def run(environ: dict[str, str], *words: str) -> None:
    """Run the program to its end."""
    subprocess.run(  # noqa: S603  # our own program
        [sys.executable, "-m", "asset_sync", "-q", *words],
        env=environ,
        cwd=environ["HOME"],
        check=True,
    )


# Every five minutes, but for two hours in which the host was off, and history in the last six.
_A_DAY = """
with made as (
  insert into asset_sync.runs (command, host, pid, started_at, ended_at, reason_ended, updated)
  select command, 'here', 1, at, at + interval '20 s', 'done', 3
  from generate_series(2, 286) as cycle,
    lateral (select now() - cycle * interval '5 min' as at) as began,
    unnest(array['priority', 'queue']) as command
  where cycle not between 200 and 224
  returning id, command, started_at
)
insert into asset_sync.calls (run_id, at, feed, symbols, outcome, duration_ms)
select id, started_at + interval '1 s', case when number <= 4 then 'bars' else 'history' end,
  array['BTCUSD'], 'ok', 300
from made, generate_series(1, 16) as number
where number <= case command when 'priority' then 3 else
  case when started_at > now() - interval '6 hours' then 16 else 4 end end;
update asset_sync.queue set state = 'waiting', strikes = 5, attempts = 1,
  last_success_at = now() - interval '3 hours 20 min', not_before = now() + interval '9 min',
  last_error = 'The API answered with 500 (Internal Server Error).'
where symbol = 'ETHUSDT' and feed = 'bars';
update asset_sync.queue set state = 'dead', strikes = 5,
  last_success_at = now() - interval '2 days 4 hours',
  last_error = 'The provider knows no ticker C:XAGUSD.'
where symbol = 'XAGUSD' and feed = 'bars';
"""


def photograph(page: Path, name: str, width: int, height: int, *, dark: bool) -> None:
    """Write what a screen of this size shows of the page first."""
    with browsers.chromium() as chromium:
        chromium.look(page.as_uri(), width=width, dark=dark)
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        chromium.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        taken = chromium.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"format": "webp", "quality": 60}
        )
    (HERE / f"{name}.webp").write_bytes(base64.b64decode(taken["data"]))


def draw(name: str, text: str) -> None:
    """Write the screen as an SVG."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(text))
    console.save_svg(str(HERE / f"{name}.svg"), title="asset-sync")


if __name__ == "__main__":
    main()
