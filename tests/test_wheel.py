"""A built wheel works when it is installed outside of this repository."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the installed wheel; its dependencies come from this environment."""
    base = tmp_path_factory.mktemp("w")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(base), str(ROOT)],
        check=True,
    )
    [wheel] = base.glob("asset_sync-*.whl")
    target = base / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    return target


def run(installed: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(installed)},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_these_tests_use_the_wheel_and_not_this_repository(installed: Path, tmp_path: Path) -> None:
    where = run(installed, tmp_path, "-c", "import asset_sync; print(asset_sync.__file__)")

    assert where.stdout.startswith(str(installed))


def test_the_demo_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    answer = run(installed, tmp_path, "-m", "asset_sync", "demo")

    assert answer.returncode == 0, answer.stderr
    assert "7 of 7 assets fresh" in answer.stdout
    assert (tmp_path / ".local/share/asset-sync/postgres").is_dir()


def test_the_shipped_assets_and_the_migrations_are_in_the_wheel(installed: Path) -> None:
    files = {path.name for path in (installed / "asset_sync").rglob("*")}

    assert {"assets.toml", "py.typed", "0001_platform.sql", "0002_asset_sync.sql"} <= files
