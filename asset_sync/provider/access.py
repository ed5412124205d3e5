"""How a provider is reached."""

from typing import NamedTuple

from asset_sync.secret import Secret


class Access(NamedTuple):
    """Where a provider is asked, with which key, and how long it may take."""

    base_url: str
    key: Secret
    connect_timeout_seconds: float
    read_timeout_seconds: float
    """The longest silence within an answer."""
    call_timeout_seconds: float
    """The whole call."""
