"""The database's errors, as sentences that name the address in use."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from asset_sync.errors import AssetSyncError, ExitCode
from asset_sync.secret import Secret

DriverError: TypeAlias = psycopg2.Error
"""Whatever psycopg2 raises, be it the fault of the server, a statement or its data."""

SERVER_ERRORS = (
    psycopg2.OperationalError,
    psycopg2.InterfaceError,
    psycopg2.errors.ReadOnlySqlTransaction,
    psycopg2.errors.IdleInTransactionSessionTimeout,
)
"""What psycopg2 raises if the server is the cause, and not a statement or its data."""


class DatabaseError(AssetSyncError):
    """The database cannot be used; the message says why and what to do."""

    exit_code = ExitCode.DATABASE


class NotInitialisedError(DatabaseError):
    """The server answers, but its schema is missing, too old, too new, or not what is needed."""


class EmbeddedError(DatabaseError):
    """The embedded PostgreSQL cannot be used; the message says why and what to do instead."""


# --- the address ------------------------------------------------------------------------------


class Address(NamedTuple):
    """Where a database is, without the password."""

    hosts: tuple[tuple[str, str], ...]
    """Each host, or the directory of its socket, and its port."""
    database: str
    role: str
    options: Mapping[str, str]
    """The rest of the address, without secrets: `sslmode` and the like."""

    def __str__(self) -> str:
        """Name database and server, for a sentence."""
        places = " or ".join(_place(host, port) for host, port in self.hosts)
        return f'"{self.database}" at {places}'

    def url(self) -> str:
        """Return the URL, as psql, libpq and SQLAlchemy read it."""
        from urllib.parse import quote, urlencode  # noqa: PLC0415  # only one command needs it

        options = dict(self.options)
        [(host, port), *more] = self.hosts
        where = ""
        if more or not host or host.startswith(("/", "@")):  # several, or a socket
            if host:
                options["host"] = ",".join(host for host, _ in self.hosts)
            if {port for _, port in self.hosts} != {_PORT}:
                options["port"] = ",".join(port for _, port in self.hosts)
        else:
            where = _place(host, port)
        asked = urlencode(options, safe="/,", quote_via=quote)
        return (
            f"postgresql://{quote(self.role, safe='')}@{where}/{quote(self.database, safe='')}"
            f"{'?' if asked else ''}{asked}"
        )


_PORT = "5432"


def address_of(conninfo: Secret, environ: Mapping[str, str] = os.environ) -> Address:
    """Return where libpq connects to, including its `PG*` variables.

    Raises DatabaseError if it is not an address. Service files are not read.
    """
    from getpass import getuser  # noqa: PLC0415  # only an error and one command need it

    with errors_as_sentences(conninfo):
        given = psycopg2.extensions.parse_dsn(conninfo.reveal())
    parts = {
        **{key: environ[name] for key, name in _LIBPQ.items() if environ.get(name)},
        **{key: str(value) for key, value in given.items() if value},
    }
    hosts = parts.pop("host", parts.get("hostaddr", "")).split(",")
    ports = parts.pop("port", _PORT).split(",")
    role = parts.pop("user", "") or getuser()
    return Address(
        tuple(zip(hosts, ports if len(ports) == len(hosts) else ports * len(hosts), strict=False)),
        parts.pop("dbname", role),
        role,
        {key: value for key, value in parts.items() if key not in _SECRET_PARTS},
    )


# The variables that libpq reads for parts missing from the address.
_LIBPQ = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "dbname": "PGDATABASE",
    "user": "PGUSER",
    "service": "PGSERVICE",
    "sslmode": "PGSSLMODE",
}

# The options that libpq itself marks as secret (the `*` in PQconninfoOption.dispchar).
_SECRET_PARTS = {
    "password",
    "sslpassword",
    "oauth_client_secret",
    "scram_client_key",
    "scram_server_key",
}


def _place(host: str, port: str) -> str:
    if not host:
        return "the local socket" + (f" of port {port}" if port != _PORT else "")
    if host.startswith("/"):
        return f"{host} (port {port})"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# --- sentences --------------------------------------------------------------------------------


@contextmanager
def errors_as_sentences(conninfo: Secret | None = None) -> Iterator[None]:
    """Turn each error of psycopg2 into a DatabaseError that says what to do."""
    try:
        yield
    except psycopg2.Error as error:
        raise DatabaseError(explanation(error, conninfo)) from None  # its text may hold the address


def is_transient(error: psycopg2.Error) -> bool:
    """Return whether a server's error may be gone at the next try.

    True for lost connections and restarts, time-outs, locks, deadlocks, conflicts and too many
    connections; false for a full disk, a standby, or a PgBouncer that allows no transactions.
    """
    code = error.pgcode or ""
    return (
        isinstance(error, SERVER_ERRORS)
        and (code[:2] in {"", "08", "40", "57"} or code in {"25P03", "53300", "55P03"})
        and _STATEMENT_MODE not in str(error)
    )


# The classes of SQLSTATE that do not depend on the data: connection, transaction state, rights,
# catalogue, conflicts, syntax and names, resources, locks, the operator, the system.
_INDEPENDENT_OF_DATA = frozenset(
    ("", "08", "0A", "25", "28", "3D", "3F", "40", "42", "53", "55", "57", "58", "F0")
)


def refuses_data(error: psycopg2.Error) -> bool:
    """Return whether the database refused a statement because of its data.

    Examples: checks, ranges, a missing partition, and what a trigger raises. The database may
    accept another row.
    """
    return (error.pgcode or "")[:2] not in _INDEPENDENT_OF_DATA


def servers_words(error: psycopg2.Error) -> str:
    """Return a sentence with the server's own reason for refusing a row, without its values."""
    said = re.sub(r': ".*|"[^"]*" (?=is out of range)', "", error.diag.message_primary or "")
    return f"The database refuses its data ({error.pgcode}: {said})."


