"""Questions to the provider's reference keep the limit and make no needless call."""

import importlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pytest
from commandline import Told, asset_sync
from conftest import MakeSettings, ShiftingClock, asset, in_line, nobody
from machine import Machine

from asset_sync import queue
from asset_sync.assetfile import reference
from asset_sync.assetfile.reference import Checked, TickerCheck, TickerStatus
from asset_sync.budget import slots
from asset_sync.database import Connection, query
from asset_sync.demo.server import StandIn
from asset_sync.model import Asset, AssetType, Feed, Level
from asset_sync.provider.answers import Listed
from asset_sync.provider.errors import KeyRefused, RateLimited, Unavailable, Unreadable
from asset_sync.provider.protocol import Provider
from asset_sync.settings import SHIPPED_FILE, QueueSettings, Settings, SettingsError, load
from asset_sync.sync.ask import NoCallLeftError, Questions
from asset_sync.sync.progress import Progress, Waiting

FOREX = ["C:EURUSD", "C:GBPUSD", "C:USDJPY", "C:XAGUSD", "C:XAUUSD"]
Ask: TypeAlias = Callable[..., Questions]


@pytest.fixture
def settings(api: StandIn, make_settings: MakeSettings) -> Settings:
    return make_settings(api)


@pytest.fixture
def told() -> list[Progress]:
    return []


@pytest.fixture
def ask(db: Connection, settings: Settings, clock: ShiftingClock, told: list[Progress]) -> Ask:
    def ask(within_seconds: float = 600) -> Questions:
        return Questions(db, settings, within_seconds=within_seconds, tell=told.append, clock=clock)

    return ask


def euro(api: Provider) -> bool:
    return api.ticker_exists("C:EURUSD")


def held(db: Connection) -> int:
    """Return the number of slots in use."""
    [(number,)] = query(db, "select count(*) from asset_sync.slots where token is not null")
    return int(number)


# --- questions and the limit ------------------------------------------------------------------


def test_questions_keep_the_limit_and_report_their_waits(
    api: StandIn, ask: Ask, told: list[Progress]
) -> None:
    with ask() as questions:
        assert [questions.ask(euro) for _ in range(12)] == [True] * 12

    assert len(api.log) == 12
    assert (api.refused, api.most_in_a_window()) == (0, 5)
    assert {type(one) for one in told} == {Waiting}


def test_a_question_makes_no_call_if_no_slot_is_free_in_time(api: StandIn, ask: Ask) -> None:
    with ask(within_seconds=0) as questions:
        for _ in range(5):
            questions.ask(euro)
        with pytest.raises(NoCallLeftError) as caught:
            questions.ask(euro)

    assert 0 < caught.value.seconds <= 60
    assert len(api.log) == 5


def test_questions_leave_the_reserved_slots_to_the_next_priority_run(
    db: Connection, api: StandIn, ask: Ask
) -> None:
    with ask(within_seconds=0) as questions:
        slots.reserve(db, calls=3, in_seconds=30)
        for _ in range(2):
            questions.ask(euro)
        with pytest.raises(NoCallLeftError):
            questions.ask(euro)

    assert len(api.log) == 2


def test_a_question_waits_after_a_429_and_so_does_every_run(
    db: Connection, api: StandIn, settings: Settings, ask: Ask, told: list[Progress]
) -> None:
    api.set_faults(["rate-limit:1"])

    with ask() as questions:
        assert questions.ask(euro)
    assert [arrival.status for arrival in api.log] == [429, 200]
    assert "refused C:EURUSD" in str(told[0])

    api.set_faults(["rate-limit"])
    with ask(within_seconds=0) as questions, pytest.raises(RateLimited):
        questions.ask(euro)
    assert slots.budget(db, slots.rate_of(settings)).blocked_seconds > 50
    with ask() as questions, pytest.raises(RateLimited):
        questions.ask(euro)
    assert len(api.log) == 2 + 1 + 3, "it gives up after three refusals"


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_the_slot_of_a_question_is_stamped_however_the_question_ends(
    db: Connection, api: StandIn, settings: Settings, ask: Ask, end: type[BaseException]
) -> None:
    def interrupted(api: Provider) -> bool:
        euro(api)
        raise end

    with ask() as questions, pytest.raises(end):
        questions.ask(interrupted)

    assert held(db) == 0
    assert slots.budget(db, slots.rate_of(settings)).free == 4, "the call counts"


