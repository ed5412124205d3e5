"""Finds the settings file, checks who owns it, and reads files."""

import os
import pwd
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from asset_sync.settings.mistakes import WrongError, printable

SHIPPED_FILE = Path(__file__).parent.parent / "assets.toml"
"""The settings that are used if the user has written none."""

SYSTEM_FILE = Path("/etc/asset-sync/assets.toml")


def search_places(environ: Mapping[str, str], cwd: Path | None = None) -> tuple[Path, ...]:
    """Return the places to look for `assets.toml` if none is named, first to last."""
    return (
        (cwd or Path()) / "assets.toml",
        *(place / "asset-sync" / "assets.toml" for place in _user_config(environ)),
        SYSTEM_FILE,
        SHIPPED_FILE,
    )


def _user_config(environ: Mapping[str, str]) -> Iterator[Path]:
    # The XDG specification says to ignore a relative XDG_CONFIG_HOME.
    xdg, home = environ.get("XDG_CONFIG_HOME", ""), environ.get("HOME", "")
    if Path(xdg).is_absolute():
        yield Path(xdg)
    elif Path(home).is_absolute():
        yield Path(home) / ".config"


def refuse_what_others_write(
    source: Path, variables: Mapping[str, str], *, found_here: bool
) -> None:
    """Raise `WrongError`, with what to do, if another account may have written these settings.

    Settings name the server that gets the key, and programs to run. A file that was only found in
    the current directory (`found_here`) may come from anybody. A file that the user has named is
    refused only if every account may write it.
    """
    try:
        # The link itself, too: another account may have made it.
        seen = (source.lstat(), source.stat()) if found_here else (source.stat(),)
    except (OSError, ValueError):
        return  # `read_text` reports the error
    *_, file = seen
    if not stat.S_ISREG(file.st_mode):
        return
    path = printable(str(source))
    if file.st_mode & stat.S_IWOTH:
        raise WrongError(f"can be changed by every account: run `chmod o-w {path}`")
    if not found_here:
        return
    trusted = {0, os.geteuid()}
    caller = variables.get("SUDO_UID", "")
    if os.geteuid() == 0 and caller.isdecimal():
        trusted.add(int(caller))
    choose = f"name it, if you trust it: `--config {path}`"
    for owner in (status.st_uid for status in seen):
        if owner not in trusted:
            account = _account(owner)
            name = account.pw_name if account is not None else owner
            raise WrongError(
                f"was only found in the current directory and belongs to another account ({name}): "
                f"{choose}; or make it yours: `chown -h {os.geteuid()} {path}`"
            )
    owner_account = _account(file.st_uid)
    # With umask 002 the owner's own group, which has no other member, may write every new file.
    own_groups = {0} if owner_account is None else {0, owner_account.pw_gid}
    if file.st_mode & stat.S_IWGRP and file.st_gid not in own_groups:
        raise WrongError(f"can be changed by its group: run `chmod g-w {path}`, or {choose}")


def _account(uid: int) -> "pwd.struct_passwd | None":
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None


def read_text(path: Path, limit_bytes: int) -> str:
    """Return the file's text; raises `WrongError` with what is wrong about the file."""
    try:
        with path.open("rb") as file:
            content = file.read(limit_bytes + 1)
        if len(content) > limit_bytes:
            raise WrongError(f"is larger than {limit_bytes // 1024} KiB")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise WrongError("does not exist") from None
    except IsADirectoryError:
        raise WrongError("is a directory") from None
    except OSError as error:
        raise WrongError(f"cannot be read ({error.strerror or 'no reason given'})") from None
    except UnicodeDecodeError:
        raise WrongError("is not UTF-8") from None
    except ValueError:
        raise WrongError("is no path that can exist") from None
