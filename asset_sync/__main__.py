"""`python -m asset_sync`, and where the command `asset-sync` begins."""

import atexit
import gc
import signal

# Importing makes no garbage, but thrice as much work for its collector: 12 of 71 ms of a start.
# `sync` turns it on again when its imports are done.
gc.disable()
atexit.register(gc.freeze)

# Until `main` begins there is nothing that Ctrl-C would have to give back: no traceback is wanted.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from asset_sync.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
