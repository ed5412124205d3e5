"""`asset-sync export` writes bars as CSV, Parquet and Arrow: whole files or none."""

import csv
import fcntl
import io
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import polars as pl
import pyarrow.feather
import pyarrow.parquet
import pytest
from machine import Machine, until, version_of, waits_for_a_reader
from test_log import redirected
from test_reading import MONDAY, store

import asset_sync
from asset_sync.database import Connection, query, transaction
from asset_sync.reading import export
from asset_sync.reading.block import BLOCK_BARS
from asset_sync.reading.export import Directory, Format, part_of, whole_file
from asset_sync.store.bars_query import Selection

NOTE = Directory.NOTE


@pytest.fixture
def machine(url: str, db: Connection, tmp_path: Path) -> Iterator[Machine]:
    """A user with two assets that have bars, and a third one that has none."""
    store(db, "EURUSD", 900)
    store(db, "BTCUSD", 30)
    store(db, "EMPTY", 0)
    with Machine(tmp_path, url) as machine:
        yield machine


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# --- CSV on stdout ----------------------------------------------------------------------------


def test_stdout_gets_the_bars_as_csv(machine: Machine, url: str) -> None:
    told = machine.tell("export", "EURUSD", "BTCUSD")

    assert (told.code, told.err) == (0, "")
    bars = asset_sync.read(["EURUSD", "BTCUSD"], database_url=url).to_polars()
    assert told.out.splitlines()[:4] == [
        ",".join(bars.columns),
        "EURUSD,2025-03-03T00:00:00Z,2,3,1,2.5,1.5,1.25,1",
        "EURUSD,2025-03-03T00:05:00Z,3,4,2,3.5,3,2.25,2",
        "EURUSD,2025-03-03T00:10:00Z,4,5,3,4.5,,,",
    ]
    read = pl.read_csv(io.StringIO(told.out), try_parse_dates=True, schema=dict(bars.schema))
    assert read.rows() == bars.rows()


def test_csv_needs_neither_numpy_nor_arro3(machine: Machine) -> None:
    script = "import sys; sys.modules |= {'numpy': None, 'arro3': None}\n"
    script += "from asset_sync.cli import main; main()"

    told = machine.end(machine.python("-c", script, "export", "BTCUSD"))
    assert (told.code, len(rows(told.out))) == (0, 30)

    told = machine.end(machine.python("-c", script, "export", "BTCUSD", "--output", "bars.parquet"))
    assert (told.code, told.out) == (2, "")
    assert "pip install 'asset-sync[read]'" in told.err
    assert not list(machine.home.glob("*parquet*"))


@pytest.mark.parametrize(
    ("bounds", "first", "last"),
    [
        (["--from", "2025-03-04"], "2025-03-04T00:00:00Z", "2025-03-06T02:55:00Z"),
        (["--until", "2025-03-04"], "2025-03-03T00:00:00Z", "2025-03-04T23:55:00Z"),
        (["--until", "2025-03-04T00:00"], "2025-03-03T00:00:00Z", "2025-03-03T23:55:00Z"),
        (
            ["--from", "2025-03-04T12:30+01:00", "--until", "2025-03-04T12:40Z"],
            "2025-03-04T11:30:00Z",
            "2025-03-04T12:35:00Z",
        ),
        (["--until", "20250304T05+05"], "2025-03-03T00:00:00Z", "2025-03-03T23:55:00Z"),
        (["--until", "9999-12-31"], "2025-03-03T00:00:00Z", "2025-03-06T02:55:00Z"),
    ],
)
def test_the_bars_are_those_from_one_moment_until_another(
    machine: Machine, bounds: list[str], first: str, last: str
) -> None:
    found = rows(machine.tell("export", "EURUSD", *bounds).out)

    assert (found[0]["ts"], found[-1]["ts"]) == (first, last)


def test_larger_bars_say_how_many_bars_they_are_made_of(machine: Machine) -> None:
    found = rows(machine.tell("export", "BTCUSD", "--every", "1h").out)

    assert [(one["ts"], one["bars"]) for one in found] == [
        ("2025-03-03T00:00:00Z", "12"),
        ("2025-03-03T01:00:00Z", "12"),
        ("2025-03-03T02:00:00Z", "6"),
    ]


