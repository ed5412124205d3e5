"""The errors of the settings, and how a message shows a wrong value."""

import re
from collections.abc import Iterable

from asset_sync import bus
from asset_sync.errors import AssetSyncError


class SettingsError(AssetSyncError):
    """All mistakes of the file and the environment, a sentence for each."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes: tuple[str, ...] = tuple(mistakes)
        super().__init__("\n".join(self.mistakes))


class WrongError(Exception):
    """What is wrong with a value and what would be right; the message follows the value's name."""


_SHOWN_CHARACTERS = 40
_SHOWN_INTEGER = 10**18


def shown(value: object) -> str:
    """Return a value as its file has it, short enough for any terminal."""
    if isinstance(value, str):
        dots = "…" if len(value) > _SHOWN_CHARACTERS else ""
        return f'"{printable(value[:_SHOWN_CHARACTERS])}{dots}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        # Python refuses to write a number of thousands of digits, which hexadecimal TOML may hold.
        return str(value) if abs(value) < _SHOWN_INTEGER else "a huge number"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return "a table"
    return "an array" if isinstance(value, list) else "a date or time"


def shown_key(key: str) -> str:
    """Return a key, without quotes if TOML needs none."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]{1,40}", key) else shown(key)


def printable(text: str) -> str:
    """Return `text` with all unprintable characters escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


_ENVIRONMENT_ONLY = {
    "POLYGON_API_KEY": "api_key apikey key token secret polygon_api_key massive_api_key",
    "DATABASE_URL": (
        "database database_url db postgres postgresql conninfo dsn password"
        " db_host db_port db_name db_user db_password"
    ),
    bus.VARIABLE: bus.MISTAKEN_KEYS,
}
"""Keys that people put into a settings file, by the variable to set instead."""


def unknown(key: str, known: list[str]) -> str:
    """Return why `key` is wrong, and which setting was probably meant."""
    for variable, keys in _ENVIRONMENT_ONLY.items():
        if key.lower() in keys.split():
            file = f"{variable}_FILE to the path of a file that holds it"
            return f"does not belong in the file; set {variable} in the environment, or {file}"
    import difflib  # noqa: PLC0415  only a mistake needs it

    close = difflib.get_close_matches(key[:_SHOWN_CHARACTERS].lower(), known, n=1)
    right = f"did you mean {close[0]}" if close else f"known here: {', '.join(known)}"
    return f"is not a setting; {right}"
