"""Adds assets to the settings file and removes them: everything else stays, byte for byte.

The new content is first checked with `settings.load`. Then a new file replaces the old one, so
that readers, or a power failure, find either the old or the new file, complete.
"""

import errno
import fcntl
import os
import re
import stat
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from asset_sync.errors import AssetSyncError
from asset_sync.model import Asset, Level
from asset_sync.settings import SHIPPED_FILE, Settings, SettingsError, load, search_places

_BOM = b"\xef\xbb\xbf"
_ARRAYS = ("priority_assets", "secondary_assets")
_NEW_FILE_MODE = 0o644


class AssetFileError(AssetSyncError):
    """The settings file cannot be changed in this way; nothing was written."""


@dataclass(frozen=True, slots=True)
class Change:
    """The blocks that were added to a file or removed from it, or would be."""

    path: Path
    blocks: str
    """The assets' blocks, with plain line ends."""

    copied: bool
    """Whether the file is a new copy of the shipped one, which is never changed."""


@dataclass(frozen=True, slots=True)
class _Place:
    """The file that is written, and the file whose text it is made from."""

    path: Path
    """The file itself, with links resolved."""

    base: Path
    """The file whose text is changed: the same, or the shipped one."""


_Edit: TypeAlias = Callable[[_Place], tuple[bytes, str]]
"""Returns the whole new content, which has been checked, and the blocks that changed."""


def ensure_writable(settings: Settings, environ: Mapping[str, str]) -> None:
    """Raise AssetFileError if `add` could not write the file; called before any call is made."""
    with _errors_as_sentences(settings, environ):
        path = _place(settings, environ).path
        there = next(place for place in (path, *path.parents) if place.exists())
        for place in (there, path.parent) if there == path else (there,):
            if not os.access(place, os.W_OK, effective_ids=True):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def preview(settings: Settings, assets: Sequence[Asset], environ: Mapping[str, str]) -> Change:
    """Return what `add` would change, and write nothing; raises the same errors for the assets."""
    return _preview(settings, environ, lambda place: _appended(place, assets))


def add(settings: Settings, assets: Sequence[Asset], environ: Mapping[str, str]) -> Change:
    """Append the assets to the settings file, all or none; critical ones get the last positions.

    If the settings in use are the shipped ones, they are copied to the user's own file, and the
    assets are added there. Two processes wait for each other. Raises AssetFileError, or
    SettingsError for an asset that is not valid in the settings.
    """
    return _change(settings, environ, lambda place: _appended(place, assets))


def preview_removal(
    settings: Settings, symbols: Sequence[str], environ: Mapping[str, str]
) -> Change:
    """Return what `remove` would change, and write nothing; raises the same errors."""
    return _preview(settings, environ, lambda place: _without(place, symbols))


def remove(settings: Settings, symbols: Sequence[str], environ: Mapping[str, str]) -> Change:
    """Take the assets' blocks out of the settings file, all or none, as `add` put them in.

    The comment lines directly above a block go with it. Raises AssetFileError.
    """
    return _change(settings, environ, lambda place: _without(place, symbols))


def _preview(settings: Settings, environ: Mapping[str, str], edit: _Edit) -> Change:
    with _errors_as_sentences(settings, environ):
        place = _place(settings, environ)
        _, blocks = edit(place)
        return Change(place.path, blocks, place.base == SHIPPED_FILE)


def _change(settings: Settings, environ: Mapping[str, str], edit: _Edit) -> Change:
    with _errors_as_sentences(settings, environ):
        path = _place(settings, environ).path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent) as directory:
            place = _place(settings, environ)
            content, blocks = edit(place)
            _replace(place.path, content, directory)
        return Change(place.path, blocks, place.base == SHIPPED_FILE)


def _place(settings: Settings, environ: Mapping[str, str]) -> _Place:
    if not settings.shipped:
        path = settings.source.resolve(strict=True)
        if not path.is_file():
            raise AssetFileError(f"{settings.source} is no ordinary file; it cannot be changed.")
        if path == SHIPPED_FILE.resolve():
            raise AssetFileError(
                f"{settings.source} leads to the file that came with the program, which is not"
                " changed: put a copy in its place."
            )
        return _Place(path, path)
    users = _users_file(environ)
    if not users:
        raise AssetFileError(
            "The settings in use came with the program and are not changed, and there is no HOME"
            " for a copy: name a file of yours with --config."
        )
    [path] = users
    # Another process may have made it a moment ago.
    return _Place(path, path if path.exists() else SHIPPED_FILE)


