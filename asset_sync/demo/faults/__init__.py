"""Faults that the stand-in simulates on demand instead of sending the right answer.

`FAULTS` lists them by name. A spec says for which requests a fault is used: `NAME` for all,
`NAME:3` for the first three, `NAME@C:EURUSD` for those of that ticker, `NAME:3@C:EURUSD` for the
first three of that ticker.
"""

from asset_sync.demo.faults import api, figures, paging, transport  # each registers its faults
from asset_sync.demo.faults.figures import OTHER_TICKER
from asset_sync.demo.faults.plan import FaultPlan
from asset_sync.demo.faults.registry import FAULTS, Fault

__all__ = ["FAULTS", "OTHER_TICKER", "Fault", "FaultPlan", "api", "figures", "paging", "transport"]