def test_a_question_gives_back_a_slot_that_became_too_old(
    db: Connection, api: StandIn, settings: Settings
) -> None:
    """The host may have been suspended, so that the slot will soon be free for others."""

    class Sleeper(ShiftingClock):
        asleep = iter([0, 0, 20, 20, 20, 20, 20, 20, 20])

        def monotonic(self) -> float:
            return next(self.asleep)

    def time_for_it(api: Provider) -> float:
        euro(api)
        return api.call_timeout_seconds

    with Questions(db, settings, within_seconds=600, clock=Sleeper(db)) as questions:
        assert questions.ask(time_for_it) == 30

    assert len(api.log) == 1
    assert slots.budget(db, slots.rate_of(settings)).free == 4


def test_without_a_key_no_question_can_be_asked(db: Connection, url: str) -> None:
    settings = load(SHIPPED_FILE, {"DATABASE_URL": url})

    with pytest.raises(SettingsError, match="POLYGON_API_KEY is not set"):
        Questions(db, settings, within_seconds=0)


# --- the list ---------------------------------------------------------------------------------


def tickers(questions: Questions, search: str = "") -> list[list[str]]:
    found = reference.pages(questions, AssetType.FOREX, search)
    return [[one.ticker for one in page] for page in found]


def test_a_market_that_fits_on_a_page_takes_one_call(api: StandIn, ask: Ask) -> None:
    with ask() as questions:
        assert tickers(questions) == [FOREX]
        assert tickers(questions, "yen") == [["C:USDJPY"]]
        assert tickers(questions, "zloty") == [[]]

    assert len(api.log) == 3


def test_each_page_takes_one_call_and_the_last_page_ends_the_list(api: StandIn, ask: Ask) -> None:
    api.set_faults(["short-pages"])

    with ask() as questions:
        assert tickers(questions) == [FOREX[:2], FOREX[2:4], FOREX[4:]]

    assert len(api.log) == 3


@pytest.mark.parametrize("fault", ["endless-next-url", "foreign-next-url"])
def test_a_page_without_new_tickers_ends_the_list_and_every_page_is_asked_for_at_our_address(
    api: StandIn, ask: Ask, fault: str
) -> None:
    api.set_faults([fault])

    with ask() as questions:
        assert tickers(questions) == [FOREX, []]

    assert [arrival.key_ok for arrival in api.log] == [True, True]


def test_a_list_with_endless_new_tickers_has_an_end(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, api: StandIn
) -> None:
    api.set_faults(["short-pages"])
    monkeypatch.setattr(reference, "_MOST_PAGES", 2)

    with ask() as questions:
        assert tickers(questions) == [FOREX[:2], FOREX[2:4]]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("key-revoked", KeyRefused),
        ("wrong-shape", Unreadable),
        ("html", Unavailable),
        ("truncated", Unavailable),
        ("redirect", Unavailable),
    ],
)
def test_an_answer_that_is_no_list_is_a_provider_error(
    api: StandIn, ask: Ask, fault: str, error: type[Exception]
) -> None:
    api.set_faults([fault])

    with ask() as questions, pytest.raises(error):
        tickers(questions)


def find(*found: str, there: tuple[Asset, ...] = (), most: int | None = None) -> reference.Found:
    page = tuple(Listed(ticker, f"name of {ticker}") for ticker in found)
    return reference.find(
        [page], AssetType.FOREX, there, level=Level.HIGH, every_seconds=60, most=most
    )


def test_a_ticker_becomes_an_asset_of_the_same_name() -> None:
    assert find("C:EURUSD").new == (
        Asset("EURUSD", "C:EURUSD", AssetType.FOREX, "name of C:EURUSD", Level.HIGH, 0, 60),
    )


def test_find_reports_existing_assets_and_leaves_out_clashes_and_invalid_symbols() -> None:
    gold = Asset("GOLD", "C:XAUUSD", AssetType.FOREX, "Gold", Level.LOW, 0, 60)
    found = find(
        *("C:EURUSD", "C:XAUUSD", "C:GOLD", "C:eurchf", "C:", "X:BTCUSD", "C:A B", "C:GBPUSD"),
        there=(gold,),
    )

    assert [one.symbol for one in found.new] == ["EURUSD", "GBPUSD"]
    assert found.there == (gold,)
    assert [skipped.ticker for skipped in found.skipped] == [
        *("C:GOLD", "C:eurchf", "C:", "X:BTCUSD", "C:A B"),
    ]
    assert "GOLD is C:XAUUSD in the settings" in found.skipped[0].why