def _users_file(environ: Mapping[str, str]) -> Sequence[Path]:
    """Return the place of the user's own file; none if the environment names no home."""
    return search_places(environ)[1:-2]


# --- Adding to the text --------------------------------------------------------------------------


def _appended(place: _Place, assets: Sequence[Asset]) -> tuple[bytes, str]:
    before = place.base.read_bytes()
    there = _checked(place.path, before)
    known = {asset.symbol: asset for asset in there.named}
    for asset in assets:
        if (same := known.get(asset.symbol)) is not None:
            off = ", switched off" if same in there.switched_off else ""
            raise AssetFileError(
                f"{asset.symbol} is in {place.path} already"
                f" ({same.ticker}, {same.level}{off}); nothing was written."
            )
    last = max((asset.position for asset in there.critical), default=0)
    blocks = "\n".join(_blocks(assets, last))
    content = _joined(before, blocks)
    try:
        _checked(place.path, content)
    except SettingsError as error:
        if _is_toml(before) and not _is_toml(content):
            array = _array(assets[0])
            raise AssetFileError(
                f"{place.path} has {array} = [ … ], after which TOML allows no [[{array}]]: write"
                f" each of these as a block of its own, under [[{array}]]. Nothing was written."
            ) from None
        raise SettingsError((*error.mistakes, "Nothing was written.")) from None
    return content, blocks


def _blocks(assets: Sequence[Asset], last_position: int) -> Iterator[str]:
    """Yield the block of each asset; critical ones get the next positions."""
    for asset in assets:
        if asset.level is Level.CRITICAL:
            last_position += 1
            yield _block(replace(asset, position=last_position))
        else:
            yield _block(asset)


def _block(asset: Asset) -> str:
    import tomli_w  # noqa: PLC0415  # only adding needs it

    row: dict[str, object] = {
        "symbol": asset.symbol,
        "polygon_ticker": asset.ticker,
        "asset_type": asset.asset_type.value,
    }
    if asset.name != asset.symbol:
        row["name"] = asset.name
    row["priority"] = asset.position or asset.level.value
    row["update_frequency_seconds"] = asset.update_frequency_seconds
    return f"[[{_array(asset)}]]\n{tomli_w.dumps(row)}"


def _array(asset: Asset) -> str:
    return _ARRAYS[0] if asset.level is Level.CRITICAL else _ARRAYS[1]


def _joined(before: bytes, blocks: str) -> bytes:
    """Append the blocks after a blank line, with the file's line ends."""
    try:
        added = blocks.encode()
    except UnicodeEncodeError:  # an argument that is not UTF-8 has lone surrogates
        raise AssetFileError("What is to be added is not UTF-8; nothing was written.") from None
    tail = before.removeprefix(_BOM)[-4:].replace(b"\r\n", b"\n")
    gap = b"" if tail.endswith(b"\n\n") or tail in {b"", b"\n"} else b"\n"
    if gap and not tail.endswith(b"\n"):
        gap = b"\n\n"
    added = gap + added
    return before + (added.replace(b"\n", b"\r\n") if b"\r\n" in before else added)


def _is_toml(content: bytes) -> bool:
    return _parsed(content) is not None


# --- Removing from the text ----------------------------------------------------------------------


def _without(place: _Place, symbols: Sequence[str]) -> tuple[bytes, str]:
    before = place.base.read_bytes()
    _checked(place.path, before)
    lines = re.findall(r"[^\n]*\n|[^\n]+", before.decode())
    removed = []
    for symbol in symbols:
        block = _block_of(place.path, lines, symbol)
        removed.append("".join(lines[block.start : block.stop]).replace("\r\n", "\n"))
        del lines[_with_blank_lines(lines, block)]
    content = "".join(lines).encode()
    if _parsed(content) != _rows_removed(_parsed(before), symbols):
        # for example if a string of several lines looks like blocks
        raise AssetFileError(
            f"{place.path} is written in a way that cannot be changed by command; remove"
            f" {', '.join(symbols)} by hand. Nothing was written."
        )
    _checked(place.path, content)
    return content, "\n".join(block.rstrip("\n") + "\n" for block in removed)