def test_all_assets_are_those_of_the_database_and_one_without_bars_is_named(
    machine: Machine,
) -> None:
    told = machine.tell("export", "--all")

    assert (told.code, told.err) == (0, "No bars there: EMPTY.\n")
    assert {one["symbol"] for one in rows(told.out)} == {"EURUSD", "BTCUSD"}


def test_an_asset_that_was_named_and_has_no_bars_is_a_failure(machine: Machine) -> None:
    told = machine.tell("export", "BTCUSD", "EMPTY")

    assert (told.code, told.err) == (1, "No bars there: EMPTY.\n")
    assert len(rows(told.out)) == 30


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bars.csv", "bars.parquet", "bars.arrow"])
def test_a_file_has_the_bars_of_all_assets_in_the_format_of_its_name(
    machine: Machine, url: str, name: str
) -> None:
    told = machine.tell("export", "EURUSD", "BTCUSD", "--output", name)

    assert told == (0, f"{name}: 930 bars.\n", "")
    bars = asset_sync.read(["EURUSD", "BTCUSD"], database_url=url).to_polars()
    path = machine.home / name
    read = {
        "bars.csv": lambda: pl.read_csv(path, try_parse_dates=True, schema=dict(bars.schema)),
        "bars.parquet": lambda: pl.read_parquet(path),
        "bars.arrow": lambda: pl.read_ipc(path),
    }[name]()
    assert read.rows() == bars.rows()
    assert list(machine.home.glob("bars*")) == [path]


def test_parquet_is_compressed_and_keeps_the_types(machine: Machine, url: str) -> None:
    machine.tell("export", "EURUSD", "--output", "bars.parquet")

    path = machine.home / "bars.parquet"
    file = pyarrow.parquet.ParquetFile(path)
    assert file.metadata.row_group(0).column(2).compression == "ZSTD"
    assert file.schema_arrow == pyarrow.table(asset_sync.read("EURUSD", database_url=url)).schema
    found = duckdb.sql(f"select max(ts), sum(close) from '{path}'")
    assert found is not None
    assert found.fetchall() == [
        (MONDAY + timedelta(minutes=899 * 5), sum(1.5 + n for n in range(1, 901)))
    ]


