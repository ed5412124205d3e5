"""A package imports only packages below it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asset_sync

PACKAGE = Path(asset_sync.__file__).parent
LAYERS = (
    {"__main__"},
    {"cli"},
    {"demo", "ops"},
    {"assetfile", "schedule"},
    {"reading", "sync"},
    {"queue", "store"},
    {"budget"},
    {"database"},
    {"settings"},
    {"bus", "provider"},
    {"hours", "model", "secret", "starter"},
    {"spans"},
    {"clock", "errors"},
    {"__init__"},
)


def imports_of(file: Path) -> Iterator[str]:
    """Give the first part of each module of ours that the file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "asset_sync":
            for alias in node.names:
                is_module = (PACKAGE / alias.name).is_dir() or (
                    PACKAGE / f"{alias.name}.py"
                ).exists()
                yield alias.name if is_module else "__init__"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("asset_sync."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("asset_sync"):
                    yield [*alias.name.split("."), "__init__"][1]


def test_each_package_imports_only_packages_below_it() -> None:
    height = {name: -number for number, names in enumerate(LAYERS) for name in names}
    files = list(PACKAGE.rglob("*.py"))
    assert len(files) > 60
    for file in files:
        if file == PACKAGE / "__init__.py":  # see the next test
            continue
        own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for other in imports_of(file):
            assert other == own or height[other] < height[own], f"{file} imports {other}"


def test_the_package_itself_only_passes_on_what_other_programs_may_use() -> None:
    assert set(imports_of(PACKAGE / "__init__.py")) == {"reading"}
    for name in asset_sync.__all__:
        assert getattr(asset_sync, name) is not None


def test_importing_the_package_imports_nothing_else_until_a_name_is_used() -> None:
    script = """
import sys
before = set(sys.modules)
import asset_sync
assert set(sys.modules) - before == {"asset_sync"}, set(sys.modules) - before
asset_sync.read
assert "psycopg2" in sys.modules
assert "numpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=PACKAGE.parent)


def test_every_package_has_a_layer() -> None:
    there = {path.stem for path in PACKAGE.glob("*.py")}
    there |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert there == set().union(*LAYERS)


def test_only_the_bus_knows_which_one_it_is() -> None:
    naming = [file.name for file in PACKAGE.rglob("*.py") if "redis" in file.read_text().lower()]
    assert naming == ["bus.py"]
