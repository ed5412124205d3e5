"""Faults on demand: what the stand-in does instead of a right answer.

`FAULTS` lists them by name; a spec says when one strikes: `NAME` always, `NAME:3` the first three
requests, `NAME@C:EURUSD` only that ticker, `NAME:3@C:EURUSD` both.
"""

from asset_sync.demo.faults import api, figures, paging, transport  # each registers its faults
from asset_sync.demo.faults.figures import OTHER_TICKER
from asset_sync.demo.faults.plan import FaultPlan
from asset_sync.demo.faults.registry import FAULTS, Fault

__all__ = ["FAULTS", "OTHER_TICKER", "Fault", "FaultPlan", "api", "figures", "paging", "transport"]
