"""How a provider is reached."""

from typing import NamedTuple

from asset_sync.secret import Secret


class Access(NamedTuple):
    """A provider's address, the key for it, and the time limits of a call."""

    base_url: str
    key: Secret
    connect_timeout_seconds: float
    read_timeout_seconds: float
    """The longest silence within an answer."""
    call_timeout_seconds: float
    """The whole call."""