def test_arrow_of_several_assets_and_blocks_is_one_table(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asset_sync.reading.block.BLOCK_BARS", 90)

    machine.tell("export", "EURUSD", "BTCUSD", "--output", "bars.arrow")

    table = pyarrow.feather.read_table(machine.home / "bars.arrow")
    assert table["symbol"].combine_chunks().to_pylist() == ["EURUSD"] * 900 + ["BTCUSD"] * 30


def test_bounds_in_the_wrong_order_are_named(machine: Machine) -> None:
    told = machine.tell("export", "BTCUSD", "--from", "2025-03-04", "--until", "2025-03-01")

    assert (told.code, told.out) == (2, "")
    assert "--from is not before --until." in told.err


def test_the_format_can_be_named(machine: Machine) -> None:
    assert machine.tell("export", "BTCUSD", "--output", "bars", "--format", "parquet").code == 0
    assert pl.read_parquet(machine.home / "bars").height == 30

    told = machine.tell("export", "BTCUSD", "--output", "bars.txt")
    assert told.code == 2
    assert "ends with none of .csv, .parquet, .arrow" in " ".join(told.err.split())


def test_a_file_is_replaced_only_by_a_whole_one(machine: Machine) -> None:
    path = machine.home / "bars.csv"
    path.write_text("old")

    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(str(1 // 0).encode())
    assert path.read_text() == "old"
    assert list(machine.home.glob("bars*")) == [path]

    with whole_file(path) as file:
        file.write(b"new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("make", [lambda part: part.symlink_to("victim"), os.mkfifo])
def test_a_link_or_a_pipe_in_the_place_of_the_unfinished_file_is_not_followed(
    machine: Machine, make: Callable[[Path], None]
) -> None:
    (machine.home / "victim").write_text("another file")
    part = part_of(machine.home / "bars.csv")
    make(part)

    told = machine.run("export", "BTCUSD", "--output", "bars.csv")

    assert (told.code, told.out) == (2, "")
    assert "bars.csv cannot be written" in told.err
    assert (machine.home / "victim").read_text() == "another file"


@pytest.mark.parametrize("end", ["whole", "interrupted"])
def test_an_export_that_ends_while_another_one_begins_does_not_share_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    path, lock = tmp_path / "bars.csv", fcntl.flock
    first = ExitStack()
    first.enter_context(whole_file(path)).write(b"of the first")

    def end_the_first_before(file: int, how: int) -> None:
        with suppress(KeyboardInterrupt), first.pop_all():
            if end == "interrupted":
                raise KeyboardInterrupt
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", end_the_first_before)
    with whole_file(path) as file:
        file.write(b"of the second")
        before = path.read_text() if path.exists() else None

    assert before == {"whole": "of the first", "interrupted": None}[end]
    assert path.read_text() == "of the second"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_export_deletes_no_file_that_another_one_has_begun(tmp_path: Path) -> None:
    path = tmp_path / "bars.csv"
    with ExitStack() as second, suppress(KeyboardInterrupt), whole_file(path):
        part_of(path).rename(path)  # as at its end, just before the interrupt
        second.enter_context(whole_file(path)).write(b"of the second")
        raise KeyboardInterrupt

    assert path.read_text() == "of the second"


def test_a_file_that_is_replaced_keeps_who_may_read_it(machine: Machine) -> None:
    path = machine.home / "bars.csv"
    path.touch(0o600)

    machine.tell("export", "BTCUSD", "--output", "bars.csv")

    assert len(rows(path.read_text())) == 30
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_exports_do_not_write_one_file_at_once(machine: Machine) -> None:
    with whole_file(machine.home / "bars.csv") as file:
        told = machine.tell("export", "BTCUSD", "--output", "bars.csv")
        file.write(b"of the first")

    assert told.code == 2
    assert told.err == f"asset-sync: Another export is just writing {machine.home}/bars.csv.\n"
    assert (machine.home / "bars.csv").read_text() == "of the first"


def test_a_link_stays_and_the_file_behind_it_is_replaced(machine: Machine) -> None:
    (machine.home / "real.csv").write_text("old")
    (machine.home / "bars.csv").symlink_to("real.csv")

    machine.tell("export", "BTCUSD", "--output", "bars.csv")

    assert (machine.home / "bars.csv").is_symlink()
    assert len(rows((machine.home / "real.csv").read_text())) == 30


# --- a directory ------------------------------------------------------------------------------


def test_a_directory_gets_a_file_for_each_asset_that_has_bars(machine: Machine) -> None:
    told = machine.tell("export", "--all", "--format", "parquet", "--output", "set/")

    assert told == (0, "set: 930 bars in 2 files.\n", "No bars there: EMPTY.\n")
    assert names(machine) == ["BTCUSD.parquet", "EURUSD.parquet", NOTE]
    assert pl.read_parquet(machine.home / "set" / "EURUSD.parquet").height == 900


def names(machine: Machine) -> list[str]:
    return sorted(path.name for path in (machine.home / "set").iterdir())


def test_files_that_answer_the_same_question_are_kept(machine: Machine) -> None:
    question = ["--until", "2025-03-04", "--as-of", f"{datetime.now(UTC)}", "--output", "set/"]
    machine.tell("export", "EURUSD", *question)
    before = version_of(machine.home / "set" / "EURUSD.csv")

    told = machine.tell("export", "EURUSD", "BTCUSD", *question)
    assert told.out == "set: 30 bars in 1 file.\n"
    assert "1 of 2 files answer the same question already and stay" in told.err
    assert version_of(machine.home / "set" / "EURUSD.csv") == before

    told = machine.tell("export", "EURUSD", "BTCUSD", *question, "--every", "1h")
    assert (told.out, told.err) == ("set: 51 bars in 2 files.\n", "")


@pytest.mark.parametrize("until", [[], ["--until", "2025-03-04"]])
def test_a_finished_export_of_what_is_stored_now_is_made_anew(
    machine: Machine, db: Connection, until: list[str]
) -> None:
    machine.tell("export", "BTCUSD", *until, "--output", "set/")
    store(db, "BTCUSD", 5, start=MONDAY + timedelta(days=1))

    told = machine.tell("export", "BTCUSD", *until, "--output", "set/")

    assert told == (0, "set: 35 bars in 1 file.\n", "")


def unfinish(machine: Machine, **changes: object) -> None:
    """Change the note as if the export had been interrupted."""
    note = machine.home / "set" / NOTE
    note.write_text(json.dumps(json.loads(note.read_text()) | {"finished": False} | changes))


def test_files_of_another_database_are_no_answer(machine: Machine, db: Connection) -> None:
    machine.tell("export", "BTCUSD", "--output", "set/")
    unfinish(machine)
    assert "already and stay" in machine.tell("export", "BTCUSD", "--output", "set/").err

    unfinish(machine)
    query(db, "update asset_sync.migrations set applied_at = applied_at - interval '1 s'")
    assert machine.tell("export", "BTCUSD", "--output", "set/") == (
        0,
        "set: 30 bars in 1 file.\n",
        "",
    )


def test_an_export_that_continues_sees_larger_bars_as_they_were_when_it_began(
    machine: Machine, db: Connection
) -> None:
    machine.tell("export", "BTCUSD", "--output", "set/", "--every", "1h")
    unfinish(machine, bytes={}, until="2025-03-03T01:30:00+00:00")

    machine.tell("export", "BTCUSD", "--output", "set/", "--every", "1h")
    found = rows((machine.home / "set" / "BTCUSD.csv").read_text())
    assert [one["bars"] for one in found] == ["12", "6"]

    machine.tell("export", "BTCUSD", "--output", "set/", "--every", "5m", "--complete")
    unfinish(machine, bytes={}, until="2025-03-03T01:32:00+00:00")
    machine.tell("export", "BTCUSD", "--output", "set/", "--every", "5m", "--complete")
    found = rows((machine.home / "set" / "BTCUSD.csv").read_text())
    assert found[-1]["ts"] == "2025-03-03T01:25:00Z", "the next one was not over"


def test_files_of_another_export_are_named(machine: Machine) -> None:
    machine.tell("export", "EURUSD", "BTCUSD", "--every", "1h", "--output", "set/")

    told = machine.tell("export", "BTCUSD", "--every", "1d", "--output", "set/")

    assert told == (
        0,
        "set: 1 bar in 1 file.\n",
        "set also has files of another export: EURUSD.csv.\n",
    )


def test_an_interrupted_export_continues_up_to_the_same_moment(
    machine: Machine, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    written = export.write

    def interrupt_second(*arguments: object) -> int:
        if (machine.home / "set" / "BTCUSD.csv").exists():
            raise KeyboardInterrupt
        return written(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("asset_sync.cli.export.write", interrupt_second)
    told = machine.tell("export", "BTCUSD", "EURUSD", "--output", "set/")
    assert told.code == 130
    assert told.err == (
        "asset-sync: interrupted; whole files stay, and the same command makes the others.\n"
    )
    assert names(machine) == ["BTCUSD.csv", NOTE]

    monkeypatch.undo()
    note = machine.home / "set" / NOTE
    kept = json.loads(note.read_text())
    note.write_text(json.dumps(kept | {"until": (now - timedelta(hours=1)).isoformat()}))
    store(db, "EURUSD", 1, start=now - timedelta(minutes=30))
    told = machine.tell("export", "BTCUSD", "EURUSD", "--output", "set/")
    assert told.out == "set: 900 bars in 1 file.\n", "the bar that came later is not among them"
    assert "1 of 2 files answer the same question already" in told.err
    assert names(machine) == ["BTCUSD.csv", "EURUSD.csv", NOTE]


def test_a_file_that_a_killed_export_left_is_made_again(machine: Machine) -> None:
    (machine.home / "set").mkdir()
    part = part_of(machine.home / "set" / "BTCUSD.csv")
    part.write_text("half of a much longer file" * 1000)

    told = machine.tell("export", "BTCUSD", "--output", "set")

    assert told.err == "set/BTCUSD.csv was interrupted and is made again.\n"
    assert len(rows((machine.home / "set" / "BTCUSD.csv").read_text())) == 30
    assert names(machine) == ["BTCUSD.csv", NOTE]


def test_a_file_that_has_changed_since_is_made_again(machine: Machine) -> None:
    question = ["export", "BTCUSD", "--until", "2025-03-04", "--output", "set/"]
    machine.tell(*question)
    unfinish(machine)
    (machine.home / "set" / "BTCUSD.csv").write_text("changed")

    assert machine.tell(*question).out == "set: 30 bars in 1 file.\n"


@pytest.mark.parametrize("note", ["", "{", "[]", '{"until": 1}'])
def test_a_note_that_cannot_be_read_is_begun_anew(machine: Machine, note: str) -> None:
    (machine.home / "set").mkdir()
    (machine.home / "set" / NOTE).write_text(note)

    assert machine.tell("export", "BTCUSD", "--output", "set/").code == 0


def test_a_note_with_a_moment_that_is_none_is_begun_anew(machine: Machine) -> None:
    machine.tell("export", "BTCUSD", "--output", "set/")
    unfinish(machine, until="yesterday")

    assert machine.tell("export", "BTCUSD", "--output", "set/").out == "set: 30 bars in 1 file.\n"


def test_a_symbol_that_no_file_may_be_named_by_stays_in_its_directory(
    machine: Machine, db: Connection
) -> None:
    store(db, "../BTC/USD", 2)

    machine.tell("export", "../BTC/USD", "--output", "set/")

    assert names(machine) == ["..%2FBTC%2FUSD.csv", NOTE]


# --- what goes wrong --------------------------------------------------------------------------


def test_each_mistake_is_a_sentence(machine: Machine) -> None:
    for arguments, sentence in (
        (["EURUS"], "The database has no asset 'EURUS'. Did you mean EURUSD?"),
        ([], "Name assets, or give --all."),
        (["EURUSD", "--all"], "Name assets, or give --all."),
        (["EURUSD", "--from", "x"], "--from is 'x': write a day as 2025-01-31, or a moment as"),
        (["EURUSD", "--from", ""], "--from is '': write a day as 2025-01-31, or a moment as"),
        (["EURUSD", "--until", ""], "--until is '': write a day as 2025-01-31, or a moment as"),
        (["EURUSD", "--as-of", ""], "--as-of is '': write a day as 2025-01-31, or a moment as"),
        (["EURUSD", "--as-of", "2020-01-01"], "Bars can be read as they were at"),
        (["EURUSD", "--output", ""], "--output is empty: give a file, a directory or - for"),
        (["EURUSD", "--every", "2h"], "'2h' is not one of"),
        (["EURUSD", "--output", "no/bars.csv"], "no/bars.csv cannot be written: No such file or"),
    ):
        told = machine.tell("export", *arguments)
        assert (told.code, told.out) == (2, "")
        assert sentence in " ".join(told.err.replace("│", " ").split())


@pytest.mark.parametrize("form", ["csv", "parquet", "arrow"])
def test_a_full_disk_is_a_sentence(machine: Machine, db: Connection, form: str) -> None:
    store(db, "LONG", 3 * BLOCK_BARS)

    told = machine.run("export", "LONG", "--output", "/dev/full", "--format", form)

    assert told.code == 2
    assert told.err == "asset-sync: /dev/full cannot be written: No space left on device.\n"


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_stdout_that_is_full_or_closed_is_a_sentence(machine: Machine, form: str) -> None:
    for to, why in ((">/dev/full", "No space left on device"), (">&-", "stdout is closed")):
        told = redirected(to, machine, "export", "BTCUSD", "--format", form)

        assert told.stderr == f"asset-sync: The output could not be written: {why}.\n"
        assert (machine.home / "code").read_text() == "2\n"


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_reader_that_has_gone_is_no_news(machine: Machine, db: Connection, form: str) -> None:
    store(db, "LONG", 3 * BLOCK_BARS)
    process = machine.start("export", "LONG", "--format", form)
    assert process.stdout is not None
    process.stdout.close()

    assert machine.end(process).err == ""


@pytest.mark.parametrize("form", list(Format))
def test_a_pipe_that_does_not_block_gets_every_bar(db: Connection, form: Format) -> None:
    # An earlier program may have left stdout so.
    store(db, "LONG", 3 * BLOCK_BARS)
    whole, pieces = io.BytesIO(), list[bytes]()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def read() -> None:
        pieces.extend(iter(lambda: os.read(reader, 1 << 16), b""))

    thread = threading.Thread(target=read)
    with open(writer, "wb", buffering=0) as pipe:  # noqa: PTH123  # a descriptor
        thread.start()
        export.write(db, Selection(("LONG",)), form, pipe, lambda *_: None)
    thread.join()
    os.close(reader)

    export.write(db, Selection(("LONG",)), form, whole, lambda *_: None)
    assert b"".join(pieces) == whole.getvalue()


@pytest.mark.parametrize("form", list(Format))
@pytest.mark.parametrize("to", ["-", "pipe"])
def test_a_signal_ends_an_export_that_nobody_reads(
    machine: Machine, db: Connection, form: Format, to: str
) -> None:
    store(db, "LONG", 3 * BLOCK_BARS)
    os.mkfifo(machine.home / "pipe")
    pipe = os.open(machine.home / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    process = machine.start("export", "LONG", "--format", form, "--output", to)
    assert process.stdout is not None
    until(lambda: waits_for_a_reader(process))
    process.send_signal(signal.SIGTERM)

    assert process.wait(20) == 143
    process.stdout.close()
    assert machine.end(process).err == ""
    os.close(pipe)


@pytest.mark.parametrize("form", [Format.PARQUET, Format.ARROW])
def test_an_interrupted_export_has_ended_its_thread(
    machine: Machine, db: Connection, form: Format
) -> None:
    # Python would end the thread within Rust, which aborts the process for that.
    store(db, "LONG", 3 * BLOCK_BARS)
    threads = threading.active_count()

    def interrupt(_symbol: str, _bars: int) -> None:
        raise KeyboardInterrupt

    with (machine.home / "long").open("wb") as file, pytest.raises(KeyboardInterrupt):
        export.write(db, Selection(("LONG",)), form, file, interrupt)

    until(lambda: threading.active_count() == threads)


def test_a_signal_leaves_no_half_file(
    machine: Machine, db: Connection, connect: Callable[[], Connection]
) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with transaction(connect()) as cursor:
            cursor.execute("lock table market_data.ohlcv_5m")  # so that it does not end before
            process = machine.start("export", "EURUSD", "--output", "long.parquet")
            until(lambda: part_of(machine.home / "long.parquet").exists())
            process.send_signal(number)

            assert machine.end(process).code == code
        assert not list(machine.home.glob("long*")), number


class Interrupting(io.BytesIO):
    """A file whose first write is interrupted by Ctrl-C."""

    def write(self, data: bytes) -> int:  # type: ignore[override]  # all that an export writes
        if not self.tell():
            os.kill(os.getpid(), signal.SIGINT)
        return super().write(data)


@pytest.mark.parametrize("form", list(Format))
def test_ctrl_c_during_a_write_ends_the_export_as_ctrl_c(db: Connection, form: Format) -> None:
    store(db, "EURUSD", 3)

    with pytest.raises(KeyboardInterrupt):
        export.write(db, Selection(["EURUSD"]), form, Interrupting(), lambda *_: None)


def test_parquet_does_not_go_to_a_terminal(machine: Machine) -> None:
    leader, terminal = os.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "asset_sync", "export", "BTCUSD", "--format", "parquet"],
        env=machine.environ,
        cwd=machine.home,
        stdout=terminal,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(terminal)
    os.close(leader)

    assert done.returncode == 2
    assert "parquet is not for a terminal: give --output FILE." in done.stderr


def exported_on_a_terminal(machine: Machine, *symbols: str) -> tuple[str, str]:
    """Export into a file while stderr is a terminal; return what stdout and the terminal got."""
    leader, terminal = os.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "asset_sync", "export", *symbols, "--output", "bars.csv"],
        env=machine.environ | {"TERM": "xterm"},
        cwd=machine.home,
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
        check=False,
    )
    os.close(terminal)
    shown = b""
    with suppress(OSError):  # nobody writes there any more
        while piece := os.read(leader, 1 << 16):
            shown += piece
    os.close(leader)
    assert done.returncode == 0, shown
    return done.stdout, shown.decode()


def test_a_terminal_sees_how_far_it_is_and_nothing_of_it_stays(machine: Machine) -> None:
    out, shown = exported_on_a_terminal(machine, "EURUSD", "BTCUSD")

    assert out == "bars.csv: 930 bars.\n"
    assert "1/2 assets 930 bars  BTCUSD" in shown
    assert shown.endswith("\x1b[2K"), "the line is cleared"


def test_a_terminal_shows_a_symbol_with_brackets(machine: Machine, db: Connection) -> None:
    store(db, "BRK[/]B", 1)

    out, shown = exported_on_a_terminal(machine, "BRK[/]B")

    assert out == "bars.csv: 1 bar.\n"
    assert "1 bar  BRK[/]B" in shown


def test_nothing_of_the_bars_is_in_the_database_afterwards(
    machine: Machine, db: Connection
) -> None:
    machine.tell("export", "--all")

    assert query(db, "select count(*) from market_data.ohlcv_5m") == [(930,)]
