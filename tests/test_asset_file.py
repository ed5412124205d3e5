"""`assets add` and `assets remove` change the settings file and nothing else in it."""

import fcntl
import json
import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from commandline import Told, asset_sync
from conftest import asset as a_queued_asset
from conftest import nobody
from machine import environment, version_of

from asset_sync import queue
from asset_sync.assetfile import edit
from asset_sync.database import Connection
from asset_sync.model import Feed
from asset_sync.settings import SHIPPED_FILE, QueueSettings, load

GOLD = """\
# My own words,   with  odd   spaces.

[provider] # and here
plan = 'free'

[[secondary_assets]]
symbol = "XAUUSD"      # gold
polygon_ticker = "C:XAUUSD"
asset_type = "forex"
"""
INLINE = """\
secondary_assets = [ { symbol = "XAUUSD", polygon_ticker = "C:XAUUSD", asset_type = "forex" } ]
"""
EURO = ("EURCHF", "--type", "forex")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "assets.toml"
    path.write_text(GOLD)
    return path


def add(file: Path, *arguments: str) -> Told:
    """Run `assets add` with this settings file."""
    return asset_sync(
        "assets", "add", *arguments, environ=environment(file.parent), directory=file.parent
    )


def remove(file: Path, *arguments: str) -> Told:
    """Run `assets remove` with this settings file."""
    environ = environment(file.parent) | {"DATABASE_URL": "postgresql://127.0.0.1:1/x"}
    return asset_sync("assets", "remove", *arguments, environ=environ, directory=file.parent)


def symbols(file: Path) -> list[str]:
    return [asset.symbol for asset in load(file, {}).assets]


def litter(file: Path) -> list[str]:
    return [path.name for path in file.parent.iterdir() if path != file]


# --- add ----------------------------------------------------------------------------------------


def test_add_appends_a_block_and_changes_nothing_before_it(file: Path) -> None:
    told = add(file, *EURO, "--name", "Euro / Franc", "--level", "low", "--every", "3600")

    assert told.code == 0
    assert told.out == f"Added EURCHF (C:EURCHF, low) to {file}\n"
    assert file.read_text() == (
        f'{GOLD}\n[[secondary_assets]]\nsymbol = "EURCHF"\npolygon_ticker = "C:EURCHF"\n'
        'asset_type = "forex"\nname = "Euro / Franc"\npriority = "low"\n'
        "update_frequency_seconds = 3600\n"
    )
    assert litter(file) == []


@pytest.mark.parametrize(
    ("before", "between"),
    [
        ("", ""),
        ("\n", ""),
        ("# no line end", "\n\n"),
        ("# one\n", "\n"),
        ("# a blank line\n\n", ""),
        ("# Windows\r\n", "\r\n"),
        ("# Windows\r\n\r\n", ""),
        ("# Windows\r\n# no line end", "\r\n\r\n"),
        ("\ufeff", ""),
        ("\ufeff# BOM\n", "\n"),
        ("queue.max_size = 5", "\n\n"),
    ],
    ids=repr,
)
def test_add_separates_blocks_by_one_blank_line_with_the_files_own_line_endings(
    file: Path, before: str, between: str
) -> None:
    file.write_bytes(before.encode())

    assert add(file, *EURO).code == 0

    after = file.read_bytes().decode()
    assert after.startswith(f"{before}{between}[[secondary_assets]]")
    assert after.count("\n") - after.count("\r\n") == (0 if "\r" in before else after.count("\n"))
    assert symbols(file) == ["EURCHF"]


def test_a_critical_asset_is_added_after_the_other_critical_ones(file: Path) -> None:
    file.write_text(GOLD.replace("secondary", "priority") + "priority = 70\n")

    add(file, *EURO, "--level", "critical")

    assert [asset.symbol for asset in load(file, {}).critical] == ["XAUUSD", "EURCHF"]
    assert tomllib.loads(file.read_text())["priority_assets"][1]["priority"] == 71