def test_no_further_page_is_asked_for_once_there_are_enough_tickers(api: StandIn, ask: Ask) -> None:
    api.set_faults(["short-pages"])
    euro = asset("EURUSD")

    with ask() as questions:
        found = reference.find(
            reference.pages(questions, AssetType.FOREX),
            AssetType.FOREX,
            [euro],
            level=Level.LOW,
            every_seconds=60,
            most=2,
        )

    assert [one.symbol for one in found.new] == ["GBPUSD", "USDJPY"]
    assert len(api.log) == 2, "what is there already does not count"


# --- whether tickers exist --------------------------------------------------------------------


def verdicts(checked: Iterator[Checked]) -> list[tuple[str, str]]:
    return [(one.asset.symbol, one.verdict.value) for one in checked]


def pairs(*symbols: str) -> list[Asset]:
    return [asset(symbol) for symbol in symbols]


def test_a_check_takes_one_call_for_each_ticker(api: StandIn, ask: Ask, settings: Settings) -> None:
    with ask() as questions:
        found = verdicts(TickerCheck(questions).each(settings.assets))

    assert {verdict for _, verdict in found} == {"exists"}
    assert reference.calls_to_check(settings.assets) == len(api.log) == 7
    assert api.calls_by_ticker() == {one.ticker: 1 for one in settings.assets}


def test_the_suggestion_for_an_unknown_ticker_is_the_nearest_of_its_market(
    api: StandIn, ask: Ask
) -> None:
    typo, far = asset("EURUDS"), asset("QQQQQQ")
    with ask() as questions:
        check = TickerCheck(questions)
        assert verdicts(check.each([typo, far])) == [("EURUDS", "unknown"), ("QQQQQQ", "unknown")]
        assert check.calls_to_suggest([typo, far]) == 2
        assert check.nearest(typo) == "C:EURUSD"
        assert check.nearest(far) is None
        assert check.calls_to_suggest([typo, far]) == 0, "the list is there now"

    assert len(api.log) == 3


MANY = [Asset(f"A{n}", FOREX[n % 5], AssetType.FOREX, "", Level.LOW, 0, 60) for n in range(10)]


def test_many_assets_of_a_market_are_checked_by_the_list_and_only_missing_ones_by_a_call(
    api: StandIn, ask: Ask
) -> None:
    assets = [*MANY, asset("EURUDS")]
    with ask() as questions:
        check = TickerCheck(questions)
        found = verdicts(check.each(assets))
        assert check.nearest(assets[-1]) == "C:EURUSD"

    assert found == [*((one.symbol, "exists") for one in MANY), ("EURUDS", "unknown")]
    assert reference.calls_to_check(assets) == 2, "forex has two pages, as a rule"
    assert [arrival.ticker for arrival in api.log] == [None, "C:EURUDS"]


def test_if_the_list_is_unreadable_each_ticker_is_asked_for(api: StandIn, ask: Ask) -> None:
    api.set_faults(["wrong-shape:1"])
    with ask() as questions:
        found = verdicts(TickerCheck(questions).each([*MANY, asset("EURUSD")]))

    assert {verdict for _, verdict in found} == {"exists"}
    assert len(api.log) == 12


def test_after_a_refused_key_no_further_call_is_made(api: StandIn, ask: Ask) -> None:
    api.set_faults(["key-revoked"])
    with ask() as questions:
        found = list(TickerCheck(questions).each(pairs("EURUSD", "GBPUSD", "USDJPY")))

    assert [one.verdict for one in found] == [
        *(TickerStatus.REFUSED, TickerStatus.UNANSWERED, TickerStatus.UNANSWERED),
    ]
    assert "POLYGON_API_KEY" in str(found[0].why)
    assert "Not asked" in str(found[1].why)
    assert len(api.log) == 1


def test_a_check_gives_up_after_three_calls_without_an_answer(api: StandIn, ask: Ask) -> None:
    api.set_faults(["server-error"])
    with ask() as questions:
        found = list(TickerCheck(questions).each(pairs(*"ABCDEF")))

    assert {one.verdict for one in found} == {TickerStatus.UNANSWERED}
    assert "tried again" not in str(found[0].why), "nobody does"
    assert len(api.log) == 3