def explanation(error: psycopg2.Error, conninfo: Secret | None = None) -> str:
    """Return a sentence that says what happened, without libpq's text, which may hold secrets.

    `conninfo` is the address in use: the sentence names its host, port, database, role and source.
    """
    source = (conninfo.source if conninfo is not None else "") or "DATABASE_URL"
    message = error.diag.message_primary
    if error.pgcode in _REFUSALS:
        return _REFUSALS[error.pgcode].format(message, source=source)
    text = str(error)
    if _STATEMENT_MODE in text:
        return (
            "PgBouncer is in statement mode, in which no transaction is possible: set pool_mode = "
            f"transaction (or session) for this database, or connect to PostgreSQL itself "
            f"({source})."
        )
    lost = isinstance(error, psycopg2.OperationalError) and (error.pgcode or "")[:2] in _LOST
    if error.pgcode and not lost:
        return f"The database refused a statement ({error.pgcode}: {message})."
    if isinstance(error, psycopg2.ProgrammingError):
        return f"{source} is not an address that PostgreSQL understands."
    meaning = next((known for part, known in _CONNECTION_TROUBLE if part in text), message)
    if conninfo is None:
        return f"The database is not reachable{f': {meaning}' if meaning else ''}."
    address = _address_without_secret(conninfo)
    which = f"The database {address}" if address is not None else "The database"
    what = "is not reachable"
    if address is not None and any(part in text for part in _ACCESS_DENIED):
        what = f'refuses the role "{address.role}"'
    origin = f" (from {conninfo.source})" if conninfo.source else ""
    advice = f"Check {source}, and that the server runs."
    if address is None:
        advice = f"Check {source}: @ : / and % in a password are written as %40 %3A %2F %25."
    return f"{which} {what}{origin}{f': {meaning}' if meaning else ''}. {advice}"


def name_of(conninfo: Secret | None) -> str:
    """Return the database's name and server, and the setting or file that they come from."""
    if conninfo is None:
        return "the embedded PostgreSQL"
    address = _address_without_secret(conninfo)
    return f"{address or 'a server'} (from {conninfo.source})"


def _address_without_secret(conninfo: Secret) -> Address | None:
    """Return the address, None if its other parts may hold a part of the password.

    They do if a password with an @ or a slash is not encoded.
    """
    try:
        address = address_of(conninfo)
    except DatabaseError:
        return None
    names = [address.database, address.role, *(host for host, _ in address.hosts)]
    plain = all(port.isdecimal() for _, port in address.hosts) and all(
        name.isprintable() and "@" not in name for name in names
    )
    return address if plain else None


# A part of PgBouncer's error for a transaction if pool_mode is `statement`.
_STATEMENT_MODE = "not allowed in statement pooling mode"

# The classes of SQLSTATE that mean that there is no session: connection, authorisation, unknown
# database, too many connections, the operator.
_LOST = {"", "08", "28", "3D", "53", "57"}

# Refused statements for which the user can do something, by SQLSTATE.
_REFUSALS = {
    "3F000": "The database lacks a schema ({}): run `asset-sync db init`.",
    "42P01": "The database lacks a table ({}): run `asset-sync db init`.",
    "42501": "The database's role may not do this ({}): grant it the right.",
    "25006": "The database is read-only ({}; a standby?): point {source} to the primary.",
    "40001": "The database's transactions conflicted with each other too often ({}).",
    "40P01": "The database's transactions conflicted with each other too often ({}).",
    "53100": "The database's disk is full ({}): make room there.",
    "53200": "The database is out of memory ({}).",
    "55P03": "The database did not get a lock in time ({}): another transaction holds it.",
    "57014": "The database did not answer in time ({}).",
}

_REFUSED_OPTION = (
    "it refuses an option of the session (see PGTZ, PGDATESTYLE, PGOPTIONS, and `options` in "
    "the address)"
)

# What libpq says when it cannot connect, and what the user should know.
_CONNECTION_TROUBLE = (
    ("password authentication failed", "the role or its password is wrong"),
    ("no password supplied", "it wants a password: set DB_PASSWORD, or put it into DATABASE_URL"),
    ("root certificate", "the root certificate to verify it with is missing (see sslrootcert)"),
    ("no pg_hba.conf entry", "its pg_hba.conf does not allow this host, role and database"),
    ('FATAL:  role "', "there is no such role"),
    ('FATAL:  database "', "there is no such database: `createdb` makes one"),
    ("permission denied for database", "the role may not connect to it: grant connect"),
    ("could not translate host name", "the host's name is not known"),
    ("Connection refused", "nothing listens at that host and port"),
    ("No such file or directory", "no server listens on that socket"),
    ("timeout expired", "it did not answer in time"),
    ("too many clients", "it has no free connection"),
    ("too many connections", "it has no free connection"),
    ("remaining connection slots", "it has no free connection"),
    ("no more connections allowed", "it has no free connection"),  # PgBouncer
    ("invalid value for parameter", _REFUSED_OPTION),
    ("unrecognized configuration parameter", _REFUSED_OPTION),
    ("starting up", "it is just starting up"),
    ("shutting down", "it is shutting down"),
    ("SSL", "the encrypted connection failed (see sslmode)"),
    ("server closed the connection", "it closed the connection"),
    ("terminating connection", "it closed the connection"),
)

# Those that mean that the server answers, but rejects this role.
_ACCESS_DENIED = (
    "password authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    'FATAL:  role "',
    "permission denied for database",
)
