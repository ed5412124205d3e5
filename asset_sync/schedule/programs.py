"""Runs other programs (crontab, systemctl), without asset-sync's secrets in the environment."""

import os
import shutil
import subprocess
from dataclasses import dataclass

from asset_sync.settings import SECRET_VARIABLES

_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended."""

    code: int
    out: bytes
    error: str
    """What it printed to stderr."""

    @property
    def reason(self) -> str:
        """Why it failed; the text follows the program's name in a message."""
        line = next((line.strip() for line in self.error.splitlines() if line.strip()), "")
        return f"failed ({line.rstrip('.')})" if line else f"failed (exit code {self.code})"


def run(program: str, *arguments: str, given: bytes = b"") -> Ended | None:
    """Run the program for at most 10 s, in the C locale; None if it cannot be started."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        ended = subprocess.run(  # noqa: S603  # programs of the system's, found above
            [path, *arguments],
            input=given,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
            env={name: value for name, value in os.environ.items() if name not in _SECRETS}
            | {"LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:  # for example if it waits for a bus that does not exist
        return Ended(-1, b"", f"no answer within {_SECONDS} s")
    except OSError:
        return None
    return Ended(ended.returncode, ended.stdout, ended.stderr.decode(errors="replace"))


_SECRETS = {*SECRET_VARIABLES, "PGPASSWORD"}
