"""What a key may do."""

from dataclasses import dataclass

from asset_sync.model import Feed


@dataclass(frozen=True, slots=True)
class Plan:
    """What a key of one of the provider's plans may do."""

    name: str
    calls: int
    """The calls that any `period_seconds` may hold."""

    period_seconds: float
    feeds: tuple[Feed, ...]
    """The best first."""

    history_days: int
    """How far back a call may ask."""

    usd_a_month: int | None
    """What it costs, None where the provider does not sell it for currencies and crypto."""
