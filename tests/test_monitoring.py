"""Ping service and command are notified of each run, and cannot harm it."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple, TypeAlias

import commandline
import pytest
from commandline import without_times
from conftest import ETHER, TYPO, with_ether
from machine import Machine, until
from test_log import redirected

from asset_sync.database import Connection
from asset_sync.demo.server import StandIn
from asset_sync.ops import hooks
from asset_sync.ops.hooks import MOST_BYTES, MOST_LINES, last_words

UUID = "0d338dcc-a054-11ec-b909-0242ac120002"

Tell: TypeAlias = Callable[..., commandline.Told]


class Ping(NamedTuple):
    path: str
    body: str
    headers: dict[str, str]


@dataclass(slots=True)
class Service:
    """A ping service like healthchecks.io, which can be made to misbehave."""

    url: str = ""
    status: int = 200
    answer: bytes = b"OK"
    location: str = ""
    hangs: bool = False
    dawdles: bool = False
    """Whether it records a start ping only after another ping or after some time."""
    pings: list[Ping] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def paths(self) -> list[str]:
        return [ping.path for ping in self.pings]


@contextmanager
def serve() -> Iterator[Service]:
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if service.dawdles and self.path.endswith("/start"):
                service.released.wait(0.5)
            service.pings.append(Ping(self.path, body.decode(), dict(self.headers)))
            if service.dawdles:
                service.released.set()
            if service.hangs:
                service.released.wait(30)
            self.send_response(service.status)
            if service.location:
                self.send_header("Location", service.location)
            self.send_header("Content-Length", str(len(service.answer)))
            self.end_headers()
            self.wfile.write(service.answer)

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(OSError):  # the client has closed the connection
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    service.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield service
    finally:
        service.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def service() -> Iterator[Service]:
    with serve() as service:
        yield service


@pytest.fixture
def api() -> Iterator[StandIn]:
    with StandIn("free", calls=20, key="zq7key") as server:
        yield server


@pytest.fixture
def machine(
    url: str, db: Connection, api: StandIn, service: Service, tmp_path: Path
) -> Iterator[Machine]:
    with with_ether(url, db, api, tmp_path) as machine:
        machine.environ["PING_URL"] = f"{service.url}/{UUID}"
        machine.secrets = (UUID,)
        yield machine


@pytest.fixture
def tell(machine: Machine) -> Tell:
    return machine.tell


# --- pings --------------------------------------------------------------------------------------


def test_a_run_pings_its_start_and_its_success(tell: Tell, service: Service) -> None:
    assert tell("sync", "queue").code == 0

    assert service.paths == [f"/{UUID}/start", f"/{UUID}"]
    first, *_, last = service.pings[1].body.splitlines()
    assert first == f"asset-sync sync queue on {socket.gethostname()}: exit code 0, run 1"
    assert last.startswith("queue: 1 refreshed, 1 call, ")
    assert "\nETHUSDT: " in service.pings[1].body


def test_a_failure_is_pinged_with_its_exit_code_and_last_lines(
    tell: Tell, service: Service, tmp_path: Path
) -> None:
    (tmp_path / "assets.toml").write_text(TYPO)

    assert tell("-q", "sync", "queue").code == 1

    assert service.paths == [f"/{UUID}/start", f"/{UUID}/1"]
    assert "exit code 1, run 1\n" in service.pings[1].body
    assert "X:TYPO" in service.pings[1].body


@pytest.mark.parametrize(
    ("changes", "code", "word"),
    [
        ({"POLYGON_API_KEY": ""}, 2, "POLYGON_API_KEY is not set"),
        ({"DATABASE_URL": "postgresql://me:zq7pass@127.0.0.1:1/x"}, 3, "nothing listens"),
        ({"POLYGON_API_KEY": "zq7other"}, 4, "refuses the key"),
    ],
)
def test_an_error_that_stops_a_run_is_pinged_as_a_failure(
    tell: Tell, service: Service, changes: dict[str, str], code: int, word: str
) -> None:
    assert tell("sync", "queue", **changes).code == code

    assert service.paths == [f"/{UUID}/start", f"/{UUID}/{code}"]
    assert word in service.pings[1].body
    assert "zq7" not in service.pings[1].body


def test_a_bug_is_pinged_as_a_failure(machine: Machine, service: Service) -> None:
    script = (
        "from asset_sync import queue\n"
        "def broken(*what, **more): raise RuntimeError('sesame')\n"
        "queue.claim = broken\n"
        "from asset_sync.cli import main; main()"
    )
    ended = machine.end(machine.python("-c", script, "sync", "queue"))

    assert ended.code == 70
    assert service.paths[-1] == f"/{UUID}/70"
    assert "this is a bug" in service.pings[-1].body
    assert "sesame" not in service.pings[-1].body


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_is_pinged_as_a_failure(
    machine: Machine,
    service: Service,
    api: StandIn,
    number: signal.Signals,
    code: int,
) -> None:
    api.set_faults(["stall"])
    process = machine.start("sync", "queue")
    until(lambda: api.log)
    process.send_signal(number)

    assert machine.end(process).code == code
    assert service.paths == [f"/{UUID}/start", f"/{UUID}/{code}"]


def test_a_run_whose_report_cannot_be_written_is_pinged_too(
    machine: Machine, service: Service
) -> None:
    read, write = os.pipe()
    os.close(read)
    subprocess.run(
        [sys.executable, "-m", "asset_sync", "sync", "queue"],
        env=machine.environ,
        cwd=machine.home,
        stdout=write,
        check=False,
        timeout=60,
    )
    os.close(write)

    assert service.paths == [f"/{UUID}/start", f"/{UUID}"]


def test_two_jobs_can_share_one_url_and_its_query_is_kept(
    tell: Tell, service: Service, tmp_path: Path
) -> None:
    toml = f'monitoring.ping_url = "{service.url}/key/sync-{{command}}/?create=1&c={{command}}"\n'
    (tmp_path / "assets.toml").write_text(toml + TYPO)

    tell("sync", "priority", PING_URL="")
    tell("sync", "queue", PING_URL="")

    assert service.paths == [
        "/key/sync-priority/start?create=1&c=priority",
        "/key/sync-priority/?create=1&c=priority",
        "/key/sync-queue/start?create=1&c=queue",
        "/key/sync-queue/1?create=1&c=queue",
    ]


def test_neither_the_key_nor_a_password_goes_to_the_ping_service(
    tell: Tell, service: Service, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login zq7 password zq7\n")
    (tmp_path / ".netrc").chmod(0o600)

    tell("-v", "sync", "queue")

    assert len(service.pings) == 2
    for ping in service.pings:
        assert "authorization" not in {name.lower() for name in ping.headers}
        assert "zq7" not in repr(ping)


@pytest.mark.parametrize(
    "command",
    [("sync", "queue", "--dry-run"), ("queue", "status"), ("health",), ("doctor", "--offline")],
    ids=" ".join,
)
def test_only_runs_ping(tell: Tell, service: Service, command: tuple[str, ...]) -> None:
    tell(*command)

    assert service.pings == []


# --- a ping service that misbehaves -------------------------------------------------------------


def only_warning(told: commandline.Told) -> str:
    """Return the only line that a successful quiet run printed."""
    assert (told.code, told.out) == (0, "")
    [line] = without_times(told.err).splitlines()
    start = "run 1: warning: The ping to monitoring.ping_url (PING_URL) failed: "
    assert line.startswith(start)
    return line.removeprefix(start)


def test_a_service_that_is_down_causes_one_warning(tell: Tell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    told = tell("-q", "sync", "queue", PING_URL=f"http://127.0.0.1:{port}/{UUID}")

    assert "Connection refused" in only_warning(told)


def test_an_invalid_address_causes_one_warning_that_names_its_setting(tell: Tell) -> None:
    told = tell("-q", "sync", "queue", PING_URL=f"http://127.0.0.1:99999/{UUID}")

    assert only_warning(told) == "its address is not a URL, check PING_URL."


def test_a_ping_to_a_service_that_hangs_ends_after_its_time_limit(
    tell: Tell, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "START_SECONDS", 0.1)
    monkeypatch.setattr(hooks, "END_SECONDS", 1.0)
    service.hangs = True

    told = tell("-q", "sync", "queue")

    assert only_warning(told) == "it took longer than 1 s."
    assert service.paths == [f"/{UUID}/start", f"/{UUID}"]


@pytest.mark.parametrize("status", [400, 404, 409, 500])
def test_a_service_that_refuses_causes_one_warning(
    tell: Tell, service: Service, status: int
) -> None:
    service.status = status

    assert only_warning(tell("-q", "sync", "queue")) == f"it was answered with HTTP {status}."


@pytest.mark.parametrize("word", ["not found", "rate limited"])
def test_a_refusal_that_looks_like_a_success_causes_one_warning(
    tell: Tell, service: Service, word: str
) -> None:
    service.answer = f"OK ({word})".encode()

    assert only_warning(tell("-q", "sync", "queue")) == f'it was answered with "OK ({word})".'


def test_no_redirect_is_followed(tell: Tell, service: Service) -> None:
    with serve() as elsewhere:
        service.status, service.location = 307, elsewhere.url

        warning = only_warning(tell("-q", "sync", "queue"))

        assert elsewhere.pings == []
    assert warning == "it was answered with HTTP 307."


def test_a_lost_start_ping_causes_no_warning(
    tell: Tell, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "START_SECONDS", 0.0)

    told = tell("-q", "sync", "queue")

    assert (told.code, told.err) == (0, "")
    assert service.paths[-1] == f"/{UUID}"


def test_the_end_is_not_pinged_before_the_start(tell: Tell, service: Service) -> None:
    service.dawdles = True

    tell("sync", "queue")

    assert service.paths == [f"/{UUID}/start", f"/{UUID}"]


def test_a_warning_is_a_line_of_json_too(tell: Tell, service: Service) -> None:
    service.status = 404

    *_, ended, warned = map(
        json.loads, tell("sync", "queue", "--log-format", "json").err.splitlines()
    )

    assert (ended["event"], ended["exit_code"]) == ("ended", 0)
    assert (warned["event"], warned["level"]) == ("warned", "warning")


# --- on_failure ---------------------------------------------------------------------------------


@pytest.fixture
def failing(tmp_path: Path) -> Callable[..., None]:
    """Write settings with which a run fails and then starts a command."""

    def write(*words: str, toml: str = TYPO) -> None:
        listed = json.dumps(list(words))
        (tmp_path / "assets.toml").write_text(f"monitoring.on_failure = {listed}\n{toml}")

    return write


def test_a_failure_starts_the_command_without_the_secrets_in_its_environment(
    tell: Tell, failing: Callable[..., None], tmp_path: Path
) -> None:
    failing("sh", "-c", 'env -0 > told; cat >> told; echo "$1" > argument', "sh", "an argument")

    told = tell(
        "-q", "sync", "queue", PGPASSWORD="zq7", REDIS_URL="redis://:zq7@127.0.0.1:1", KEPT="yes"
    )

    assert told.code == 1
    assert (tmp_path / "argument").read_text() == "an argument\n"
    text = (tmp_path / "told").read_text()
    given = dict(line.split("=", 1) for line in text.split("\0") if line)
    assert given["ASSET_SYNC_COMMAND"] == "queue"
    assert given["ASSET_SYNC_EXIT_CODE"] == "1"
    assert given["ASSET_SYNC_RUN_ID"] == "1"
    assert "X:TYPO" in given["ASSET_SYNC_OUTPUT"]
    assert given["KEPT"] == "yes"
    assert "zq7" not in text
    assert UUID not in text
    assert not {"POLYGON_API_KEY", "DATABASE_URL", "REDIS_URL", "PING_URL", "PGPASSWORD"} & set(
        given
    )


def test_a_database_that_is_down_starts_the_command_without_a_run(
    tell: Tell, failing: Callable[..., None], tmp_path: Path
) -> None:
    failing("sh", "-c", 'echo "$ASSET_SYNC_EXIT_CODE [$ASSET_SYNC_RUN_ID]" > told')

    tell("sync", "queue", DATABASE_URL="postgresql://127.0.0.1:1/x")

    assert (tmp_path / "told").read_text() == "3 []\n"


def test_a_success_does_not_start_the_command(
    tell: Tell, failing: Callable[..., None], tmp_path: Path
) -> None:
    failing("touch", "started", toml=ETHER)

    assert tell("sync", "queue").code == 0
    assert not (tmp_path / "started").exists()


def test_the_output_of_the_command_goes_to_stderr(
    machine: Machine, failing: Callable[..., None]
) -> None:
    failing("sh", "-c", "echo one; echo two >&2")

    code, out, err = machine.run("-q", "sync", "queue")

    assert (code, out) == (1, "")
    assert err.splitlines()[1:] == ["one", "two"]


def test_the_command_can_write_to_stderr_even_if_the_run_has_none(
    machine: Machine, failing: Callable[..., None], tmp_path: Path
) -> None:
    failing("sh", "-ec", "echo two >&2; touch done")

    redirected("2>&-", machine, "-q", "sync", "queue")

    assert (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("words", "warning"),
    [
        (("no-such-program", "zq7"), "no-such-program could not be started (No such file or "),
        (("/", "zq7"), "/ could not be started (Permission denied)"),
        (("sh", "-c", "exit 7 # zq7"), "sh ended with 7."),
    ],
)
def test_a_command_that_cannot_be_started_or_fails_causes_a_warning(
    tell: Tell, failing: Callable[..., None], words: tuple[str, ...], warning: str
) -> None:
    failing(*words)

    told = tell("-q", "sync", "queue")

    assert told.code == 1
    assert f"warning: monitoring.on_failure: {warning}" in told.err
    assert len(told.err.splitlines()) == 2
    assert "zq7" not in told.err


def test_a_command_that_hangs_is_ended_with_all_its_processes(
    tell: Tell,
    failing: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(hooks, "COMMAND_SECONDS", 1.0)
    os.mkfifo(tmp_path / "held")
    # The end of the file comes when neither the shell nor its child has it open any more.
    reader = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    failing("sh", "-c", "exec > held; echo begun; (sleep 20; echo ended by itself) & wait")

    told = tell("-q", "sync", "queue")

    text = b""
    while select.select([reader], [], [], 10)[0] and (piece := os.read(reader, 100)):
        text += piece
    nobody_holds_it = bool(select.select([reader], [], [], 0)[0])
    os.close(reader)
    assert (text, nobody_holds_it) == (b"begun\n", True)
    assert told.code == 1
    assert "sh took longer than 1 s and was ended." in told.err


# --- cost ---------------------------------------------------------------------------------------


def test_a_run_without_hooks_imports_no_slow_module(machine: Machine, tell: Tell) -> None:
    tell("sync", "queue")
    script = (
        "import atexit, sys\n"
        "slow = {'asset_sync.provider.polygon.client', 'pyrate_limiter', 'requests', 'rich'}\n"
        "before = set(sys.modules)\n"
        "atexit.register(lambda: print(*slow & (set(sys.modules) - before)))\n"
        "from asset_sync.cli import main; main()"
    )
    code, out, err = machine.end(machine.python("-c", script, "-q", "sync", "queue", PING_URL=""))

    assert (code, out.strip(), err) == (0, "", "")


@pytest.mark.parametrize(
    "said",
    [
        ["word " * 10_000],
        [f"line {number}" for number in range(1000)],
        ["\n".join(f"line {number}" for number in range(1000))],
        ["€" * 9_999, "\ud800\0 odd"],
    ],
    ids=["long", "many", "in one", "odd"],
)
def test_the_last_lines_are_cut_to_fit_a_ping_and_a_variable(said: list[str]) -> None:
    words = last_words(said)

    assert 0 < len(words.encode()) <= MOST_BYTES
    assert len(words.splitlines()) <= MOST_LINES
    assert words[-5:] == "".join(said).replace("\0", "").replace("\ud800", "?")[-5:]
