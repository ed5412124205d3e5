"""The kinds of settings: each kind checks a value and describes the values that it accepts."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

from asset_sync import bus, hours
from asset_sync.model import AssetType, Level
from asset_sync.provider.current import MARKETS
from asset_sync.secret import Secret
from asset_sync.settings.mistakes import WrongError, shown

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)


class Kind(Generic[_T_co]):
    """The values that a setting may have."""

    __slots__ = ("_accept", "from_text", "must_be")

    def __init__(
        self,
        must_be: str,
        accept: Callable[[object], _T_co | None],
        from_text: Callable[[str], object] = str,
    ) -> None:
        """Keep the description and the functions.

        `accept` returns the value as the settings keep it, or None for a wrong value. It raises
        `WrongError` if "it must be `must_be`" would not explain the mistake. `from_text` converts
        the text of an environment variable to the TOML type, or returns it unchanged.
        """
        self.must_be = must_be
        self.from_text = from_text
        self._accept = accept

    def check(self, value: object) -> _T_co:
        """Return the value as the settings keep it, or raise `WrongError`."""
        accepted = self._accept(value)
        if accepted is None:
            raise WrongError(f"is {shown(value)}; it must be {self.must_be}")
        return accepted


class SecretKind(Kind[Secret]):
    """A secret, which no message shows; the variable with `_FILE` at its end may name its file."""

    __slots__ = ()

    def __init__(self, must_be: str, pattern: str, otherwise: str) -> None:
        """Accept what fits `pattern`, whose group 1 is the value; `otherwise` is the mistake."""

        def accept(value: object) -> Secret:
            match = re.fullmatch(pattern, value, re.DOTALL) if isinstance(value, str) else None
            if match is None:
                raise WrongError(otherwise)
            return Secret(match[1])

        super().__init__(must_be, accept)


# --- Numbers, choices and texts ------------------------------------------------------------------


def whole(low: int, high: int) -> Kind[int]:
    """Accept a whole number from `low` to `high`."""

    def accept(value: object) -> int | None:
        # In Python true is an integer, in TOML it is not.
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        return None

    def from_text(text: str) -> object:
        return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else text

    return Kind(f"a whole number from {low} to {high}", accept, from_text)


def number(low: float, high: float) -> Kind[float]:
    """Accept a number from `low` to `high`."""

    def accept(value: object) -> float | None:
        # The range is checked before the conversion: nan is in no range, and a huge integer cannot
        # become a float.
        if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
            return float(value)
        return None

    def from_text(text: str) -> object:
        return float(text) if re.fullmatch(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?", text) else text

    return Kind(f"a number from {low} to {high}", accept, from_text)


def choice(options: Mapping[str, _T], note: str = "") -> Kind[_T]:
    """Accept one of the names and return its value; `note` ends the description."""

    def accept(value: object) -> _T | None:
        return options.get(value) if isinstance(value, str) else None

    return Kind(f"one of {_quoted(options)}{note}", accept, str.lower)


def _quoted(options: Iterable[str]) -> str:
    return ", ".join(f'"{option}"' for option in options)


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _flag_from_text(text: str) -> object:
    if text.lower() in {"true", "1", "yes", "on"}:
        return True
    return False if text.lower() in {"false", "0", "no", "off"} else text


FLAG = Kind("true or false", _flag, _flag_from_text)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


TEXT = Kind("text", _text)


def _command(value: object) -> tuple[str, ...] | None:
    if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
        words = tuple(value)
        # No process can be given a NUL, and no program has an empty name.
        if words[0].strip() and not any("\0" in word for word in words):
            return words
    return None


COMMAND = Kind(
    "an array of strings, a program and its arguments, such as"
    ' ["/usr/local/bin/tell-me"] or ["sh", "-c", "…"]',
    _command,
)

# --- What describes an asset ---------------------------------------------------------------------

SYMBOL_PATTERN = r"[A-Z0-9][A-Z0-9._-]{0,31}"


def _symbol(value: object) -> str | None:
    return value if isinstance(value, str) and re.fullmatch(SYMBOL_PATTERN, value) else None


SYMBOL = Kind(
    "1 to 32 characters of A-Z, 0-9, dot, _ and -, the first a letter or a digit", _symbol
)


def ticker(*types: AssetType) -> Kind[str]:
    """Accept the provider's ticker of an asset of one of these types."""

    def accept(value: object) -> str:
        if isinstance(value, str) and any(
            re.fullmatch(MARKETS[kind].prefix + SYMBOL_PATTERN, value) for kind in types
        ):
            return value
        right = " or ".join(
            f'a {kind} ticker begins with "{MARKETS[kind].prefix}",'
            f' such as "{_ticker_for(kind, value)}"'
            for kind in types
        )
        raise WrongError(f"is {shown(value)}; {right}")

    prefixes = ", ".join(f'"{MARKETS[kind].prefix}" and the pair for {kind}' for kind in types)
    return Kind(prefixes, accept)


def _ticker_for(kind: AssetType, value: object) -> str:
    """Return the ticker that `value` may have been meant to be, else an example."""
    pair = re.sub(r"^[A-Za-z]:|[/ _-]", "", value).upper() if isinstance(value, str) else ""
    if not re.fullmatch(SYMBOL_PATTERN, pair):
        pair = MARKETS[kind].example
    return MARKETS[kind].prefix + pair


