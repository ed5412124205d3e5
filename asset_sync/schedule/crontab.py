"""The user's crontab, in which asset-sync changes only its own marked block.

The table is handled as bytes: it may have any encoding and any line ends.
"""

import re

from asset_sync.errors import AssetSyncError
from asset_sync.schedule.programs import Ended, run

BEGIN, END = "# BEGIN asset-sync", "# END asset-sync"

_BLOCK = re.compile(
    rb"^# BEGIN asset-sync\b[^\n]*\n(?:.*\n)*?# END asset-sync\b[^\n]*(?:\n|\Z)", re.MULTILINE
)
_MARKER = re.compile(rb"^# (?:BEGIN|END) asset-sync\b", re.MULTILINE)

# What `crontab` of Debian, Red Hat, BSD and BusyBox prints if there is no table.
_NO_TABLE = ("no crontab", "can't open")


class CrontabError(AssetSyncError):
    """The crontab cannot be read, changed or written; nothing was changed."""


def read() -> bytes:
    """Return the user's table, empty if there is none. Raises CrontabError."""
    listed = _crontab("-l")
    if listed.code == 0:
        return listed.out
    if any(words in listed.error.lower() for words in _NO_TABLE):
        return b""
    raise CrontabError(f"The crontab cannot be read: `crontab -l` {listed.reason}.")


def write(table: bytes) -> None:
    """Install the table as the user's, and read it back. Raises CrontabError."""
    installed = _crontab("-", given=table)
    if installed.code != 0:
        raise CrontabError(
            f"cron rejects the new table: `crontab -` {installed.reason}. The old one stays."
        )
    if read() != table:
        raise CrontabError(
            "`crontab -` accepted the new table, but `crontab -l` prints another one: check it."
        )


def with_block(table: bytes, block: bytes) -> bytes:
    """Return the table with the block in its earlier block's place, or else at the end."""
    before, after = _around_block(table)
    if before and not before.endswith(b"\n"):
        before += b"\n"  # cron ignores, or rejects, a last line without one
    return before + block + after


def without_block(table: bytes) -> bytes:
    """Return the table without asset-sync's block."""
    return b"".join(_around_block(table))


def _around_block(table: bytes) -> tuple[bytes, bytes]:
    blocks = list(_BLOCK.finditer(table))
    if len(_MARKER.findall(table)) != 2 * len(blocks) or len(blocks) > 1:
        raise CrontabError(
            f"The crontab's lines `{BEGIN}` and `{END}` are not one pair, so it is unclear what is"
            " asset-sync's: correct them with `crontab -e`."
        )
    if not blocks:
        return table, b""
    return table[: blocks[0].start()], table[blocks[0].end() :]


def _crontab(*arguments: str, given: bytes = b"") -> Ended:
    ended = run("crontab", *arguments, given=given)
    if ended is None:
        raise CrontabError(
            "There is no program `crontab` here: install cron (Debian: apt-get install cron), or"
            " take `asset-sync schedule systemd`."
        )
    return ended
