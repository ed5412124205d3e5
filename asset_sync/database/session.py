"""The one connection of a command."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from asset_sync.database.connection import Connection, connect
from asset_sync.database.errors import NotInitialisedError, errors_as_sentences
from asset_sync.database.schema import migrate, require_schema
from asset_sync.secret import Secret


@contextmanager
def session(conninfo: Secret | None) -> Iterator[Connection]:
    """Open the one connection of a command; None means the embedded PostgreSQL.

    The connection is in autocommit: `query` and `transaction` begin and end transactions. The
    embedded database is initialised, or repaired, if necessary; for a server this raises
    NotInitialisedError. Raises DatabaseError for all that psycopg2 raises, here and in the block.
    """
    with raw_session(conninfo) as db:
        try:
            require_schema(db)
        except NotInitialisedError:
            if conninfo is not None:
                raise
            migrate(db)
            require_schema(db)
        yield db


@contextmanager
def raw_session(conninfo: Secret | None) -> Iterator[Connection]:
    """Open a connection as `session` does, without checking the schema."""
    with errors_as_sentences(conninfo), closing(connect(conninfo)) as db:
        yield db