@pytest.mark.parametrize(
    ("arguments", "kind", "ticker"),
    [
        (("BTC", "--type", "crypto"), "crypto", "X:BTC"),
        (("BTC", "--ticker", "X:BTCUSD"), "crypto", "X:BTCUSD"),
        (("EURO", "--ticker", "C:EURUSD"), "forex", "C:EURUSD"),
        (("EURO", "--ticker", "C:EURUSD", "--type", "forex"), "forex", "C:EURUSD"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_add_derives_the_type_from_the_ticker_and_the_ticker_from_the_type(
    file: Path, arguments: tuple[str, ...], kind: str, ticker: str
) -> None:
    [added] = json.loads(add(file, *arguments, "--json").out)["added"]

    assert (added["asset_type"], added["ticker"]) == (kind, ticker)
    assert symbols(file) == ["XAUUSD", arguments[0]]


def test_add_says_so_if_another_asset_has_the_ticker_already(file: Path) -> None:
    told = add(file, "GOLD", "--ticker", "C:XAUUSD")

    assert told.code == 0
    assert "XAUUSD has the ticker C:XAUUSD already" in told.err


def test_a_dry_run_prints_the_block_and_writes_nothing(file: Path) -> None:
    before = version_of(file)

    told = add(file, *EURO, "--dry-run")

    assert told.code == 0
    assert tomllib.loads(told.out)["secondary_assets"][0]["symbol"] == "EURCHF"
    assert "nothing was written" in told.err
    assert version_of(file) == before


def test_a_secret_file_that_can_be_read_only_once_is_read_only_once(file: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"the-key")
    os.close(writing)
    environ = environment(file.parent) | {"POLYGON_API_KEY_FILE": f"/dev/fd/{reading}"}

    told = asset_sync("assets", "add", *EURO, environ=environ, directory=file.parent)

    os.close(reading)
    assert told.code == 0
    assert symbols(file) == ["XAUUSD", "EURCHF"]


# --- add: refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("XAUUSD", "--type", "forex"), "XAUUSD is in"),
        (("EURCHF",), "--type forex"),
        (("C:EURCHF",), "assets add EURCHF --ticker C:EURCHF"),
        (("C:EURCHF", "--type", "forex"), "assets add EURCHF --ticker C:EURCHF"),
        (("EURCHF", "--ticker", "EURCHF"), "begins with neither"),
        (("EURCHF", "--ticker", "X:EURCHF", "--type", "forex"), 'such as "C:EURCHF"'),
        (("EURCHF", "--ticker", "C:"), "a forex ticker begins with"),
        (("eurchf", "--type", "forex"), "A-Z"),
        (("", "--type", "forex"), "A-Z"),
        ((*EURO, "--every", "0"), "--every"),
        ((*EURO, "--every", "99999999"), "update_frequency_seconds"),
        ((*EURO, "--name", ""), "name"),
        ((*EURO, "--name", "two\nlines"), "control character"),
        ((*EURO, "--name", "\udcff"), "not UTF-8"),
        ((*EURO, "--level", "urgent"), "--level"),
        (("EURCHF", "--type", "stocks"), "--type"),
    ],
    ids=lambda value: ascii(" ".join(value)) if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["", "dry"])
def test_add_refuses_invalid_assets_with_a_sentence_and_writes_nothing(
    file: Path, arguments: tuple[str, ...], sentence: str, dry: tuple[str, ...]
) -> None:
    told = add(file, *arguments, *dry)

    assert (told.code, told.out) == (2, "")
    assert sentence in told.err
    assert file.read_text() == GOLD
    assert litter(file) == []


@pytest.mark.parametrize("level", ["critical", "low"])
def test_add_refuses_a_file_with_an_inline_array_and_says_so(file: Path, level: str) -> None:
    array = "priority_assets" if level == "critical" else "secondary_assets"
    file.write_text(INLINE.replace("secondary_assets", array))
    before = file.read_text()

    told = add(file, *EURO, "--level", level)

    assert told.code == 2
    assert f"write each of these as a block of its own, under [[{array}]]" in told.err
    assert file.read_text() == before


def test_add_refuses_a_file_of_the_greatest_size_with_a_sentence(file: Path) -> None:
    file.write_text("#" * (1024 * 1024 - 10))

    told = add(file, *EURO)

    assert told.code == 2
    assert "larger than 1024 KiB" in told.err
    assert file.stat().st_size == 1024 * 1024 - 10


def test_add_refuses_a_pipe(file: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, GOLD.encode())
    os.close(writing)

    told = add(file, *EURO, "--config", f"/dev/fd/{reading}")

    os.close(reading)
    assert told.code == 2
    assert "nothing" in told.err


@pytest.mark.parametrize(("file_mode", "directory_mode"), [(0o444, 0o755), (0o644, 0o555)])
def test_add_reports_a_read_only_file_or_directory_in_a_sentence(
    file: Path, file_mode: int, directory_mode: int
) -> None:
    assert add(file, *EURO, "--dry-run").code == 0, "all is imported that nobody may not read"
    with nobody() as directory:
        theirs = directory / "assets.toml"
        theirs.write_text(GOLD)
        theirs.chmod(file_mode)
        directory.chmod(directory_mode)

        told = add(theirs, *EURO)

        assert (told.code, theirs.read_text()) == (2, GOLD)
        directory.chmod(0o700)
    assert told.err.count("\n") == 1
    assert told.err.startswith("asset-sync: assets.toml cannot be changed (Permission denied)")


def test_for_a_symbol_in_lower_case_add_prints_the_correct_command(file: Path) -> None:
    told = add(file, "eurjpy", "--type", "forex")

    words = " ".join(word for word in told.err.replace("│", " ").split() if word)
    assert told.code == 2
    assert "asset-sync assets add EURJPY --type forex" in words
    assert "assets.toml" not in words, "the file is not to blame"


def test_with_quiet_a_success_prints_nothing(file: Path) -> None:
    told = add(file, *EURO, "-q")

    assert (told.code, told.out, told.err) == (0, "", "")
    assert symbols(file) == ["XAUUSD", "EURCHF"]


# --- remove -------------------------------------------------------------------------------------

THREE = """\
# Mine.

# Gold, from my uncle.
[[priority_assets]]
symbol = "XAUUSD"
polygon_ticker = "C:XAUUSD"  # spot
asset_type = "forex"
# update_frequency_seconds = 60

  [[ secondary_assets ]]  # the second
symbol = "ETHUSDT"
polygon_ticker = "X:ETHUSDT"
asset_type = "crypto"


# These two are for the pupils.

[["secondary_assets"]]
symbol = 'GBPUSD'
polygon_ticker = "C:GBPUSD"
asset_type = "forex"
# The end of pounds.
"""


@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "bom"])
@pytest.mark.parametrize(
    ("symbols", "gone"),
    [
        (["XAUUSD"], [(3, 10)]),
        (["ETHUSDT"], [(10, 16)]),
        (["GBPUSD"], [(17, 23)]),
        (["ETHUSDT", "XAUUSD"], [(3, 16)]),
        (["XAUUSD", "ETHUSDT", "GBPUSD"], [(3, 16), (17, 23)]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value[0], str) else "",
)
def test_remove_deletes_a_block_with_its_comments_and_changes_no_other_byte(
    file: Path, symbols: list[str], gone: list[tuple[int, int]], line_end: str, mark: str
) -> None:
    lines = (mark + THREE).replace("\n", line_end).splitlines(keepends=True)
    file.write_bytes("".join(lines).encode())
    for start, end in reversed(gone):
        del lines[start - 1 : end - 1]

    told = remove(file, *symbols)

    assert told.code == 0, told.err
    assert told.out == f"Removed {', '.join(symbols)} from {file}\n"
    assert file.read_bytes().decode() == "".join(lines)
    assert litter(file) == []


@pytest.mark.parametrize("level", ["critical", "low"])
def test_adding_and_removing_an_asset_leaves_the_file_as_it_was(file: Path, level: str) -> None:
    for before in (GOLD, f"{GOLD}\n", SHIPPED_FILE.read_text(), "# Windows\r\n", ""):
        file.write_bytes(before.encode())
        add(file, *EURO, "--level", level)

        assert remove(file, "EURCHF").code == 0
        assert file.read_bytes().decode().rstrip() == before.rstrip()


def test_a_dry_run_of_a_removal_prints_the_block_and_writes_nothing(file: Path) -> None:
    before = version_of(file)

    told = remove(file, "XAUUSD", "--dry-run")

    assert told.code == 0
    assert tomllib.loads(told.out)["secondary_assets"][0]["symbol"] == "XAUUSD"
    assert "nothing was written" in told.err
    assert version_of(file) == before


def test_remove_with_json_lists_what_it_removed(file: Path) -> None:
    told = json.loads(remove(file, "XAUUSD", "--json").out)

    assert [asset["symbol"] for asset in told["removed"]] == ["XAUUSD"]
    assert (told["file"], told["written"], told["copied_from_shipped"]) == (str(file), True, False)
    assert told["left_in_queue"] is None, "the database could not be asked"


def test_remove_says_what_stays_in_the_queue_and_which_command_removes_that(
    file: Path, url: str, db: Connection
) -> None:
    queue.enqueue(db, [queue.Wanted(a_queued_asset("XAUUSD"), Feed.BARS)], QueueSettings())
    environ = environment(file.parent) | {"DATABASE_URL": url}
    arguments = ("assets", "remove", "XAUUSD")

    told = asset_sync(*arguments, environ=environ, directory=file.parent)

    assert told.code == 0
    assert "asset-sync queue remove XAUUSD" in told.err


def test_an_asset_of_the_shipped_file_is_removed_from_a_copy(tmp_path: Path) -> None:
    shipped = SHIPPED_FILE.read_bytes()
    copy = tmp_path / ".config" / "asset-sync" / "assets.toml"

    told = remove(tmp_path / "assets.toml", "GBPUSD")

    assert told.code == 0
    assert f"{copy} is a copy of them" in told.err
    assert SHIPPED_FILE.read_bytes() == shipped
    assert set(symbols(SHIPPED_FILE)) - set(symbols(copy)) == {"GBPUSD"}


@pytest.mark.parametrize(
    ("text", "arguments", "sentence"),
    [
        (GOLD, ("xauusd",), "Did you mean XAUUSD?"),
        (GOLD, ("XAUUSD", "NOSUCH"), "'NOSUCH'"),
        (INLINE, ("XAUUSD",), "remove XAUUSD by hand"),
        (f'{GOLD}name = """\\\n[x]"""\n', ("XAUUSD",), "remove XAUUSD by hand"),
    ],
    ids=["lower case", "one of two", "inline", "a string like a header"],
)
def test_remove_refuses_with_a_sentence_and_writes_nothing(
    file: Path, text: str, arguments: tuple[str, ...], sentence: str
) -> None:
    file.write_text(text)

    told = remove(file, *arguments)

    assert (told.code, told.out) == (2, "")
    assert sentence in " ".join(told.err.replace("│", " ").split())
    assert file.read_text() == text


# --- switched-off assets ------------------------------------------------------------------------


def test_a_switched_off_asset_is_listed_as_off_and_cannot_be_added_again(file: Path) -> None:
    file.write_text(f"{GOLD}enabled = false\n")
    environ = environment(file.parent) | {"DATABASE_URL": "postgresql://127.0.0.1:1/x"}

    shown = asset_sync("assets", "list", environ=environ, directory=file.parent)
    as_json = asset_sync("assets", "list", "--json", environ=environ, directory=file.parent)
    again = add(file, "XAUUSD", "--type", "forex")

    assert shown.out.splitlines()[1].split()[:4] == ["XAUUSD", "C:XAUUSD", "forex", "off"]
    assert [one["enabled"] for one in json.loads(as_json.out)["assets"]] == [False]
    assert again.code == 2
    assert "switched off" in again.err
    assert remove(file, "XAUUSD").code == 0
    assert load(file, {}).named == ()


# --- the file ---------------------------------------------------------------------------------


def test_the_file_keeps_its_mode_and_owner(file: Path) -> None:
    file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(file, 65534, 12345)
    before = file.stat()

    # named by --config, as another account may own it
    assert add(file, *EURO, "--config", str(file)).code == 0

    after = file.stat()
    assert stat.S_IMODE(after.st_mode) == 0o640
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino, "a new file has taken its place, whole"


def test_a_link_to_the_file_stays_a_link(file: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real = file.rename(tmp_path / "real" / "mine.toml")
    file.symlink_to("real/mine.toml")

    told = add(file, *EURO)

    assert told.code == 0
    assert str(real) in told.out
    assert file.is_symlink()
    assert symbols(real) == ["XAUUSD", "EURCHF"]


def test_a_failure_at_the_last_moment_leaves_the_old_file_and_no_other_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    told = add(file, *EURO)

    assert told.code == 2
    assert "No space left on device" in told.err
    assert file.read_text() == GOLD
    assert litter(file) == []


# --- the shipped file -------------------------------------------------------------------------


def test_the_shipped_file_is_copied_and_never_changed(tmp_path: Path) -> None:
    shipped = SHIPPED_FILE.read_bytes()
    copy = tmp_path / ".config" / "asset-sync" / "assets.toml"

    told = add(tmp_path / "assets.toml", *EURO)

    assert told.code == 0
    assert f"{copy} is a copy of them" in told.err
    assert copy.read_bytes().startswith(shipped)
    assert symbols(copy)[-1] == "EURCHF"
    assert SHIPPED_FILE.read_bytes() == shipped
    assert stat.S_IMODE(copy.stat().st_mode) == 0o644, "whoever runs cron may read it"
    assert load(None, environment(tmp_path), cwd=tmp_path).source == copy, "it holds from then on"


def test_the_shipped_file_is_not_changed_through_a_link(tmp_path: Path) -> None:
    shipped = SHIPPED_FILE.read_bytes()
    (tmp_path / "assets.toml").symlink_to(SHIPPED_FILE)  # as in a checkout of the repository
    try:
        told = add(tmp_path / "assets.toml", *EURO)
        assert SHIPPED_FILE.read_bytes() == shipped
    finally:
        SHIPPED_FILE.write_bytes(shipped)

    assert told.code == 2
    assert "put a copy in its place" in told.err


def test_the_copy_goes_to_xdg_config_home(tmp_path: Path) -> None:
    environ = environment(tmp_path) | {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}

    told = asset_sync("assets", "add", *EURO, environ=environ, directory=tmp_path)

    assert told.code == 0
    assert symbols(tmp_path / "xdg" / "asset-sync" / "assets.toml")[-1] == "EURCHF"


def test_a_dry_run_makes_no_copy(tmp_path: Path) -> None:
    told = add(tmp_path / "assets.toml", *EURO, "--dry-run")

    assert told.code == 0
    assert "would be a copy" in told.err
    assert list(tmp_path.iterdir()) == []


def test_without_a_home_add_says_what_to_do(tmp_path: Path) -> None:
    told = asset_sync("assets", "add", *EURO, environ={}, directory=tmp_path)

    assert told.code == 2
    assert "--config" in told.err


# --- at the same time -------------------------------------------------------------------------


def start(file: Path, symbol: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "asset_sync", "assets", "add", symbol, "--type", "forex"],
        env=environment(file.parent),
        cwd=file.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: "subprocess.Popen[str]") -> int:
    process.communicate(timeout=60)
    return process.returncode


@pytest.mark.parametrize("exists", [True, False], ids=["a file", "the shipped file"])
def test_processes_that_add_at_once_lose_nothing(file: Path, exists: bool) -> None:  # noqa: FBT001
    names = [f"PAIR{number}" for number in range(6)]
    if not exists:
        file.unlink()
        file = file.parent / ".config" / "asset-sync" / "assets.toml"
    where = file if exists else file.parents[2] / "assets.toml"

    codes = [end(process) for process in [start(where, name) for name in names]]

    assert codes == [0] * 6
    assert set(names) <= set(symbols(file))


def test_the_second_process_waits_and_reads_what_the_first_wrote(file: Path) -> None:
    directory = os.open(file.parent, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    second = start(file, "SECOND")
    while second.poll() is None and not _waits_for_a_lock(second.pid):
        pass
    assert second.poll() is None, "it waits"
    file.write_text(GOLD.replace("XAUUSD", "FIRST"))
    os.close(directory)

    assert end(second) == 0
    assert symbols(file) == ["FIRST", "SECOND"]


def _waits_for_a_lock(pid: int) -> bool:
    locks = Path("/proc/locks").read_text().splitlines()
    return any("-> FLOCK" in line and f" {pid} " in line for line in locks)


def test_add_adds_all_assets_or_none(file: Path) -> None:
    settings = load(file, {})
    good = load(SHIPPED_FILE, {}).assets[1]

    with pytest.raises(edit.AssetFileError, match="XAUUSD is in"):
        edit.add(settings, [good, settings.assets[0]], {})

    assert file.read_text() == GOLD
