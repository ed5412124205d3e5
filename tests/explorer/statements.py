"""Texts of SQL, split into statements that are planned once and run again with other values.

Planning takes three quarters of the time of small statements.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, Self

import psycopg2
from psycopg2.extensions import cursor as Cursor  # noqa: N812  # a class


class Statement(NamedTuple):
    """One statement of a text, prepared to be run again with other values."""

    sql: str
    """The statement as psycopg2 takes it."""
    names: Sequence[str] = ()
    """The names of its values in order."""
    prepare: str = ""
    """The SQL that prepares it; empty if it has to be sent unchanged."""
    execute: str = ""

    @property
    def to_send(self) -> str:
        """What runs it once it is prepared."""
        return self.execute or self.sql


class Statements:
    """The statements of all texts that were seen."""

    def __init__(self, url: str) -> None:
        self._trial = psycopg2.connect(url)
        self._trial.autocommit = True
        self._known: dict[str, Sequence[Statement]] = {}
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._trial.close()

    def of(self, sql: str, given: Mapping[str, object]) -> Sequence[Statement]:
        """Return the statements of a text; positional values are named 0, 1, …."""
        if sql not in self._known:
            places = itertools.count()
            named = re.sub(r"%s", lambda _: f"%({next(places)})s", re.sub(r"--.*", "", sql))
            parts = [part.strip() for part in named.split(";")]
            self._known[sql] = [self._planned(part, given) for part in parts if part]
        return self._known[sql]

    def _planned(self, sql: str, given: Mapping[str, object]) -> Statement:
        if not sql.startswith(("select", "with", "insert", "update", "delete")):
            return Statement(sql)
        names = tuple(dict.fromkeys(re.findall(r"%\((\w+)\)s", sql)))
        numbered = sql % {name: f"${number}" for number, name in enumerate(names, 1)}
        # The type of a value follows from its place or from the value.
        for types in (
            ["unknown"] * len(names),
            [_type(given[name]) for name in names],
            [_TYPES.get(type(given[name]), "unknown") for name in names],
        ):
            with suppress(psycopg2.Error), self._trial.cursor() as cursor:
                return self._prepared(cursor, Statement(sql, names), numbered, types)
        return Statement(sql)

    def _prepared(
        self, cursor: Cursor, statement: Statement, numbered: str, types: Sequence[str]
    ) -> Statement:
        name = f"plan_{next(self._numbers)}"
        prepare = f"prepare {name}{_listed(types)} as {numbered}"
        cursor.execute(prepare)
        cursor.execute(
            "select parameter_types::text[] from pg_prepared_statements where name = %s", (name,)
        )
        [(found,)] = cursor.fetchall()
        values = [f"%({one})s::{kind}" for one, kind in zip(statement.names, found, strict=True)]
        return statement._replace(prepare=prepare, execute=f"execute {name}{_listed(values)}")


def named(parameters: Mapping[str, object] | Sequence[object] | None) -> Mapping[str, object]:
    """Return the values of a text by name, as `Statements.of` names them."""
    if isinstance(parameters, Mapping):
        return parameters
    return {str(place): value for place, value in enumerate(parameters or ())}


_TYPES = {bool: "boolean", int: "bigint", float: "double precision", type(None): "text"}


def _type(value: object) -> str:
    return {int: "bigint", float: "double precision"}.get(type(value), "text")


def _listed(parts: Sequence[str]) -> str:
    return f"({', '.join(parts)})" if parts else ""
