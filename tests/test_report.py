"""`asset-sync report`: what the page says, what it never holds, and how the file is written."""

import base64
import hashlib
import pwd
import re
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import MakeSettings, asset
from machine import Machine
from pages import BAD, EVERY, FINE, GONE, HOSTILE, break_two, page, refresh, remember, settings

from asset_sync.cli.page import draw
from asset_sync.cli.page.assets import _WORDS, strip
from asset_sync.cli.page.summary import _ADVICE, TITLES
from asset_sync.database import Connection, query, transaction
from asset_sync.demo.server import StandIn
from asset_sync.model import Feed, Lane, Level
from asset_sync.ops import coverage_weeks, health
from asset_sync.ops.coverage_weeks import WEEKS, WeekState
from asset_sync.ops.report import Report, report_of
from asset_sync.store import runs

SETTINGS = f"""
[[priority_assets]]
symbol = "{BAD}"
polygon_ticker = "X:BAD"
asset_type = "crypto"
"""


class _Shown(HTMLParser):
    """Collects the words that a browser shows, and the tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self._hidden += tag in {"style", "script"}

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in {"style", "script"}

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)


def read(html: str) -> _Shown:
    shown = _Shown()
    shown.feed(html)
    return shown


def words(html: str) -> str:
    """Return what a browser shows of the page, with single blanks."""
    return " ".join(" ".join(read(html).words).split())


def headline(html: str) -> str:
    [found] = re.findall(r"<h1>(.*?)</h1>", html, re.DOTALL)
    return words(found)


# --- what is wrong, which asset, since when, and is the plan enough -------------------------------


def test_if_all_is_well_the_page_says_so_and_that_the_plan_is_enough(db: Connection) -> None:
    wanted = settings()
    refresh(db, wanted)

    html = page(db, wanted)

    assert headline(html) == "✓ All is well."
    assert '<html lang="en" class="healthy"' in html
    assert "3 of 3 assets are well. The plan is enough (free, 5 calls in 1 min):" in words(html)


def test_the_headline_names_the_fault_the_asset_and_since_when(db: Connection) -> None:
    wanted = settings()
    refresh(db, wanted)
    break_two(db)

    html = page(db, wanted)

    said = words(html)
    assert re.fullmatch(
        rf"✗ Not refreshed in time: {BAD}, since (\d+ \w+ )?\d\d:\d\d UTC \(5 h\), and 2 other"
        r" faults\.",
        headline(html),
    )
    assert f"{BAD}: The API answered with 500. asset-sync queue list {BAD} says why." in said
    assert f"Given up: {GONE}, since" in said
    assert f"asset-sync queue retry {GONE} tries again" in said
    assert "1 of 3 assets are well." in said
    assert f"<title>Not refreshed in time: {BAD}" in html


def test_the_page_says_what_to_do_if_the_plan_is_not_enough(db: Connection) -> None:
    wanted = settings(*(asset(f"A{number}", every=60) for number in range(30)))

    said = words(page(db, wanted))

    assert "This plan is not enough: raise update_frequency_seconds to" in said
    assert "The plan is enough" not in said


def test_a_page_without_any_run_says_that_none_was_made(db: Connection) -> None:
    said = words(page(db, settings()))

    assert headline(page(db, settings())) == "✗ No priority run yet, and 1 other fault."
    assert "0 of 3 assets are well." in said
    assert "no bars yet" in said
    assert "asset-sync schedule cron --install" in said


def test_a_page_without_assets_says_how_to_add_one(db: Connection) -> None:
    wanted = replace(settings(), assets=())
    refresh(db, wanted)

    html = page(db, wanted)

    assert headline(html) == "✓ No asset is named in the settings."
    assert "asset-sync assets add" in words(html)


def test_a_refused_key_is_the_first_thing_that_the_page_says(db: Connection) -> None:
    wanted = settings()
    refresh(db, wanted)
    break_two(db)
    run_id = runs.start(db, Lane.PRIORITY.value)
    runs.end(db, run_id, "key_refused", updated=0, failed=0, waited_seconds=0)

    assert "✗ The API refuses the key or its plan, since" in headline(page(db, wanted))


def test_a_closed_market_is_no_fault(db: Connection) -> None:
    wanted = settings()
    refresh(db, wanted)
    [(closed,)] = query(
        db,
        "select to_char(now() + interval '3 days', 'Dy') || ' 10:00-11:00 UTC'",
    )
    wanted = replace(wanted, assets=tuple(replace(one, hours=(closed,)) for one in wanted.assets))

    html = page(db, wanted)

    assert headline(html) == "✓ All is well."
    assert "1 asset, all closed nothing is missing since the close" in words(html)
    assert "closed" in table_row(html, FINE)


def test_every_check_of_health_has_a_title_and_the_checks_of_assets_an_advice(
    db: Connection,
) -> None:
    found = report_of(db, settings()).health.checks

    assert {check.name for check in found} == set(TITLES)
    of_assets = {"assets.stale", "queue.dead", "assets.failing", "data.old", "history.holes"}
    assert set(_WORDS) == of_assets < set(_ADVICE) < set(TITLES)


# --- the assets -----------------------------------------------------------------------------------


def table_row(html: str, symbol: str) -> str:
    [row] = re.findall(rf"<tr[^>]*><th>{symbol}<.*", html)
    return words(row)


def test_the_assets_with_trouble_come_first_with_their_last_error(db: Connection) -> None:
    wanted = settings()
    refresh(db, wanted)
    break_two(db)

    html = page(db, wanted)

    order = re.findall(rf"<th>({BAD}|{GONE}|{FINE})<", html)
    assert order == [BAD, GONE, FINE]
    assert "not refreshed in time , failing" not in table_row(html, FINE)
    assert "The API answered with 500." in table_row(html, BAD)
    assert "given up : The provider knows no ticker X:GONE." in table_row(html, GONE)


def test_the_worst_error_of_several_feeds_is_shown(db: Connection) -> None:
    wanted = settings()
    refresh(db, wanted)
    query(
        db,
        """
        update asset_sync.queue set last_error = 'once' where symbol = %(symbol)s;
        insert into asset_sync.queue
          (symbol, feed, ticker, asset_type, name, level, state, feed_rank, strikes, last_error)
        select symbol, 'history', ticker, asset_type, name, level, 'dead', 3, 3, 'too often'
        from asset_sync.queue where symbol = %(symbol)s
        """,
        {"symbol": FINE},
    )

    assert "too often" in table_row(page(db, wanted), FINE)


def test_a_strip_has_a_bar_for_each_run_of_weeks_and_a_height_for_each_state() -> None:
    weeks = (
        *(WeekState.NONE, WeekState.UNASKED, WeekState.UNASKED, WeekState.THERE),
        *(WeekState.EMPTY, WeekState.THERE, WeekState.PARTLY),
    )

    assert strip(weeks) == (
        '<svg viewBox="0 0 7 4"><path class=n d="M1 2h2"/><path class=t d="M3 2h1m1 0h1"/>'
        '<path class=e d="M4 3.5h1"/><path class=s d="M6 2.8h1"/></svg>'
    )


def test_the_weeks_of_an_asset_tell_what_was_asked_from_what_came(db: Connection) -> None:
    wanted = replace(settings(), assets=settings().assets[:1])
    refresh(db, wanted)
    remember(db, wanted)

    [line] = report_of(db, wanted).assets

    weeks = line.weeks
    assert len(weeks) == WEEKS
    assert weeks[-31] is WeekState.EMPTY
    assert weeks[-21] is WeekState.PARTLY
    assert set(weeks[-53:]) == {WeekState.THERE, WeekState.EMPTY, WeekState.PARTLY}
    assert set(weeks[2:-53]) == {WeekState.UNASKED}
    assert weeks[0] is WeekState.NONE, "before the 720 days that are wanted"


def test_weeks_before_the_past_that_is_wanted_are_blank(db: Connection) -> None:
    one = replace(settings().assets[0], history_days=30)
    [line] = report_of(db, settings(one)).assets
    assert set(line.weeks[:-6]) == {WeekState.NONE}
    assert set(line.weeks[-4:-1]) == {WeekState.UNASKED}
    assert line.weeks[-1] in {WeekState.UNASKED, WeekState.NONE}, "it may be minutes old"


def test_an_asset_that_was_asked_under_another_ticker_counts_as_never_asked(
    db: Connection,
) -> None:
    wanted = replace(settings(), assets=settings().assets[:1])
    remember(db, wanted)
    query(db, "update asset_sync.ledger set ticker = 'X:OLD'")
    # In its first minutes nothing of the running week can have been left unasked.
    query(
        db, "delete from asset_sync.weeks where week = date_trunc('week', now() at time zone 'UTC')"
    )

    [line] = report_of(db, wanted).assets

    assert WeekState.THERE not in line.weeks[2:]


def test_the_first_week_is_a_monday_two_years_ago(db: Connection) -> None:
    report = report_of(db, settings())

    assert report.first_week.weekday() == 0
    assert report.now.date() - report.first_week >= timedelta(days=728)
    assert coverage_weeks.first_week(report.now) == report.first_week


# --- calls ----------------------------------------------------------------------------------------


def call(db: Connection, lane: str, feed: Feed, hours_ago: float) -> None:
    run_id = runs.start(db, lane)
    with transaction(db) as cursor:
        runs.record(cursor, run_id, runs.Call(feed, ["A"], "ok", 0.2))
    query(
        db,
        "update asset_sync.calls set at = now() - make_interval(secs => %s) where run_id = %s",
        (3600 * hours_ago, run_id),
    )


def test_the_calls_of_a_day_are_divided_by_what_they_were_for(db: Connection) -> None:
    call(db, "priority", Feed.BARS, 23.5)
    call(db, "queue", Feed.BARS, 0.5)
    call(db, "queue", Feed.HISTORY, 0.5)
    call(db, "history", Feed.HISTORY, 0.2)
    call(db, "queue", Feed.BARS, 24.5)

    day = report_of(db, settings()).day

    assert (day.priority, day.queue, day.history) == (1, 1, 2)
    assert day.hours[0] == (1, 0, 0)
    assert day.hours[-1] == (0, 1, 2)
    assert len(day.hours) == 24
    assert day.allowed == round(5 * 86_400 / 60.2)
    assert day.kept == day.reserved > 0
    assert day.priority + day.queue + day.history + day.kept + day.unused == day.allowed


def test_calls_that_were_made_are_not_counted_as_kept(db: Connection) -> None:
    day = report_of(db, settings()).day._replace(allowed=3, reserved=2)
    busy = day._replace(hours=(runs.HourOfCalls(1, 1, 0),))
    over = day._replace(hours=(runs.HourOfCalls(2, 2, 0),))

    assert (busy.kept, busy.unused) == (1, 0)
    assert (over.kept, over.unused) == (0, 0)


def test_the_age_of_a_level_is_compared_with_what_the_plan_gives(db: Connection) -> None:
    wanted = settings()
    refresh(db, wanted)

    report = report_of(db, wanted)

    assert [one.level for one in report.levels] == [Level.CRITICAL, Level.HIGH, Level.LOW]
    critical = report.levels[0]
    assert critical.oldest == BAD
    assert critical.planned is not None
    assert critical.oldest_seconds is not None
    assert critical.oldest_seconds > critical.planned.p95_seconds
    assert "▲ late: oldest" in words(draw(report, EVERY))


# --- the file -------------------------------------------------------------------------------------


def hostile(db: Connection) -> Report:
    """Return a report in which everything that comes from outside is hostile."""
    wanted = settings(
        asset(f"{HOSTILE}1", Level.CRITICAL, position=1), asset(f"{HOSTILE}2", Level.LOW)
    )
    refresh(db, wanted)
    query(
        db,
        """
        update asset_sync.queue set state = 'waiting', strikes = 4, last_error = %(text)s,
          last_success_at = now() - interval '5 hours', not_before = now() - interval '1 hour';
        update asset_sync.queue set state = 'dead' where level = 'low';
        update asset_sync.runs set command = %(text)s, reason_ended = %(text)s
        """,
        {"text": HOSTILE},
    )
    return report_of(db, wanted)


def test_nothing_from_outside_becomes_markup(db: Connection) -> None:
    plain = read(page(db, settings()))

    html = draw(hostile(db), EVERY)

    shown = read(html)
    assert "<img" not in html
    assert html.count("</script>") == 1
    assert "\x07" not in html
    assert "&lt;img src=x onerror=&quot;alert(&#x27;1&#x27;)&quot;&gt;&amp;amp;" in html
    assert shown.tags <= plain.tags | {"bdi", "b", "strong", "ul", "li"}
    assert shown.attributes == plain.attributes


def test_no_secret_is_on_the_page(
    db: Connection, api: StandIn, make_settings: MakeSettings
) -> None:
    wanted = make_settings(api)
    assert wanted.provider.api_key is not None
    assert wanted.conninfo is not None

    html = page(db, wanted)

    assert wanted.provider.api_key.reveal() not in html
    assert "password" not in html
    assert "postgres" not in html


def test_the_page_allows_only_its_own_script_and_style_and_asks_nobody(db: Connection) -> None:
    html = page(db, settings())

    [policy] = re.findall(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for tag in ("style", "script"):
        [inline] = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert set(re.findall(r"url\(([^)]*)\)", html)) <= {
        *("#p-queue", "#p-history", "#p-kept", "#p-unasked"),
    }
    assert not {"style", "onclick", "src"} & read(html).attributes


def test_the_page_knows_how_often_it_should_be_written(db: Connection) -> None:
    html = draw(report_of(db, settings()), 3600)

    assert 'data-every="3600" data-old-after="7260"' in html
    assert "It should be written every 1 h" in html


def test_a_page_that_is_written_once_blames_no_cron(db: Connection) -> None:
    html = draw(report_of(db, settings()), None)

    assert "data-every" not in html.replace("data.every", "")
    assert 'data-old-after="3600"' in html
    assert "cron job" not in html
    assert "asset-sync report --open shows a new one" in words(html)


def test_a_job_that_no_longer_runs_is_named_with_its_last_run(db: Connection) -> None:
    wanted = settings()
    refresh(db, wanted)
    query(
        db,
        """
        update asset_sync.runs set started_at = now() - interval '45 minutes',
          ended_at = now() - interval '44 minutes 50 seconds'
        """,
    )

    html = page(db, wanted)

    assert re.fullmatch(
        r"✗ No priority run since (\d+ \w+ )?\d\d:\d\d UTC \(45 min\), and 1 other fault\.",
        headline(html),
    )
    assert "asset-sync doctor says whether its job is installed" in words(html)
    assert "No queue run since" in words(html)


@pytest.fixture
def machine(url: str, tmp_path: Path) -> Machine:
    machine = Machine(tmp_path, url)
    machine.file(SETTINGS)
    return machine


def test_the_file_is_written_for_a_web_server_and_replaced_as_a_whole(machine: Machine) -> None:
    target = machine.home / "www" / "report.html"
    target.parent.mkdir()
    target.write_text("old")

    with target.open() as reader:
        told = machine.tell("report", "--output", str(target))
        assert reader.read() == "old", "who has it open reads a whole page"

    assert told == (0, "", "")
    assert "No priority run yet" in target.read_text()
    assert target.stat().st_mode & 0o777 == 0o644
    assert list(target.parent.iterdir()) == [target]


def test_cron_may_say_how_often_the_page_is_written(machine: Machine) -> None:
    target = machine.home / "report.html"

    assert machine.tell("report", "--output", str(target), "--every", "60").code == 0
    assert 'data-every="3600"' in target.read_text()


def test_off_a_terminal_the_page_goes_to_stdout(machine: Machine) -> None:
    told = machine.tell("report")

    assert told.code == 0
    assert told.err == ""
    assert told.out.startswith("<!doctype html>")
    assert told.out.endswith("</html>\n")


def test_on_a_terminal_a_sentence_says_what_to_do(url: str, tmp_path: Path) -> None:
    import commandline  # noqa: PLC0415

    machine = Machine(tmp_path, url)
    told = commandline.asset_sync("report", environ=machine.environ, directory=tmp_path, columns=80)

    assert told.code == 2
    assert told.out == ""
    assert "--open shows it" in " ".join(told.err.split())


def test_open_writes_a_private_file_and_starts_the_browser(machine: Machine) -> None:
    machine.program("browser", f'echo "$1" > {machine.home}/opened')
    path = machine.home / ".local" / "state" / "asset-sync" / "report.html"

    told = machine.run("report", "--open", BROWSER=f"{machine.home}/bin/browser %s")

    assert told.code == 0
    assert told.out == f"The page is {path}; the browser shows it.\n"
    assert (machine.home / "opened").read_text().strip() == path.as_uri()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_for_a_user_without_a_home_a_sentence_says_what_to_set(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)

    del machine.environ["HOME"]

    told = machine.tell("report", "--open")

    assert told.code == 2
    assert "this user has no home: set HOME" in told.err


def test_without_a_browser_open_says_where_the_page_is(machine: Machine) -> None:
    told = machine.run("report", "--open", BROWSER="false %s")

    assert told.code == 0
    assert "No browser could be started here" in told.out


def test_a_database_that_was_never_initialised_gets_a_sentence_and_no_page(
    empty_url: str, tmp_path: Path
) -> None:
    machine = Machine(tmp_path, empty_url)
    machine.file(SETTINGS)
    target = tmp_path / "report.html"
    target.write_text("the page before")

    told = machine.tell("report", "--output", str(target))

    assert told.code == 3
    assert "asset-sync db init" in told.err
    assert target.read_text() == "the page before", "it turns red by itself"


def test_a_thousand_assets_fit_into_300_kilobytes(db: Connection) -> None:
    wanted = settings()
    refresh(db, wanted)
    break_two(db)
    remember(db, wanted)
    report = report_of(db, wanted)
    assets = tuple(
        one._replace(asset=replace(one.asset, symbol=f"{one.asset.symbol}{number}"))
        for number in range(334)
        for one in report.assets
    )

    assert len(draw(replace(report, assets=assets), EVERY).encode()) < 300_000


def test_the_verdict_of_the_page_is_that_of_health(db: Connection) -> None:
    wanted = settings()
    refresh(db, wanted)
    break_two(db)

    report = report_of(db, wanted)

    assert report.health.status is health.examine(db, wanted).status
