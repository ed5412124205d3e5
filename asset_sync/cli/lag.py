"""How late the provider's bars are, on a screen and for a program."""

from collections.abc import Mapping

from asset_sync.cli.format import duration, table
from asset_sync.model import AssetType
from asset_sync.store.ledger import LEAST_LAGS, Lag


def lag_table(lags: Mapping[AssetType, Lag]) -> str:
    """Return how late the bars of each market are; nothing is guessed from few measurements."""
    rows = [
        [kind.value, _measured(lag), *(_time(lag, share) for share in (lag.p50, lag.p95, lag.p99))]
        for kind, lag in lags.items()
    ]
    return table(["bars come late by", ">measured", ">half", ">95 %", ">99 %"], rows)


def lag_in_words(lag: Lag) -> str:
    """Return how late a market's bars are in one line."""
    if not lag.is_known:
        return f"not known yet: {lag.measurements} of the {LEAST_LAGS} measurements needed"
    half, most, nearly_all = (_time(lag, share) for share in (lag.p50, lag.p95, lag.p99))
    return f"half {half}, 95 % {most}, 99 % {nearly_all} ({lag.measurements:,} measured)"


def lag_as_json(lag: Lag) -> dict[str, object]:
    """Return how late a market's bars are, `null` where the measurements are too few."""
    known = lag if lag.is_known else lag._replace(p50=None, p95=None, p99=None)
    return {
        "measurements": lag.measurements,
        "p50_seconds": known.p50,
        "p95_seconds": known.p95,
        "p99_seconds": known.p99,
    }


def lags_as_json(lags: Mapping[AssetType, Lag], plan: str) -> list[dict[str, object]]:
    """Return how late the bars of each market are on a plan."""
    return [{"market": kind.value, "plan": plan, **lag_as_json(lag)} for kind, lag in lags.items()]


def _measured(lag: Lag) -> str:
    return f"{lag.measurements:,}" + ("" if lag.is_known else f" of the {LEAST_LAGS} needed")


def _time(lag: Lag, seconds: float | None) -> str:
    return duration(seconds) if lag.is_known else "-"
