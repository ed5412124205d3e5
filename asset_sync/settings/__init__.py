"""The settings: all that `assets.toml` and the environment say. No other module reads either.

`load` returns one frozen `Settings`, or raises one `SettingsError` with every mistake of the file
and of the environment, so that they can be corrected in one go. A secret stays a `Secret` from here
to the one line that sends it.

Only the standard library is imported, and of that only what every start needs: every command
imports this package. `sections` declares the settings, `kinds` says what each may be, `reader`
reads them, and `files` says which file holds them.
"""

from asset_sync.settings.files import SHIPPED_FILE, SYSTEM_FILE, search_places
from asset_sync.settings.kinds import SYMBOL_PATTERN
from asset_sync.settings.mistakes import SettingsError
from asset_sync.settings.reader import load
from asset_sync.settings.sections import (
    CONFIG_VARIABLE,
    LIBPQ_VARIABLES,
    PLAIN_VARIABLES,
    SECRET_VARIABLES,
    VARIABLES,
    BatchSettings,
    HealthSettings,
    HistorySettings,
    MonitoringSettings,
    ProviderSettings,
    QueueSettings,
    RateLimit,
    Settings,
)

__all__ = [
    "CONFIG_VARIABLE",
    "LIBPQ_VARIABLES",
    "PLAIN_VARIABLES",
    "SECRET_VARIABLES",
    "SHIPPED_FILE",
    "SYMBOL_PATTERN",
    "SYSTEM_FILE",
    "VARIABLES",
    "BatchSettings",
    "HealthSettings",
    "HistorySettings",
    "MonitoringSettings",
    "ProviderSettings",
    "QueueSettings",
    "RateLimit",
    "Settings",
    "SettingsError",
    "load",
    "search_places",
]
