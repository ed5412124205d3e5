"""The settings: all that `assets.toml` and the environment say. No other module reads either.

`load` returns one frozen `Settings`, or raises one `SettingsError` with every mistake of the file
and of the environment, so that all can be corrected at once. A secret stays a `Secret` from here to
the one line that sends it.

`sections` declares the settings, `kinds` checks values, `reader` reads the settings, and `files`
finds their file. Every command imports this package, so it imports only the parts of the standard
library that every start needs.
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
