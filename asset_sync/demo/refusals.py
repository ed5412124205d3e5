"""The API's refusals, with the API's own texts."""

from asset_sync.demo.wire import TEXT, Reply, request_id


def bad_request(sentence: str) -> Reply:
    """Refuse with 400 and a sentence."""
    return _error(400, sentence)


def no_key() -> Reply:
    """Refuse with 401 a request that names no key."""
    return _error(401, "API Key was not provided")


def unknown_key() -> Reply:
    """Refuse with 401 a key that is not valid, or no longer valid."""
    return _error(401, "Unknown API Key")


def not_entitled() -> Reply:
    """Refuse with 403 what the plan does not include, such as snapshots on a free key."""
    return _not_authorized("You are not entitled to this data.", "massive.com")


def outside_timeframe() -> Reply:
    """Refuse with 403 a range that starts before the plan's history does."""
    return _not_authorized("Your plan doesn't include this data timeframe.", "polygon.io")


def ticker_not_found() -> Reply:
    """Refuse with 404 as the reference pages do."""
    return _not_found("Ticker not found.")


def unknown_path() -> Reply:
    """Refuse with 404 as the router does, which sends no JSON."""
    return Reply(404, b"404 page not found\n", TEXT)


def rate_limited() -> Reply:
    """Refuse with 429; the API says neither how long to wait nor how much is left."""
    return _error(
        429,
        "You've exceeded the maximum requests per minute, please wait or upgrade your "
        "subscription to continue. https://polygon.io/pricing",
    )


def _error(status: int, sentence: str) -> Reply:
    return Reply(status, {"status": "ERROR", "request_id": request_id(), "error": sentence})


def _not_authorized(sentence: str, host: str) -> Reply:
    message = f"{sentence} Please upgrade your plan at https://{host}/pricing"
    return Reply(403, {"status": "NOT_AUTHORIZED", "request_id": request_id(), "message": message})


def _not_found(message: str) -> Reply:
    return Reply(404, {"status": "NOT_FOUND", "request_id": request_id(), "message": message})