def test_a_check_continues_after_an_answer_in_between(api: StandIn, ask: Ask) -> None:
    api.set_faults(["server-error:2", "wrong-shape@C:USDJPY", "server-error@C:XAGUSD"])
    silver = "XAGUSD"
    with ask() as questions:
        found = verdicts(
            TickerCheck(questions).each(
                pairs("A", "B", "USDJPY", silver, "C", silver, silver, "EURUSD")
            )
        )

    assert [verdict for _, verdict in found] == [
        *("unanswered", "unanswered", "unanswered", "unanswered"),
        *("unknown", "unanswered", "unanswered", "exists"),
    ]


def test_tickers_for_which_no_time_is_left_are_not_asked_for(api: StandIn, ask: Ask) -> None:
    with ask(within_seconds=0) as questions:
        found = list(TickerCheck(questions).each(pairs(*"ABCDEFG")))

    assert [one.verdict.value for one in found] == ["unknown"] * 5 + ["unanswered"] * 2
    assert "the budget is used up" in str(found[-1].why)


def test_the_time_that_calls_will_take_is_known_beforehand(
    db: Connection, settings: Settings, ask: Ask, clock: ShiftingClock
) -> None:
    assert reference.seconds_for(db, settings, 5) == 0
    assert reference.seconds_for(db, settings, 11) == pytest.approx(120)
    with ask() as questions:
        questions.ask(euro)
    assert reference.seconds_for(db, settings, 5) == pytest.approx(60, abs=2)


# --- on the command line ----------------------------------------------------------------------

MINE = """\
# mine
[[secondary_assets]]
symbol = "GOLD"
polygon_ticker = "C:XAUUSD"
asset_type = "forex"
"""


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn("free") as api:
        yield api


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "assets.toml"
    path.write_text(MINE)
    return path


@pytest.fixture
def machine(url: str, server: StandIn, tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path, url, server) as machine:
        yield machine


@pytest.fixture
def environ(machine: Machine) -> dict[str, str]:
    return machine.environ


Run: TypeAlias = Callable[..., Told]


@pytest.fixture
def run(machine: Machine) -> Run:
    return partial(machine.tell, "assets")


def test_found_assets_are_added_all_at_once(
    db: Connection, run: Run, file: Path, server: StandIn
) -> None:
    told = run("import", "--market", "fx", "--level", "high", "--every", "900", "--yes")

    assert told.code == 0
    assert "EURUSD  C:EURUSD  Euro - United States dollar" in told.out
    assert told.out.endswith(f"Added 4 assets to {file}\n")
    assert "In the settings already: GOLD." in told.err
    assert file.read_text().startswith(f"{MINE}\n[[secondary_assets]]")
    _, *added = load(file, {}).assets
    assert [one.ticker for one in added] == FOREX[:4]
    assert {(one.level, one.update_frequency_seconds) for one in added} == {(Level.HIGH, 900)}
    assert len(server.log) == 1
    assert held(db) == 0


def test_existing_assets_are_reported_in_one_line(db: Connection, run: Run, file: Path) -> None:
    run("import", "--market", "fx", "--yes")

    told = run("import", "--market", "fx")

    assert "In the settings already: EURUSD, GBPUSD, USDJPY and 2 more." in told.err


def test_no_call_is_made_if_the_file_cannot_be_written(
    db: Connection, environ: dict[str, str], tmp_path: Path, server: StandIn
) -> None:
    homeless = {name: value for name, value in environ.items() if name != "HOME"}
    told = asset_sync(
        "assets", "import", "--market", "fx", "--yes", environ=homeless, directory=tmp_path
    )

    assert (told.code, told.out) == (2, "")
    assert "--config" in told.err
    assert server.log == []


def test_import_refuses_a_read_only_file_first_and_a_dry_run_does_not(
    db: Connection, run: Run, file: Path, environ: dict[str, str]
) -> None:
    assert run("check").code == 0, "all is imported that nobody may not read"
    importlib.import_module("getpass")  # the sentence of a database error needs it
    found = ("assets", "import", "--market", "fx")
    nowhere = environ | {"DATABASE_URL": "postgresql://127.0.0.1:1/x"}
    with nobody() as directory:
        (directory / "assets.toml").write_text(MINE)
        (directory / "assets.toml").chmod(0o444)
        told = asset_sync(*found, "--yes", environ=nowhere, directory=directory)
        looked = asset_sync(*found, "--dry-run", environ=nowhere, directory=directory)

    assert told.code == 2
    assert "cannot be changed (Permission denied)" in told.err
    assert looked.code == 3, "it comes as far as to the database"


