"""`asset_sync.listen` yields each price that a run publishes, and `last_price` the stored one."""

from datetime import UTC, datetime, timedelta

import pytest
from machine import until
from servers import Server, pgbouncer
from test_reading import reachable, server

import asset_sync
from asset_sync.database import Connection, query, raw_session, transaction
from asset_sync.reading import prices
from asset_sync.secret import Secret
from asset_sync.store import market, publish
from asset_sync.store.market import LastPrice

__all__ = ["server"]

NOON = datetime(2025, 3, 3, 12, tzinfo=UTC)


def publish_price(db: Connection, symbol: str, last_price: float, at: datetime = NOON) -> None:
    """Store and publish a price as a run does."""
    price = LastPrice(symbol, 1.0, None, last_price, None, None, None, None, at)
    with transaction(db) as cursor:
        market.save_symbols(cursor, [market.Symbol(symbol, symbol, "forex")])
        publish.notify(cursor, market.save_prices(cursor, [price]))


def test_the_last_price_is_the_stored_one(url: str, db: Connection) -> None:
    publish_price(db, "EURUSD", 1.25)

    assert asset_sync.last_price("EURUSD", database_url=url) == asset_sync.Price(
        "EURUSD", last_price=1.25, bid=1.0, ask=None, timestamp=NOON
    )


def test_an_asset_without_a_price_has_none(url: str, db: Connection) -> None:
    query(db, "insert into trading.symbols (symbol) values ('EURUSD')")

    assert asset_sync.last_price("EURUSD", database_url=url) is None


@pytest.mark.parametrize(
    "written",
    [
        *("{}", "[1]", '"x"', '{"last_price": 1}', '{"last_price": 1, "timestamp": "now"}'),
        '{"last_price": true, "bid": null, "ask": null, "timestamp": "2025-01-31T00:00Z"}',
    ],
)
def test_what_another_program_wrote_in_another_form_is_no_price(
    url: str, db: Connection, written: str
) -> None:
    query(
        db,
        "insert into trading.symbols (symbol, metadata)"
        " values ('EURUSD', jsonb_build_object('last_update', %s::jsonb))",
        (written,),
    )

    assert asset_sync.last_price("EURUSD", database_url=url) is None


def test_each_published_price_is_heard_in_order(url: str, db: Connection) -> None:
    publish_price(db, "EURUSD", 1.0)
    heard = asset_sync.listen(database_url=url)

    publish_price(db, "EURUSD", 1.25)
    publish_price(db, "BTCUSD", 2.5)
    query(db, "select pg_notify('asset_update', 'of another program')")
    publish_price(db, "EURUSD", 1.5)

    assert [next(heard) for _ in range(3)] == [
        asset_sync.Price("EURUSD", 1.25, 1.0, None, NOON),
        asset_sync.Price("BTCUSD", 2.5, 1.0, None, NOON),
        asset_sync.Price("EURUSD", 1.5, 1.0, None, NOON),
    ]


def test_only_the_assets_that_were_asked_for_are_heard(url: str, db: Connection) -> None:
    for symbol in ("EURUSD", "BTCUSD"):
        publish_price(db, symbol, 1.0)
    heard = asset_sync.listen("BTCUSD", database_url=url)

    publish_price(db, "EURUSD", 1.25)
    publish_price(db, "BTCUSD", 2.5)

    assert next(heard).last_price == 2.5
    with pytest.raises(asset_sync.ReadingError, match="Did you mean BTCUSD"):
        asset_sync.listen("BTCUS", database_url=url)


def test_a_restart_of_the_server_loses_no_last_price(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prices, "_AGAIN_SECONDS", (0.01,))
    with raw_session(Secret(server.url)) as db:
        publish_price(db, "EURUSD", 1.0)
        publish_price(db, "BTCUSD", 1.0)
        heard = asset_sync.listen(database_url=server.url)
        publish_price(db, "EURUSD", 1.25)
        assert next(heard).last_price == 1.25

    server.stop("fast")
    server.start()
    with raw_session(Secret(server.url)) as db:
        publish_price(db, "EURUSD", 1.5, NOON + timedelta(minutes=5))  # nobody listens yet
        assert next(heard).last_price == 1.5
        publish_price(db, "BTCUSD", 2.5, NOON + timedelta(minutes=5))
        assert next(heard) == asset_sync.Price(
            "BTCUSD", 2.5, 1.0, None, NOON + timedelta(minutes=5)
        )


def test_behind_a_pooler_that_delivers_nothing_it_says_so(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prices, "NOTIFY_SECONDS", 0.3)
    with pgbouncer(server.url) as pooled:
        until(lambda: reachable(pooled))
        with pytest.raises(asset_sync.DatabaseError, match="PgBouncer in transaction mode"):
            asset_sync.listen(database_url=pooled)


def test_behind_a_pooler_in_session_mode_it_hears(server: Server) -> None:
    with pgbouncer(server.url, "session") as pooled:
        until(lambda: reachable(pooled))
        heard = asset_sync.listen(database_url=pooled)
        with raw_session(Secret(server.url)) as db:
            publish_price(db, "EURUSD", 3.5, NOON + timedelta(hours=1))
        assert next(heard).last_price == 3.5
