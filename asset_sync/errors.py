"""The root of everything that asset-sync says went wrong."""


class AssetSyncError(Exception):
    """A sentence for the user: what happened, to which asset or setting, and what to do.

    Each room derives its own family from this; the command line turns a family into an exit
    code in one place (`asset_sync.cli`). Whatever is not of this family is a bug.
    """
