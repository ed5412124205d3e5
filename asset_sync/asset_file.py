"""Adding assets to the settings file: what the user wrote there stays, byte for byte.

Blocks are appended, the whole is read as `settings.load` reads it, and only then does a new file
take the old one's place: whoever reads it meanwhile, or pulls the plug, has the one or the other.
"""

import errno
import fcntl
import os
import stat
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from asset_sync.assets import Asset, Level
from asset_sync.errors import AssetSyncError
from asset_sync.settings import SHIPPED_FILE, Settings, SettingsError, load, search_places

_BOM = b"\xef\xbb\xbf"
_NEW_FILE_MODE = 0o644


class AssetFileError(AssetSyncError):
    """The settings file cannot take the assets; nothing was written."""


@dataclass(frozen=True, slots=True)
class Addition:
    """What was added to which file, or would be."""

    path: Path
    blocks: str
    """As the file has them, but for its line ends."""

    copied: bool
    """Whether the file is a new copy of the shipped one, which is never changed."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the assets go."""

    path: Path
    """No link: what one leads to."""

    base: Path
    """The file whose text they follow: the same, or the shipped one."""


def preview(settings: Settings, assets: Sequence[Asset], environ: Mapping[str, str]) -> Addition:
    """Return what `add` would do, and change nothing; raises as it does about the assets."""
    with _errors_as_sentences(settings, environ):
        place = _place(settings, environ)
        _, blocks = _appended(place, assets)
        return Addition(place.path, blocks, place.base == SHIPPED_FILE)


def ensure_writable(settings: Settings, environ: Mapping[str, str]) -> None:
    """Raise as `add` would where the file could not be written, before anything is paid for."""
    with _errors_as_sentences(settings, environ):
        path = _place(settings, environ).path
        there = next(one for one in (path, *path.parents) if one.exists())
        for one in (there, path.parent) if there == path else (there,):
            if not os.access(one, os.W_OK, effective_ids=True):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def add(settings: Settings, assets: Sequence[Asset], environ: Mapping[str, str]) -> Addition:
    """Append the assets to the settings file, all or none; critical ones come last of their kind.

    Where the settings in use are the shipped ones, a copy of these with the assets becomes the
    user's own file. Two processes take turns. Raises AssetFileError, or SettingsError where an
    asset is not one that the settings may hold.
    """
    with _errors_as_sentences(settings, environ):
        path = _place(settings, environ).path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _turn(path.parent) as directory:
            place = _place(settings, environ)
            content, blocks = _appended(place, assets)
            _replace(place.path, content, directory)
        return Addition(place.path, blocks, place.base == SHIPPED_FILE)


def _place(settings: Settings, environ: Mapping[str, str]) -> _Place:
    if not settings.shipped:
        path = settings.source.resolve(strict=True)
        if not path.is_file():
            raise AssetFileError(f"{settings.source} is no ordinary file; nothing can be added.")
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
    """Return the place of the user's own file; none where the environment names no home."""
    return search_places(environ)[1:-2]


# --- The text ------------------------------------------------------------------------------------


def _appended(place: _Place, assets: Sequence[Asset]) -> tuple[bytes, str]:
    """Return the whole new content, which has been checked, and the blocks in it."""
    before = place.base.read_bytes()
    there = _checked(place.path, before)
    known = {asset.symbol: asset for asset in there.assets}
    for asset in assets:
        if (same := known.get(asset.symbol)) is not None:
            raise AssetFileError(
                f"{asset.symbol} stands in {place.path} already ({same.ticker}, {same.level});"
                " nothing was written."
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
    """Write each asset as the file has it; critical ones go to the end of their line."""
    for asset in assets:
        if asset.level is Level.CRITICAL:
            last_position += 1
            yield _block(replace(asset, position=last_position))
        else:
            yield _block(asset)


def _block(asset: Asset) -> str:
    import tomli_w  # noqa: PLC0415  # only what adds needs it

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
    return "priority_assets" if asset.level is Level.CRITICAL else "secondary_assets"


def _joined(before: bytes, blocks: str) -> bytes:
    """Append the blocks after a blank line, with the line ends that the file has."""
    try:
        added = blocks.encode()
    except UnicodeEncodeError:  # an argument's bytes that are no text come as lone surrogates
        raise AssetFileError("What is to be added is not UTF-8; nothing was written.") from None
    tail = before.removeprefix(_BOM)[-4:].replace(b"\r\n", b"\n")
    gap = b"" if tail.endswith(b"\n\n") or tail in {b"", b"\n"} else b"\n"
    if gap and not tail.endswith(b"\n"):
        gap = b"\n\n"
    added = gap + added
    return before + (added.replace(b"\n", b"\r\n") if b"\r\n" in before else added)


def _is_toml(content: bytes) -> bool:
    try:
        tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return True


def _checked(path: Path, content: bytes) -> Settings:
    """Return the settings that the file would hold; raises SettingsError, which names the file.

    The environment is left out: it makes no file right, and a secret in a pipe is read only once.
    """
    with tempfile.TemporaryDirectory(prefix="asset-sync-") as directory:
        trial = Path(directory) / path.name
        trial.write_bytes(content)
        try:
            return load(trial, {})
        except SettingsError as error:
            mistakes = [one.replace(f"{directory}/", f"{path.parent}/") for one in error.mistakes]
    raise SettingsError(mistakes)


# --- The file ------------------------------------------------------------------------------------


@contextmanager
def _turn(directory: Path) -> Iterator[int]:
    """Wait for our turn to change a file in the directory; give the directory's descriptor.

    What is locked is the directory, because the file is another one after each change.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _replace(path: Path, content: bytes, directory: int) -> None:
    """Put a new file in the place of `path`, with its mode and, where possible, its owner."""
    like = None
    if path.exists():
        with path.open("r+b") as old:  # to replace a file that is read-only would be allowed
            like = os.fstat(old.fileno())
    descriptor, new = tempfile.mkstemp(prefix=".assets-", suffix=".new", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if like is not None:
                # Only root may give a file away; its group anybody who is in it.
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
