"""A string that is never shown."""

from typing import Final


class Secret:
    """A string that no `repr`, log, error or format shows; only `reveal` returns it.

    Not a dataclass, because `dataclasses.asdict` would show it.
    """

    __slots__ = ("_value", "source")

    def __init__(self, value: str, source: str = "") -> None:
        """Hold the value; `source` names the setting or file that it was read from."""
        self._value: Final = value
        self.source: Final = source

    def reveal(self) -> str:
        """Return the value itself, for the code that sends it."""
        return self._value

    def fingerprint(self) -> str:
        """Return 12 hex digits of its SHA-256: enough to recognise it, too little to use it."""
        import hashlib  # noqa: PLC0415  most runs do not need it, and it loads OpenSSL

        return hashlib.sha256(self._value.encode()).hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        return self._value == other._value if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)
