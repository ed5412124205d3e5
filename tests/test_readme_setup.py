"""The lines of the README's set-up work unchanged, for an ordinary user and for root.

Three things differ from a new machine:

- Packages, including pip, come from the environment that runs the tests, as a download takes
  minutes and needs a network. The venv is new; this project is built and installed into it.
- The API is the stand-in, with more calls than the free plan has, so that no run waits.
- The tests replace `crontab`, `systemctl` and `runuser`.
"""

import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from machine import Machine
from servers import binaries, thrown_away

from asset_sync.demo.server import StandIn

ROOT = Path(__file__).parent.parent
_SET_UP = (ROOT / "README.md").read_text().split("\n## Set it up\n")[1].split("\n## ")[0]
AS_USER, AS_ROOT = re.findall(r"```bash\n(.*?)```", _SET_UP, re.DOTALL)

# As python3 does it, but a new venv has the packages of the environment that runs the tests.
_PYTHON = f"""
[ "$2" = venv ] || exec {sys.executable} "$@"
{sys.executable} -m venv --without-pip "$3" || exit
for site in "$3"/lib/python*/site-packages; do
  echo {sysconfig.get_path("purelib")} >"$site"/tests.pth
done
printf '#!/bin/sh\\nexec "%s"/bin/python -m pip "$@"\\n' "$3" >"$3"/bin/pip
chmod +x "$3"/bin/pip
"""
# As the user postgres: with that role on the test's own server.
_RUNUSER = 'shift 3; PGHOST=127.0.0.1 PGUSER=postgres exec "$@"'
_CRONTAB = """
case "$1" in
  -l) cat ~/table 2>/dev/null || { echo "no crontab for you" >&2; exit 1; } ;;
  -) cat >~/table ;;
esac
"""
_SYSTEMCTL = """
case "$1" in
  list-timers) cat ~/timers 2>/dev/null ;;
  cat) cat /etc/systemd/system/"$2" ;;
  enable) echo "$@" >~/timers ;;
esac
"""


class Home(Machine):
    """An empty home, with programs of the test's own on the PATH.

    Its environment has neither a key nor the package's source: the lines are what sets them up.
    """

    def __init__(self, path: Path, api: StandIn) -> None:
        super().__init__(path)
        self.environ = {
            "HOME": str(path),
            "PATH": f"{path}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "POLYGON_BASE_URL": api.base_url,
            "POLYGON_RATE_LIMIT": "50",
            **{f"PIP_{name}": "1" for name in ("NO_INDEX", "NO_DEPS", "QUIET")},
            "PIP_NO_BUILD_ISOLATION": "0",  # which to pip means: none
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        self.program("python3", _PYTHON)
        self.program("crontab", _CRONTAB)
        self.program("systemctl", _SYSTEMCTL)
        self.program("runuser", _RUNUSER)

    def type(self, lines: str, *within: str, **environ: str) -> str:
        """Type the lines, and the key where one is asked for; return what was shown."""
        ran = subprocess.run(
            [*within, "bash", "-eu", "-c", lines],
            cwd=ROOT,
            env=self.environ | environ,
            input="demo-key\n",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout
        return ran.stdout


@pytest.fixture
def user() -> Iterator[Home]:
    with TemporaryDirectory(prefix="as-") as path, StandIn("starter") as api:
        yield Home(Path(path), api)


def unshared(*options: str) -> list[str]:
    """A command that runs another one in new namespaces."""
    command = ["unshare", *options]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], check=False).returncode
    ):
        pytest.skip(f"`{shlex.join(command)}` does not work here")
    return command


def not_as_root() -> list[str]:
    """For root: a namespace in which the user is `nobody` and has no rights of root."""
    if os.geteuid() != 0:
        return []
    return unshared("--user", "--map-user=65534", "--map-group=65534")


def test_the_lines_of_the_readme_work_for_an_ordinary_user(user: Home) -> None:
    within = not_as_root()

    shown = user.type(AS_USER, *within)

    assert "priority: 3 refreshed" in shown
    assert "+# BEGIN asset-sync" in shown
    assert not re.findall(r"^error", shown, re.MULTILINE)
    assert "ok       cron: its jobs read the settings, key and database that this shell" in shown
    key = user.home / ".config" / "asset-sync" / "polygon.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600

    table = (user.home / "table").read_text().splitlines()
    for job in (line.split(None, 5)[5] for line in table if not line.startswith("#")):
        ran = subprocess.run(
            [*within, *("env", "-i", "HOME=/", "PATH=/usr/bin:/bin", "sh", "-c", job)],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode, ran.stdout + ran.stderr) == (0, ""), "cron would mail nothing"
    lists = user.type("~/.local/share/asset-sync/venv/bin/asset-sync assets list", *within)
    assert "never" not in lists, "cron's jobs wrote where this shell looks"


def test_the_lines_for_an_ordinary_user_name_no_path_outside_of_the_home() -> None:
    assert not re.findall(r"(?<![\w~.])/\w", AS_USER)
    assert "sudo" not in AS_USER


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a PostgreSQL that asks for passwords, as a distribution's does."""
    with thrown_away(binaries(150_000)) as server:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            number = int(free.getsockname()[1])
        data = server.directory / "data"
        with (data / "postgresql.conf").open("a") as file:
            file.write(f"listen_addresses = '127.0.0.1'\nport = {number}\n")
        (data / "pg_hba.conf").write_text(
            "host all postgres all trust\nhost all all all scram-sha-256\nlocal all all trust\n"
        )
        server.stop()
        server.start()
        yield number


@pytest.mark.skipif(os.geteuid() != 0, reason="the lines are root's")
def test_the_lines_of_the_readme_work_for_root(user: Home, port: int) -> None:
    """In a mount namespace, where /opt is empty and /etc is a copy."""
    shutil.copytree("/etc", user.home / "etc", symlinks=True, ignore=_others)
    (user.home / "opt").mkdir()
    mounts = "mount --bind ~/etc /etc; mount --bind ~/opt /opt\n"
    units = "cat /etc/systemd/system/asset-sync-queue.*"

    shown = user.type(f"{mounts}{AS_ROOT}{units}", *unshared("--mount"), PGPORT=str(port))

    assert "priority: 3 refreshed" in shown
    assert "ExecStart=/opt/asset-sync/bin/asset-sync sync queue" in shown
    assert not re.findall(r"^error", shown, re.MULTILINE), shown
    assert "ok       systemd: its jobs read the settings, key and database that this" in shown
    etc = user.home / "etc" / "asset-sync"
    for secret in ("polygon.key", "database.url"):
        assert stat.S_IMODE((etc / secret).stat().st_mode) == 0o600
    assert (etc / "assets.toml").stat().st_mode & stat.S_IROTH, "the jobs' own user reads it"
    password = re.findall(r":(\w+)@", (etc / "database.url").read_text())[0]
    assert password not in shown


def _others(_: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "asset-sync" or name.startswith("asset-sync-")]
