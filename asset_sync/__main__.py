"""`python -m asset_sync`, and where the command `asset-sync` begins."""

import _signal  # type: ignore[import-not-found]  # built in: no signal can interrupt its import
import os

# Before and after `main` nothing is leased or taken: Ctrl-C ends the process without a traceback.
if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, lambda *_: os._exit(130))

import atexit
import gc

# Imports create no garbage but triple the collector's work: 4 of 110 ms of `queue status`. A
# collection at the end would take 11 ms and free nothing that the end itself does not.
gc.set_threshold(50_000)
atexit.register(gc.freeze)

from asset_sync.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
