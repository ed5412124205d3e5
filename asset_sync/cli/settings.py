"""Reads the settings for a command."""

import os
from collections.abc import Callable

from asset_sync.cli.options import Common
from asset_sync.cli.output import err
from asset_sync.database import name_of
from asset_sync.settings import Settings, load


def settings_for(options: Common, info: Callable[[str], None] = err) -> Settings:
    """Read the settings and, with -v, print where they are from. Raises SettingsError."""
    settings = load(options.config, os.environ)
    if options.verbose:
        shipped = " (the one that came with the program)" if settings.shipped else ""
        info(f"Settings: {settings.source}{shipped}")
        database = name_of(settings.conninfo)
        info(f"Plan: {settings.provider.plan.name}. Database: {database}.")
    return settings
