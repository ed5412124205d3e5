"""When the next call for the newest bars has the chance of news."""

from datetime import UTC, datetime, timedelta

from asset_sync.hours import CRYPTO, FX, Hours
from asset_sync.store.ledger import UNKNOWN_LAG, Lag
from asset_sync.sync.news import END_OF_DAY_EVERY, Chance, next_chance

FREQUENCY = timedelta(minutes=10)
MINUTE = timedelta(minutes=1)
CLOSING = datetime(2026, 11, 20, 22, tzinfo=UTC)
OPENING = datetime(2026, 11, 22, 22, tzinfo=UTC)
LAG = Lag(100, 300.0, 600.0, 900.0, at_least=120.0)


def chance(
    now: datetime,
    *,
    news: bool = False,
    newest: datetime | None = None,
    silent: int = 0,
    lag: Lag = UNKNOWN_LAG,
    hours: Hours = FX,
) -> Chance:
    return next_chance(hours, now, FREQUENCY, news=news, newest=newest, silent=silent, lag=lag)


def test_with_news_in_an_open_market_the_frequency_decides() -> None:
    assert chance(CLOSING - 60 * MINUTE, news=True, silent=7) == Chance()


def test_after_the_closing_there_is_one_call_once_the_last_bar_is_final() -> None:
    assert chance(CLOSING, news=True) == Chance(CLOSING + MINUTE)
    assert chance(CLOSING + 9 * MINUTE, lag=LAG) == Chance(CLOSING + 10 * MINUTE)


def test_with_the_last_bar_there_nothing_more_is_waited_for() -> None:
    last_bar, now = CLOSING - 5 * MINUTE, CLOSING + 5 * MINUTE
    assert chance(now, newest=last_bar, lag=LAG) == Chance(OPENING + 7 * MINUTE)
    assert chance(now, newest=last_bar - 5 * MINUTE, lag=LAG) == Chance(CLOSING + 10 * MINUTE)


def test_a_last_bar_that_was_seen_too_early_is_asked_again() -> None:
    last_bar = CLOSING - 5 * MINUTE
    assert chance(CLOSING + MINUTE / 2, newest=last_bar) == Chance(CLOSING + MINUTE)
    assert chance(CLOSING + MINUTE, newest=last_bar, lag=LAG) == Chance(CLOSING + 10 * MINUTE)


def test_a_call_that_would_come_before_the_last_bar_is_final_waits_for_it() -> None:
    for news in (True, False):
        assert chance(CLOSING - FREQUENCY, news=news).not_before == CLOSING + MINUTE
        assert chance(CLOSING - FREQUENCY - MINUTE, news=news).not_before is None
        assert chance(CLOSING + MINUTE - FREQUENCY, news=news).not_before is None
    assert chance(CLOSING - 2 * FREQUENCY, silent=1).not_before == CLOSING + MINUTE
    assert chance(CLOSING - MINUTE, news=True, lag=LAG).not_before == CLOSING + 10 * MINUTE


def test_then_there_is_none_until_the_first_bar_can_be_there() -> None:
    for news in (True, False):
        assert chance(CLOSING + MINUTE, news=news) == Chance(OPENING + 5 * MINUTE)
        assert chance(CLOSING + 30 * 60 * MINUTE, news=news) == Chance(OPENING + 5 * MINUTE)
    assert chance(CLOSING + 10 * MINUTE, lag=LAG) == Chance(OPENING + 7 * MINUTE)


def test_before_the_first_bar_can_be_there_silence_does_not_count() -> None:
    assert chance(OPENING + MINUTE, silent=0) == Chance(OPENING + 5 * MINUTE, 0)
    assert chance(OPENING + 6 * MINUTE, lag=LAG) == Chance(OPENING + 7 * MINUTE, 0)


def test_the_first_silent_answer_changes_nothing() -> None:
    assert chance(OPENING + 60 * MINUTE) == Chance(None, 1)


def test_each_further_silent_answer_doubles_the_time_up_to_an_hour() -> None:
    now, silent, pauses = datetime(2026, 11, 18, 12, tzinfo=UTC), 1, []
    for _ in range(30):
        answer = chance(now, silent=silent, hours=CRYPTO)
        assert answer.not_before is not None
        pauses.append((answer.not_before - now) // MINUTE)
        silent = answer.silent
    assert pauses == [20, 40, *([60] * 28)]


def test_an_asset_that_is_asked_more_seldom_than_hourly_keeps_its_frequency() -> None:
    now, day = datetime(2026, 11, 18, 12, tzinfo=UTC), timedelta(days=1)
    answer = next_chance(CRYPTO, now, day, news=False, newest=None, silent=5, lag=UNKNOWN_LAG)
    assert answer.not_before == now + day


def test_news_ends_the_silence_at_once() -> None:
    assert chance(OPENING + 60 * MINUTE, news=True, silent=9).silent == 0


def test_a_market_that_never_closes_is_never_waited_for() -> None:
    assert chance(CLOSING + 60 * MINUTE, hours=CRYPTO) == Chance(None, 1)


def test_a_key_without_the_running_day_is_asked_four_times_a_day() -> None:
    answer = next_chance(
        FX,
        OPENING,
        FREQUENCY,
        news=False,
        newest=None,
        silent=3,
        lag=UNKNOWN_LAG,
        end_of_day=True,
    )
    assert answer == Chance(OPENING + END_OF_DAY_EVERY)


def test_a_weekend_costs_one_call_after_the_closing_and_one_at_the_opening() -> None:
    for offset in range(10):
        now, asked = CLOSING - 3 * 60 * MINUTE + offset * MINUTE, []
        while now < OPENING + 10 * MINUTE:
            asked.append(now)
            answer = chance(now, news=now < CLOSING + 5 * MINUTE)
            now = max(now + FREQUENCY, answer.not_before or now)
        closed = [moment for moment in asked if CLOSING <= moment < OPENING]
        assert len(closed) == 1
        assert closed[0] >= CLOSING + MINUTE
        assert [moment for moment in asked if moment >= OPENING] == [OPENING + 5 * MINUTE]
