"""What other processes may read and set while the stand-in runs.

They need no key here, and their calls do not count.
"""

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from asset_sync.demo import refusals
from asset_sync.demo.wire import Document, Reply, StandInError

if TYPE_CHECKING:
    from asset_sync.demo.server import StandIn

PREFIX = "/_standin/"
LOG_PATH = f"{PREFIX}log"
POSTED = {
    f"{PREFIX}faults": '["stall:1"]',
    f"{PREFIX}freeze": "8.5, in seconds",
    f"{PREFIX}plan": '"free"',
}
"""The paths to which other processes may post, each with an example of its body."""


def answer(api: "StandIn", path: str, body: bytes) -> Reply:
    """Answer a request under `PREFIX`: with 400 if its body makes no sense."""
    if path == LOG_PATH:
        return Reply(200, _log_document(api))
    if path not in POSTED:
        return refusals.unknown_path()
    try:
        wanted = json.loads(body)
        match path, wanted:
            case "/_standin/faults", list() if all(isinstance(one, str) for one in wanted):
                api.set_faults(wanted)
            case "/_standin/freeze", int() | float() if 0 <= wanted < math.inf:
                api.freeze(wanted)
            case "/_standin/plan", str():
                api.set_plan(wanted)
            case _:
                return refusals.bad_request(f"The body is JSON, such as {POSTED[path]}")
    except (ValueError, StandInError) as error:
        return refusals.bad_request(str(error))
    return Reply(200, {path.removeprefix(PREFIX): wanted})


def _log_document(api: "StandIn") -> Document:
    by_ticker: Document = dict(api.calls_by_ticker())
    return {
        "arrivals": [asdict(arrival) for arrival in api.log],
        "refused": api.refused,
        "most_in_a_window": api.most_in_a_window(),
        "calls_by_ticker": by_ticker,
    }