def _block_of(path: Path, lines: Sequence[str], symbol: str) -> range:
    """Return the lines of the asset: its header, its values, and the comments around them."""
    document = _parsed("".join(lines).encode()) or {}
    found = [
        (array, number)
        for array in _ARRAYS
        for number, row in enumerate(_rows(document, array))
        if row.get("symbol") == symbol
    ]
    if not found:
        raise AssetFileError(f"{symbol} is not in {path}; nothing was written.")
    [(array, number)] = found
    headers = [index for index, line in enumerate(lines) if _is_header_of(line, array)]
    if len(headers) != len(_rows(document, array)):
        raise AssetFileError(
            f"{path} has {array} = [ … ], from which nothing can be removed by command: remove"
            f" {symbol} by hand. Nothing was written."
        )
    start = headers[number]
    stop = next((i for i in range(start + 1, len(lines)) if _is_header(lines[i])), len(lines))
    last = max(i for i in range(start, stop) if not _is_blank(lines[i], or_comment=True))
    end = last + 1
    while end < stop and _is_comment(lines[end]):
        end += 1
    if end == stop and stop < len(lines):
        end = last + 1  # these comments stand directly above the next block
    while start > 0 and _is_comment(lines[start - 1]):
        start -= 1
    return range(start, end)


def _with_blank_lines(lines: Sequence[str], block: range) -> slice:
    """Return the block with the blank lines after it or, at the file's end, those before it."""
    start, end = block.start, block.stop
    while end < len(lines) and _is_blank(lines[end]):
        end += 1
    while end == len(lines) and start > 0 and _is_blank(lines[start - 1]):
        start -= 1
    return slice(start, end)


def _is_header(line: str) -> bool:
    return line.lstrip("\ufeff \t").startswith("[")


def _is_header_of(line: str, array: str) -> bool:
    pattern = rf"\ufeff?\s*\[\[\s*([\"']?){array}\1\s*\]\]\s*(#.*)?"
    return re.fullmatch(pattern, line.rstrip()) is not None


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")


def _is_blank(line: str, *, or_comment: bool = False) -> bool:
    return not line.strip() or (or_comment and _is_comment(line))


def _parsed(content: bytes) -> dict[str, object] | None:
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None


def _rows(document: Mapping[str, object], array: str) -> list[dict[str, object]]:
    rows = document.get(array, [])
    return rows if isinstance(rows, list) else []


def _rows_removed(
    document: Mapping[str, object] | None, symbols: Sequence[str]
) -> dict[str, object]:
    """Return the document without these assets."""
    wanted = dict(document or {})
    for array in _ARRAYS:
        if rows := _rows(wanted, array):
            wanted[array] = [row for row in rows if row.get("symbol") not in symbols]
            if not wanted[array]:
                del wanted[array]
    return wanted


# --- Checking ------------------------------------------------------------------------------------


def _checked(path: Path, content: bytes) -> Settings:
    """Return the settings that the file would hold; raises SettingsError, which names the file.

    The environment is ignored: it cannot make a file valid, and a secret in a pipe can be read only
    once.
    """
    with tempfile.TemporaryDirectory(prefix="asset-sync-") as directory:
        trial = Path(directory) / path.name
        trial.write_bytes(content)
        try:
            return load(trial, {})
        except SettingsError as error:
            mistakes = [
                mistake.replace(f"{directory}/", f"{path.parent}/") for mistake in error.mistakes
            ]
    raise SettingsError(mistakes)


# --- The file ------------------------------------------------------------------------------------


@contextmanager
def _locked(directory: Path) -> Iterator[int]:
    """Lock the directory while a file in it is changed; yield the directory's descriptor.

    The lock is on the directory, because each change replaces the file.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _replace(path: Path, content: bytes, directory: int) -> None:
    """Replace `path` with a new file that has its mode and, if possible, its owner."""
    like = None
    if path.exists():
        with path.open("r+b") as old:  # fails for a read-only file, which replacing would not
            like = os.fstat(old.fileno())
    descriptor, new = tempfile.mkstemp(prefix=".assets-", suffix=".new", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if like is not None:
                # Only root may change the owner; the group may be any of the user's own.
                for owner in ((-1, like.st_gid), (like.st_uid, -1)):
                    with suppress(PermissionError):
                        os.fchown(descriptor, *owner)
            os.fchmod(descriptor, stat.S_IMODE(like.st_mode) if like else _NEW_FILE_MODE)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        Path(new).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(new).unlink()
        raise
    os.fsync(directory)


@contextmanager
def _errors_as_sentences(settings: Settings, environ: Mapping[str, str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        path = next(iter(_users_file(environ))) if settings.shipped else settings.source
        raise AssetFileError(
            f"{path} cannot be changed ({error.strerror or 'no reason given'}); nothing was"
            " written. The file and its directory must be yours to write."
        ) from None
