"""What a provider's plan includes."""

from dataclasses import dataclass

from asset_sync.model import Feed


@dataclass(frozen=True, slots=True)
class Plan:
    """What a key may do on one of the provider's plans."""

    name: str
    calls: int
    """How many calls are allowed in any `period_seconds`."""

    period_seconds: float
    feeds: tuple[Feed, ...]
    """The best first."""

    history_days: int
    """How far back a call may ask."""

    parallel_calls: int
    """How many calls a run keeps in flight unless the settings say otherwise."""

    usd_a_month: int | None
    """The price, None if the provider does not sell the plan for currencies and crypto."""
