"""What the key's plan turned out not to include, so that no call is spent on it for a day."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from asset_sync.database import Connection, Cursor, query

# A plan may be upgraded at any time, so what it did not include is tried again after a day.
KEPT_HOURS = 24

RUNNING_DAY = "running_day"
"""The capability to see bars of the running day; missing by what came, not by a refusal."""
# The opposite, noted beside what is missing: one asset that shows the running day outweighs others
# of which nothing came.
_SHOWN = "running_day_shown"

_LATE_ASSETS = 3


class Missing(NamedTuple):
    """What the API refused this key during the last day."""

    today: bool
    """Whether bars of the running day are refused."""
    past: bool
    """Whether bars of more than two years ago are refused, although the settings' plan has them."""
    snapshot: bool
    """Whether the snapshot feed is refused."""
    snapshot_symbols: frozenset[str]
    """Assets whose snapshots are refused."""
    past_symbols: frozenset[str] = frozenset()
    """Assets whose past was refused from some moment on; the ledger has the moment."""
    late_symbols: frozenset[str] = frozenset()
    """Assets whose bars ended with yesterday although their market has been open today.

    Empty if the key has shown a bar of the running day: then only these assets were silent.
    """
    shows_running_day: bool = False
    """Whether the key has shown a bar of the running day."""

    def is_end_of_day(self, symbols: Collection[str]) -> bool:
        """Whether the key shows nothing of the running day, as far as these assets prove it.

        One silent asset proves nothing, so it takes three, or all if there are fewer.
        """
        late = sum(symbol in self.late_symbols for symbol in symbols)
        return late >= max(1, min(_LATE_ASSETS, len(symbols)))


NOTHING_MISSING = Missing(today=False, past=False, snapshot=False, snapshot_symbols=frozenset())


def note_missing(
    cursor: Cursor, key: str, plan: str, capability: str, symbols: Sequence[str]
) -> None:
    """Remember that the key may not do this; no symbols means all assets."""
    cursor.execute(
        """
        insert into asset_sync.entitlements (key_fingerprint, plan, capability, symbol)
        select %s, %s, %s, symbol from unnest(%s::text[]) as symbol
        on conflict (key_fingerprint, plan, capability, symbol) do update set noted_at = now()
        """,
        (key, plan, capability, list(symbols) or [""]),
    )


def missing(db: Connection, key: str, plan: str) -> Missing:
    """Return what the API refused this key on this plan during the last day."""
    rows = query(
        db,
        """
        select capability, symbol from asset_sync.entitlements
        where key_fingerprint = %s and plan = %s and noted_at > now() - make_interval(hours => %s)
        """,
        (key, plan, KEPT_HOURS),
    )

    def symbols(capability: str) -> frozenset[str]:
        return frozenset(symbol for what, symbol in rows if what == capability and symbol)

    shown = (_SHOWN, "") in rows
    return Missing(
        today=("today", "") in rows,
        past=("past", "") in rows,
        snapshot=("snapshot", "") in rows,
        snapshot_symbols=symbols("snapshot"),
        past_symbols=symbols("past"),
        late_symbols=frozenset() if shown else symbols(RUNNING_DAY),
        shows_running_day=shown,
    )


def note_running_day_shown(cursor: Cursor, key: str, plan: str) -> None:
    """Remember that the key has shown a bar of the running day."""
    note_missing(cursor, key, plan, _SHOWN, ())
