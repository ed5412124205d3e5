"""Bars in memory: as numpy arrays, and for each library that takes Arrow."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from asset_sync.reading.block import COUNTS, Block, numbers_of
from asset_sync.reading.errors import ReadingError, needs_the_extra
from asset_sync.store.bars_query import Every

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import polars as pl
    from arro3.core import Array, RecordBatch, RecordBatchReader, Schema
    from numpy.typing import NDArray


class Bars:
    """Bars of some assets, in the order of the symbols that were asked for, and then of time.

    polars, pandas 3, pyarrow and duckdb take this object as it is, for example
    `polars.DataFrame(bars)` or `pyarrow.table(bars)`: it has the Arrow PyCapsule interface.

    | column | type in Arrow | value |
    |---|---|---|
    | `symbol` | dictionary of strings | the asset |
    | `ts` | timestamp[us, UTC] | the start of the bar |
    | `open`, `high`, `low`, `close` | float64 | prices |
    | `volume`, `vwap` | float64 | null if the provider did not send it |
    | `trades` | int64 | null if the provider did not send it |
    | `bars` | int64 | of how many five-minute bars it is made; only in larger bars |
    | `expected` | int64 | how many there should be, null if not known; only in larger bars |
    """

    def __init__(self, symbols: Sequence[str], every: Every, blocks: Iterable[Block]) -> None:
        self.symbols = tuple(symbols)
        """The symbols that were asked for; one that has no bars in this range is among them."""
        self.every = every.value
        """How long each bar is: `5m`, `15m`, `1h`, `4h`, `1d` or `1d-ny`."""
        self.columns = ("symbol", "ts", *numbers_of(every))
        """The names of the columns."""
        self._every = every
        self._blocks = tuple(blocks)

    def __len__(self) -> int:
        return sum(len(block.ts) for block in self._blocks)

    def __repr__(self) -> str:
        return f"<{len(self):,} bars ({self.every}) of {', '.join(self.symbols)}>"

    def __arrow_c_schema__(self) -> object:
        return schema_of(self._every).__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        reader = as_arrow(self.symbols, self._every, self._blocks)
        return reader.__arrow_c_stream__(requested_schema)

    def to_numpy(self) -> "dict[str, NDArray[np.generic]]":
        """Return one array for each column.

        `symbol` holds str objects, `ts` is datetime64[us] in UTC, and all others are float64, with
        NaN for what is not known.
        """
        import numpy as np  # noqa: PLC0415  # takes 60 ms

        of_symbols = np.array(self.symbols, object)
        return {
            "symbol": of_symbols[self._codes()],
            "ts": _joined([block.ts for block in self._blocks], "M8[us]"),
            **{
                name: _joined([block.numbers[number] for block in self._blocks], "f8")
                for number, name in enumerate(numbers_of(self._every))
            },
        }

    def to_pandas(self) -> "pd.DataFrame":
        """Return a DataFrame; `symbol` is categorical, and numbers are as in `to_numpy`.

        Raises ReadingError if pandas is not installed.
        """
        try:
            import pandas as pd  # noqa: PLC0415  # takes 300 ms, and few need it
        except ModuleNotFoundError:
            raise _lacks("pandas") from None
        columns: dict[str, object] = dict(self.to_numpy())
        columns["symbol"] = pd.Categorical.from_codes(self._codes(), list(self.symbols))
        columns["ts"] = pd.DatetimeIndex(columns["ts"]).tz_localize("UTC")
        return pd.DataFrame(columns)

    def to_polars(self) -> "pl.DataFrame":
        """Return a DataFrame; `symbol` is categorical. Raises ReadingError without polars."""
        try:
            import polars as pl  # noqa: PLC0415  # takes 100 ms, and few need it
        except ModuleNotFoundError:
            raise _lacks("polars") from None
        return pl.DataFrame(self)

    def _codes(self) -> "NDArray[np.int32]":
        """Return for each bar the number of its symbol."""
        import numpy as np  # noqa: PLC0415  # takes 60 ms

        numbers = [self.symbols.index(block.symbol) for block in self._blocks]
        return np.repeat(np.array(numbers, "i4"), [len(block.ts) for block in self._blocks])


def _joined(parts: "Sequence[NDArray[np.generic]]", kind: str) -> "NDArray[np.generic]":
    import numpy as np  # noqa: PLC0415  # takes 60 ms

    return np.concatenate(parts) if parts else np.empty(0, kind)


def _lacks(package: str) -> ReadingError:
    return ReadingError(f"{package} is not installed: pip install {package}")


# --- Arrow ------------------------------------------------------------------------------------


def schema_of(every: Every) -> "Schema":
    """Return the columns and their types."""
    with needs_the_extra():
        from arro3.core import DataType, Field, Schema  # noqa: PLC0415  # takes 20 ms
    kinds = {name: DataType.float64() for name in numbers_of(every)}
    kinds |= {name: DataType.int64() for name in numbers_of(every) if name in COUNTS}
    return Schema(
        [
            Field("symbol", DataType.dictionary(DataType.int32(), DataType.string())),
            Field("ts", DataType.timestamp("us", tz="UTC")),
            *(Field(name, kind) for name, kind in kinds.items()),
        ]
    )


def as_arrow(symbols: Sequence[str], every: Every, blocks: Iterable[Block]) -> "RecordBatchReader":
    """Return the blocks as a stream of Arrow, one batch each, read as the stream is."""
    schema = schema_of(every)
    from arro3.core import RecordBatchReader  # noqa: PLC0415  # see `schema_of`

    return RecordBatchReader.from_batches(schema, _batches(symbols, every, blocks, schema))


def _batches(
    symbols: Sequence[str], every: Every, blocks: Iterable[Block], schema: "Schema"
) -> "Iterator[RecordBatch]":
    import numpy as np  # noqa: PLC0415  # takes 60 ms
    from arro3.core import Array, DataType, RecordBatch  # noqa: PLC0415  # see `schema_of`

    # All batches have the same dictionary: a file of Arrow may have only one for a column.
    dictionary = Array(list(symbols), DataType.string()).cast(schema.field("symbol").type)
    for block in blocks:
        number = np.full(len(block.ts), symbols.index(block.symbol), "i4")
        columns = [
            dictionary.take(Array.from_buffer(number)),
            Array.from_buffer(block.ts.view("i8")).cast(schema.field("ts").type),
            *(
                # A cast to whole numbers makes NaN null.
                Array.from_buffer(values).cast(schema.field(name).type)
                if name in COUNTS
                else _with_nulls(values)
                for name, values in zip(numbers_of(every), block.numbers, strict=True)
            ),
        ]
        yield RecordBatch.from_arrays(columns, schema=schema)


def _with_nulls(values: "NDArray[np.float64]") -> "Array":
    """Return the values, null where they are NaN."""
    import numpy as np  # noqa: PLC0415  # takes 60 ms
    from arro3.core import Array, DataType  # noqa: PLC0415  # see `schema_of`

    known = Array.from_buffer(values)
    unknown = np.isnan(values)
    if not unknown.any():
        return known
    places = np.where(unknown, np.nan, np.arange(len(values)))
    return known.take(Array.from_buffer(places).cast(DataType.int64()))
