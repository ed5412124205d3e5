"""What a run of `sync` says on stderr: a sentence or a JSON object for each event."""

import json
import socket
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeAlias

from asset_sync.cli.format import counted, duration, kept_slots, price, short_date
from asset_sync.cli.options import Common
from asset_sync.cli.output import err, err_raw
from asset_sync.errors import ExitCode
from asset_sync.spans import Span
from asset_sync.sync.progress import (
    Calling,
    Failed,
    Filled,
    Noted,
    Progress,
    PutBack,
    Recovered,
    Started,
    Synced,
    Waiting,
    Warned,
)

Fields: TypeAlias = Mapping[str, object]


class LogFormat(StrEnum):
    """The format of the log's lines."""

    TEXT = "text"
    JSON = "json"


class _Severity(StrEnum):
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


_EVENTS: Mapping[type[Progress], tuple[str, _Severity]] = {
    Started: ("started", _Severity.INFO),
    Waiting: ("waiting", _Severity.INFO),
    Calling: ("calling", _Severity.INFO),
    Synced: ("synced", _Severity.INFO),
    Filled: ("filled", _Severity.INFO),
    PutBack: ("put_back", _Severity.INFO),
    Noted: ("noted", _Severity.INFO),
    Warned: ("warned", _Severity.WARNING),
    Recovered: ("recovered", _Severity.WARNING),
    Failed: ("failed", _Severity.ERROR),
}


class Log:
    """Says what happens in one run, and remembers its last lines for the monitoring hooks."""

    def __init__(
        self, options: Common, command: str, log_format: LogFormat = LogFormat.TEXT
    ) -> None:
        self._options = options
        self._command = command
        self.is_json = log_format is LogFormat.JSON
        self.run_id: int | None = None
        """None until there is one."""
        self.lines: deque[str] = deque(maxlen=50)

    @property
    def on_screen(self) -> bool:
        """Whether stderr can show a live line."""
        return sys.stderr.isatty() and not self._options.quiet and not self.is_json

    def hear(self, progress: Progress) -> None:
        """Note an event and print it; with -q only problems and recoveries are printed."""
        self.note(progress)
        if isinstance(progress, Waiting | Calling) and not self._options.verbose:
            return
        if isinstance(progress, Started) and not self.is_json:
            return  # each line has its number
        event, severity = _EVENTS[type(progress)]
        if self._options.quiet and not _is_news(progress, severity):
            return
        self._say(severity, event, sentence(progress), _fields(progress))

    def note(self, progress: Progress) -> None:
        """Remember an event that something else prints."""
        if isinstance(progress, Started):
            self.run_id = progress.run_id
        elif not isinstance(progress, Waiting | Calling):
            self.lines.append(sentence(progress))

    def info(self, text: str) -> None:
        """Print information on the whole run, such as where its settings are from."""
        if not self._options.quiet:
            self._say(_Severity.INFO, "settings", text, {})

    def warning(self, text: str) -> None:
        """Report a problem that does not fail the run."""
        self.hear(Warned(text))

    def end(
        self,
        code: ExitCode,
        trouble: str,
        summary: str = "",
        fields: Fields | None = None,
        *,
        is_news: bool = True,
    ) -> None:
        """Say on stderr why the run ended; JSON has a last line even if nothing is wrong.

        With -q there is no such line after success. A quiet run that ended like the one before
        prints nothing, so that cron mails an outage once.
        """
        self.lines.extend(text for text in (trouble, summary) if text)
        severity = _Severity.INFO if code is ExitCode.DONE else _Severity.ERROR
        if self._options.quiet and not is_news:
            return
        if self.is_json:
            if self._options.quiet and code is ExitCode.DONE:
                return
            self._say(severity, "ended", trouble or summary, {"exit_code": code, **(fields or {})})
        elif trouble:
            self._print(trouble, otherwise="asset-sync: ")

    def _say(self, severity: _Severity, event: str, text: str, fields: Fields) -> None:
        if not self.is_json:
            self._print(text)
            return
        line = {
            "at": _now().isoformat(timespec="milliseconds"),
            "level": severity,
            "host": socket.gethostname(),
            "command": self._command,
            "run_id": self.run_id,
            "event": event,
            **fields,
            "message": text,
        }
        err_raw(json.dumps(line))

    def _print(self, text: str, otherwise: str = "") -> None:
        """Print a line; if stderr is no terminal, with its time and its run, as in a log."""
        if sys.stderr.isatty():
            err(otherwise + text)
            return
        whose = otherwise if self.run_id is None else f"run {self.run_id}: "
        for line in text.splitlines():
            err(f"{_now():%Y-%m-%dT%H:%M:%SZ} {whose}{line}")