def test_without_a_terminal_the_answer_to_the_question_is_no(
    db: Connection, run: Run, file: Path
) -> None:
    told = run("import", "--market", "fx")

    assert told.code == 2
    assert "--yes" in told.err
    assert file.read_text() == MINE


@pytest.mark.parametrize(("keys", "code", "assets"), [("y\n", 0, 5), ("n\n", 2, 1), ("", 130, 1)])
def test_import_asks_on_a_terminal(
    db: Connection, file: Path, environ: dict[str, str], keys: str, code: int, assets: int
) -> None:
    keyboard, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "asset_sync", "assets", "import", "--market", "fx"],
        env=environ,
        cwd=file.parent,
        stdin=terminal,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        os.close(terminal)
        talk = b""
        while b"[y/N]" not in talk and (piece := os.read(process.stderr.fileno(), 4096)):
            talk += piece
        os.write(keyboard, keys.encode())
        if not keys:
            process.send_signal(signal.SIGINT)
        process.wait(timeout=20)
    os.close(keyboard)

    assert b"Add these 4 assets" in talk
    assert process.returncode == code
    assert len(load(file, {}).assets) == assets


def test_a_dry_run_of_import_shows_what_it_found(db: Connection, run: Run, file: Path) -> None:
    told = run("import", "--market", "crypto", "--search", "bitcoin", "--dry-run")

    assert told.code == 0
    assert "X:BTCUSD" in told.out
    assert "nothing was written" in told.err
    assert file.read_text() == MINE


def test_import_with_json_lists_what_was_found_and_added(
    db: Connection, run: Run, file: Path
) -> None:
    told = json.loads(run("import", "--market", "fx", "--limit", "1", "--yes", "--json").out)
    rest = json.loads(run("import", "--market", "fx", "--search", "gold", "--json").out)

    assert [one["symbol"] for one in told["added"]] == ["EURUSD"]
    assert (told["file"], told["written"]) == (str(file), True)
    assert (rest["added"], rest["there"], rest["written"]) == ([], ["GOLD"], False)
    assert rest["skipped"] == []


def test_import_warns_of_more_assets_than_the_limit_keeps_fresh(
    db: Connection, run: Run, file: Path
) -> None:
    told = run("import", "--market", "fx", "--every", "30")

    assert (
        "5 assets; 5 calls in 1 min refresh each of them every 1 min at best, not every 30 s"
        in told.err
    )


@pytest.mark.parametrize(
    ("search", "out"),
    [
        ("zloty", "The provider's list of fx has no such ticker.\n"),
        ("gold", "Nothing to add.\n"),
    ],
)
def test_nothing_found_is_no_failure(
    db: Connection, run: Run, file: Path, search: str, out: str
) -> None:
    told = run("import", "--market", "fx", "--search", search)

    assert (told.code, told.out) == (0, out)
    assert file.read_text() == MINE


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"POLYGON_API_KEY": "wrong"}, 4, "POLYGON_API_KEY"),
        ({"POLYGON_API_KEY": ""}, 2, "POLYGON_API_KEY is not set"),
        ({"POLYGON_BASE_URL": "http://127.0.0.1:1"}, 1, "Connection refused"),
        ({"DATABASE_URL": "postgresql://me@127.0.0.1:1/x"}, 3, "not reachable"),
    ],
)
@pytest.mark.parametrize("command", [("import", "--market", "fx"), ("check",)], ids=lambda c: c[0])
def test_each_obstacle_gives_a_sentence_and_an_exit_code(
    db: Connection,
    run: Run,
    file: Path,
    command: tuple[str, ...],
    changes: dict[str, str],
    code: int,
    words: str,
) -> None:
    told = run(*command, **changes)

    assert told.code == code
    assert words in told.out + told.err
    assert "tried again" not in told.out + told.err
    assert file.read_text() == MINE
    assert held(db) == 0


def test_if_there_is_no_time_to_wait_for_a_slot_nothing_is_added(
    db: Connection, run: Run, file: Path, server: StandIn
) -> None:
    for _ in range(5):
        run("check")

    told = run("import", "--market", "crypto", "--yes", "--max-runtime", "1")

    assert told.code == 1
    assert "The budget is used up" in told.err
    assert file.read_text() == MINE
    assert (len(server.log), server.refused) == (5, 0)


