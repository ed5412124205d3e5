"""`python -m asset_sync`, and where the command `asset-sync` begins."""

import atexit
import gc

# Importing makes no garbage, but thrice as much work for its collector: 12 of 71 ms of a start.
# `sync` turns it on again when its imports are done.
gc.disable()
atexit.register(gc.freeze)

from asset_sync.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