ASSET_TYPE = choice({kind.value: kind for kind in AssetType}, " (metals are forex)")
LEVEL = choice(
    {level.value: level for level in Level if level is not Level.CRITICAL},
    " (critical assets are listed under [[priority_assets]])",
)
POSITION = whole(1, 1_000_000)
_NAME_CHARACTERS = 200


def _name(value: object) -> str | None:
    if (
        isinstance(value, str)
        and 0 < len(value.strip()) <= len(value) <= _NAME_CHARACTERS
        and not re.search(r"[\x00-\x1f\x7f-\x9f]", value)
    ):
        return value
    return None


NAME = Kind(
    f"1 to {_NAME_CHARACTERS} characters, none of them a line end or another control character",
    _name,
)


def _hours(value: object) -> str | tuple[str, ...] | None:
    if isinstance(value, str):
        return value if value in hours.NAMED else None
    if not isinstance(value, list) or not value:
        return None
    lines = [line for line in value if isinstance(line, str)]
    wrong = []
    for line in lines:
        try:
            hours.check(line)
        except hours.HoursError as error:
            wrong.append(f"{shown(line)} {error}")
    if wrong:
        raise WrongError(f"is wrong: {'; '.join(wrong)}")
    return tuple(lines) if len(lines) == len(value) else None


HOURS: Kind[str | tuple[str, ...]] = Kind(
    f"one of {_quoted(hours.NAMED)}, or an array of strings such as"
    ' ["Mon-Fri 08:00-22:00 Europe/Berlin"] or ["Sun 18:00 - Fri 17:00"]',
    _hours,
)

# --- Addresses -----------------------------------------------------------------------------------

_PORT = range(1, 65_536)


def _ports(value: object) -> str | None:
    # One for all hosts, or one for each, as in libpq.
    ports = value.split(",") if isinstance(value, str) else []
    if ports and all(re.fullmatch(r"[0-9]{1,5}", port) and int(port) in _PORT for port in ports):
        return ",".join(ports)
    return None


PORTS = Kind("a port from 1 to 65535", _ports)


def _any_host(host: str) -> bool:
    return bool(host)


def _loopback(host: str) -> bool:
    import ipaddress  # noqa: PLC0415  only http:// needs it, which is rare

    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _base_url(may_be_plain: Callable[[str], bool]) -> Kind[str]:
    """Accept a base URL; `may_be_plain` says to which hosts http:// may go.

    No sentence shows the URL: people put keys into them.
    """

    def accept(value: object) -> str:
        scheme, host = _scheme_and_host(value)
        if scheme == "http" and not may_be_plain(host):
            raise WrongError(
                "sends the key over http:// to another machine; it must begin with https://, or"
                " provider.allow_insecure_http must be true"
            )
        return str(value).rstrip("/")

    return Kind("https:// and a host; http:// only for this machine", accept)


_URL_PATTERN = r"""(?x)
    (https?)://
    (?: \[ ([0-9A-Fa-f:.]+) \] | ([A-Za-z0-9._-]+) )
    (?: : ([0-9]{1,5}) )?
    (?: / [A-Za-z0-9._~%/+-]* )?
"""


def _scheme_and_host(value: object) -> tuple[str, str]:
    # A pattern, because urlsplit accepts too much, and takes longer than all other checks together.
    match = re.fullmatch(_URL_PATTERN, value) if isinstance(value, str) else None
    if match is None or int(match[4] or 443) not in _PORT:
        raise WrongError(
            "is not a base URL; it must be https:// and a host, such as"
            ' "https://api.polygon.io", without user, query or fragment'
        )
    return match[1], match[2] or match[3].lower()


BASE_URL = _base_url(_loopback)
INSECURE_BASE_URL = _base_url(_any_host)

API_KEY = SecretKind(
    "the key and nothing else",
    r"\s*([!-~]+)\s*",
    "holds a space or another character that no key has; it must be the key and nothing else",
)
PASSWORD = SecretKind("text", r"(.+)", "is empty")
DATABASE_URL = SecretKind(
    "what begins with postgresql://, or host=… dbname=…",
    r"(postgres(?:ql)?://.*|\s*[a-z_]+\s*=.*)",
    "is no address of a PostgreSQL database; it must begin with postgresql:// or be of the form"
    " host=… dbname=…",
)
BUS_URL = SecretKind(bus.ADDRESS, bus.ADDRESS_PATTERN, bus.NO_ADDRESS)
PING_URL = SecretKind(
    "https:// (http:// only for this machine), without user and fragment",
    r"""(?x) \s* (
        (?: https:// (?: \[ [0-9A-Fa-f:.]+ \] | [A-Za-z0-9._-]+ )
          | http:// (?: localhost | 127\.[0-9.]+ | \[::1\] ) )
        (?: : [0-9]{1,5} )?
        (?: / (?: [A-Za-z0-9._~%/+:@!$&'()*,;=-] | \{command\} )* )?
        (?: \? (?: [A-Za-z0-9._~%/+:@!$&'()*,;=?-] | \{command\} )* )?
    ) \s*""",
    "is no URL to ping; it must begin with https:// (http:// only for this machine), without user"
    " and fragment, and with no placeholder but {command}",
)