def test_check_says_how_many_calls_it_needs_and_then_that_all_tickers_exist(
    db: Connection, run: Run, file: Path
) -> None:
    told = run("check")

    assert told.code == 0
    assert "Asking for 1 asset: 1 call, of which 5 are allowed in 1 min" in told.err
    assert told.out.splitlines()[1].split() == ["GOLD", "C:XAUUSD", "exists"]


def test_check_names_a_mistyped_ticker_and_suggests_another(
    db: Connection, run: Run, file: Path
) -> None:
    file.write_text(MINE.replace("C:XAUUSD", "C:XUAUSD"))

    told, as_json = run("check"), run("check", "GOLD", "--json")

    assert told.code == as_json.code == 1
    assert "The provider knows no ticker C:XUAUSD" in told.out
    assert "Did you mean C:XAUUSD?" in told.out
    assert json.loads(as_json.out)["assets"] == [
        {
            "symbol": "GOLD",
            "ticker": "C:XUAUSD",
            "verdict": "unknown",
            "nearest": "C:XAUUSD",
            "why": None,
        }
    ]


def test_check_still_answers_if_no_suggestion_can_be_fetched(
    db: Connection, run: Run, file: Path, server: StandIn
) -> None:
    file.write_text(MINE.replace("C:XAUUSD", "C:XUAUSD"))
    server.set_faults(["not-found@C:XUAUSD", "server-error"])

    told = run("check")

    assert told.code == 1
    assert "knows no ticker C:XUAUSD" in told.out
    assert "could not be found" in told.err
    assert "tried again" not in told.err


def test_an_unknown_ticker_is_not_suggested_for_itself(
    db: Connection, run: Run, file: Path, server: StandIn
) -> None:
    server.set_faults(["not-found:1"])  # the list still has this ticker

    told = run("check", "GOLD")

    assert "knows no ticker C:XAUUSD" in told.out
    assert "Did you mean" not in told.out


def test_check_takes_symbols_and_suggests_one_for_a_mistyped_symbol(
    db: Connection, run: Run, file: Path, server: StandIn
) -> None:
    told = run("check", "gald")

    assert told.code == 2
    assert "Did you mean GOLD?" in told.err
    assert len(server.log) == 0


def test_check_without_assets_makes_no_call(
    db: Connection, run: Run, file: Path, server: StandIn
) -> None:
    file.write_text("")

    told = run("check", "--json")

    assert (told.code, told.err) == (0, "")
    assert json.loads(told.out)["assets"] == []
    assert len(server.log) == 0


def test_ctrl_c_while_import_waits_writes_nothing_and_holds_no_slot(
    db: Connection, run: Run, file: Path, environ: dict[str, str]
) -> None:
    for _ in range(5):
        run("check")
    with subprocess.Popen(
        [sys.executable, "-m", "asset_sync", "assets", "import", "--market", "fx", "--yes"],
        env=environ,
        cwd=file.parent,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert "waiting" in process.stderr.readline(), "it says that it waits"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)

    assert process.returncode == 130
    assert "nothing was written" in err
    assert "Traceback" not in err
    assert file.read_text() == MINE
    assert held(db) == 0


# --- assets that left the file ----------------------------------------------------------------


@pytest.mark.parametrize("command", ["list", "check"])
def test_check_reports_assets_that_left_the_file_and_the_command_that_removes_them(
    db: Connection, run: Run, file: Path, command: str
) -> None:
    wanted = [queue.Wanted(asset(symbol), Feed.BARS) for symbol in ("GOLD", "OLD", "OLDER")]
    queue.enqueue(db, wanted, QueueSettings())

    told, as_json, quiet = run(command), run(command, "--json"), run(command, "-q")

    assert "asset-sync queue remove OLD OLDER" in told.err
    assert json.loads(as_json.out)["left_the_file"] == ["OLD", "OLDER"]
    assert "OLD" not in as_json.err + quiet.err
    assert query(db, "select count(*) from asset_sync.queue") == [(3,)]
    assert queue.claim(db, in_line(db), lease_seconds=1, most=1), "nothing was touched"


def test_check_does_not_mention_removed_assets_if_the_database_is_down(
    run: Run, file: Path
) -> None:
    told = run("list", "--json", DATABASE_URL="postgresql://me@127.0.0.1:1/x")

    assert told.code == 0
    assert json.loads(told.out)["left_the_file"] is None
