"""Reports how a run of `sync` ended: pings a URL (healthchecks.io), and starts a command.

The pings follow https://healthchecks.io/docs/http_api/: a POST to the URL with `/start` appended
to its path, then one to the URL itself or, after a failure, with the exit code appended. The body
holds the last lines of output. If a ping or the command fails, that is only a warning.
"""

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from asset_sync.settings import SECRET_VARIABLES, MonitoringSettings

# The start is pinged in another thread; a run that ends earlier waits for that thread.
START_SECONDS = 2.0
END_SECONDS = 5.0
COMMAND_SECONDS = 30.0
MOST_LINES = 50
# The smallest limit of such services, and less than a variable can hold.
MOST_BYTES = 10_000
_ANSWER_BYTES = 100


class Ending(NamedTuple):
    """How a run ended."""

    exit_code: int
    run_id: int | None
    """None if it ended before it had an id."""
    said: Sequence[str]
    """The last lines that it printed."""


class Monitors:
    """The ping and the command of one run."""

    def __init__(
        self, settings: MonitoringSettings, command: str, environ: Mapping[str, str]
    ) -> None:
        self._settings = settings
        self._command = command
        self._environ = environ
        self._starting: threading.Thread | None = None

    def begin(self) -> None:
        """Ping that the run starts; the run does not wait, and a failed ping is not reported."""
        if self._settings.ping_url is not None:
            self._starting = threading.Thread(
                target=self._ping, args=("/start", b"", START_SECONDS), daemon=True
            )
            with suppress(RuntimeError):  # no thread can be started
                self._starting.start()

    def end(self, ending: Ending) -> Iterator[str]:
        """Report how the run ended; yield a sentence for a failed ping and a failed command."""
        text = last_words(ending.said)
        if self._starting is not None and self._starting.ident is not None:
            self._starting.join()  # a start pinged after the end would look like another run
        if self._settings.ping_url is not None:
            how = f"/{ending.exit_code}" if ending.exit_code else ""
            head = f"asset-sync sync {self._command} on {socket.gethostname()}: {_outcome(ending)}"
            trouble = self._ping(how, f"{head}\n\n{text}\n".encode(), END_SECONDS)
            if trouble:
                yield f"The ping to monitoring.ping_url (PING_URL) failed: {trouble}."
        if ending.exit_code and self._settings.on_failure:
            trouble = _run(self._settings.on_failure, self._environment(ending, text))
            if trouble:
                program = self._settings.on_failure[0]  # its arguments may hold a secret
                yield f"monitoring.on_failure: {program} {trouble}."

    def _ping(self, how: str, body: bytes, most_seconds: float) -> str:
        url = self._settings.ping_url
        if url is None:
            return ""
        path, mark, rest = url.reveal().replace("{command}", self._command).partition("?")
        address = (path.rstrip("/") + how if how else path) + mark + rest
        return _post(address, body, most_seconds)

    def _environment(self, ending: Ending, text: str) -> dict[str, str]:
        kept = {
            name: value
            for name, value in self._environ.items()
            if name not in {*SECRET_VARIABLES, "PGPASSWORD"}
        }
        return kept | {
            "ASSET_SYNC_COMMAND": self._command,
            "ASSET_SYNC_EXIT_CODE": str(ending.exit_code),
            "ASSET_SYNC_RUN_ID": "" if ending.run_id is None else str(ending.run_id),
            "ASSET_SYNC_OUTPUT": text,
        }


def last_words(said: Sequence[str]) -> str:
    """Return the last lines of output, as many as fit into a ping and an environment variable."""
    lines = "\n".join(said).replace("\0", "").splitlines()[-MOST_LINES:]
    return "\n".join(lines).encode(errors="replace")[-MOST_BYTES:].decode(errors="ignore")


def _outcome(ending: Ending) -> str:
    run = "" if ending.run_id is None else f", run {ending.run_id}"
    return f"exit code {ending.exit_code}{run}"


def _post(address: str, body: bytes, most_seconds: float) -> str:
    """Return why the ping failed, "" if it did not; the text never holds the address."""
    # Imported only now: most runs send no ping, and the import takes longer than most runs.
    from asset_sync.provider.deadline import Deadline, Session, reason  # noqa: PLC0415

    deadline = Deadline(most_seconds)
    try:
        with (
            deadline,
            Session({"Accept-Encoding": "identity"}) as session,
            session.post(
                address, data=body, timeout=most_seconds, allow_redirects=False, stream=True
            ) as response,
        ):
            why = _refusal(response.status_code, response.raw.read(_ANSWER_BYTES))
    except Exception as error:  # noqa: BLE001  # a failed ping must not end a run
        why = reason(error, setting="PING_URL")
    return f"it took longer than {most_seconds:.0f} s" if deadline.expired else why


def _refusal(status: int, answer: bytes) -> str:
    """Return why an answer rejects a ping, "" if it accepts it."""
    if not 200 <= status <= 299:  # noqa: PLR2004
        return f"it was answered with HTTP {status}"
    # Healthchecks answers with 200 and this text if it has no such check or is pinged too often.
    known = (b"not found", b"rate limited")
    found = next((word for word in known if answer.startswith(b"OK (" + word)), b"")
    return f'it was answered with "OK ({found.decode()})"' if found else ""


def _run(words: Sequence[str], environ: Mapping[str, str]) -> str:
    """Run a command without a shell, its output on stderr; return why it failed, or ""."""
    try:
        process = subprocess.Popen(  # noqa: S603  # the user's own program
            words, env=environ, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True
        )
    except (OSError, ValueError) as error:
        return f"could not be started ({getattr(error, 'strerror', None) or 'a wrong argument'})"
    try:
        code = process.wait(COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        return f"took longer than {COMMAND_SECONDS:.0f} s and was ended"
    finally:
        if process.poll() is None:  # also on Ctrl-C
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"ended with {code}" if code else ""