def _now() -> datetime:
    return datetime.now(UTC)


def _is_news(progress: Progress, severity: _Severity) -> bool:
    """Whether a quiet run reports it: what went wrong, and when that is over."""
    match progress:
        case Failed(is_news=is_news):
            return is_news
        case Synced(recovered=recovered):
            return recovered
        case _:
            return severity is not _Severity.INFO


def _fields(progress: Progress) -> dict[str, object]:
    """Return an event's data for JSON, without its text (the line's message) and its budget."""
    fields: dict[str, object] = {}
    for name, value in progress._asdict().items():
        if name == "seconds":
            fields[name] = round(value, 3)
        elif isinstance(value, Span):
            fields["from"], fields["until"] = value.start.isoformat(), value.end.isoformat()
        elif name not in {"text", "budget"}:
            fields[name] = value.isoformat() if isinstance(value, datetime) else value
    return fields


def sentence(progress: Progress) -> str:
    """Return an event as one line of text."""
    match progress:
        case Started():
            text = "the run begins"
        case Synced() | Filled():
            text = _synced(progress) if isinstance(progress, Synced) else _filled(progress)
        case Failed():
            text = f"failed: {failure(progress)}"
        case PutBack():
            text = f"put back {names(progress.symbols)}: {progress.reason}"
        case Noted() | Warned():
            text = f"{'warning: ' if isinstance(progress, Warned) else ''}{progress.text}"
        case Recovered(what, seconds):
            text = f"{what[:1].upper()}{what[1:]} works again after {duration(seconds)}."
        case Waiting():
            text = f"waiting {duration(progress.seconds)} for {progress.reason}"
            if progress.budget is not None and progress.budget.kept:
                text += f" ({kept_slots(progress.budget)})"
        case Calling():
            text = f"asking for {names(progress.symbols)} ({progress.feed})"
    return text


def failure(failed: Failed) -> str:
    """Return which asset failed, and why."""
    return f"{failed.symbol}: {failed.error}"


def _synced(synced: Synced) -> str:
    bars = counted(synced.bars_written, "new bar")
    parts = ["a quote" if synced.feed == "snapshot" else bars]
    if synced.last_price is not None:
        parts.append(f"last price {price(synced.last_price)}")
    parts.append("more to come" if synced.more else duration(synced.seconds))
    recovered = "works again: " if synced.recovered else ""
    return f"{synced.symbol}: {recovered}{', '.join(parts)}"


def _filled(filled: Filled) -> str:
    if not filled.settled.length:
        return f"{filled.symbol}: the plan does not include so early a past"
    bars = counted(filled.bars_written, "new bar")
    start, end = (short_date(moment) for moment in filled.settled)
    return f"{filled.symbol}: history {start} to {end}, {bars}, {duration(filled.seconds)}"


def names(symbols: Sequence[str]) -> str:
    """Return the first three symbols, and how many more there are."""
    shown = ", ".join(symbols[:3])
    return shown if len(symbols) <= 3 else f"{shown} and {len(symbols) - 3} more"  # noqa: PLR2004
