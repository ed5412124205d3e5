"""`python -m asset_sync`."""

from asset_sync.cli import main

if __name__ == "__main__":
    main()
