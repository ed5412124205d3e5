"""The one family of provider errors, and the cause of each."""

# ruff: noqa: N818 - the names say what the provider did, and all are of one family
from enum import StrEnum
from typing import ClassVar

from asset_sync.errors import AssetSyncError, ExitCode


class Cause(StrEnum):
    """What has to change before the call can succeed."""

    TEMPORARY = "temporary"
    """It passes by itself: the item goes back in line and no attempt is counted."""

    ASSET = "asset"
    """This call for this asset cannot succeed: the attempt counts."""

    ACCOUNT = "account"
    """The key or its plan: it is the same for every asset."""


class ProviderError(AssetSyncError):
    """One sentence: what the provider did, for which ticker, and what to do about it.

    It never contains the key, nor more than 200 printable characters of an answer.
    """

    exit_code = ExitCode.SOME_FAILED

    cause: ClassVar[Cause]

    kind: ClassVar[str]
    """A short name for tables and metrics."""

    @property
    def reason(self) -> str:
        """The sentence without the note that a run tries again."""
        return str(self)


class RateLimited(ProviderError):
    """429: the key's calls are used up."""

    cause = Cause.TEMPORARY
    kind = "rate_limited"

    def __init__(self, retry_after_seconds: float | None, asked: str = "this call") -> None:
        wait = "a whole minute" if retry_after_seconds is None else f"{retry_after_seconds:.0f} s"
        super().__init__(
            f"The API has no calls left for this key and refused {asked};"
            f" wait {wait}, and make sure that nothing else uses the same key."
        )
        self.retry_after_seconds = retry_after_seconds
        """How long the server asks to wait, at most an hour; usually None: it did not say."""


class Unavailable(ProviderError):
    """There is no answer of a working API: 5xx, a proxy's page, or as the subclasses say."""

    cause = Cause.TEMPORARY
    kind = "unavailable"

    def __init__(self, what: str, *, tried_again: bool = True) -> None:
        """Name what happened, without a full stop, and whether a run repeats the call by itself."""
        super().__init__(f"{what}; it is tried again." if tried_again else f"{what}.")
        self._what = what
        self.tried_again = tried_again

    @property
    def reason(self) -> str:
        """The sentence without the note that a run tries again."""
        return f"{self._what}."


class NotSent(Unavailable):
    """The request was never sent: unknown host, connection refused, no TLS. No call was made."""

    kind = "not_sent"


class Unanswered(Unavailable):
    """The request was sent and no answer came: time-out, reset, half a body, 504, 522 to 524.

    The API may count the call now or when it reads it, which can be much later.
    """

    kind = "unanswered"

    def __init__(self, what: str, sent_seconds_ago: float = 0.0) -> None:
        super().__init__(what)
        self.sent_seconds_ago = sent_seconds_ago
        """How many seconds ago, at least, the request was written when this was raised."""


class KeyRefused(ProviderError):
    """401, or any refusal whose text names the API key: the API does not know the key."""

    exit_code = ExitCode.REFUSED
    cause = Cause.ACCOUNT
    kind = "key_refused"


class TimeRangeDenied(ProviderError):
    """403 or status ERROR: the plan has such data, but not of today, or not of so long ago."""

    exit_code = ExitCode.REFUSED
    cause = Cause.ACCOUNT
    kind = "range_denied"


class FeedDenied(ProviderError):
    """403 or status ERROR, or a NOT_ENTITLED row: the plan does not have this kind of data."""

    exit_code = ExitCode.REFUSED
    cause = Cause.ACCOUNT
    kind = "feed_denied"


class TickerUnknown(ProviderError):
    """404 in JSON, a NOT_FOUND row, or no row at all: the API has no such ticker."""

    cause = Cause.ASSET
    kind = "ticker_unknown"


class Unreadable(ProviderError):
    """Valid JSON that does not match the API's documentation, or without any plausible data."""

    cause = Cause.ASSET
    kind = "unreadable"


class Rejected(ProviderError):
    """400, 405, 414, 422 and other refusals that the same request would get again."""

    cause = Cause.ASSET
    kind = "rejected"
