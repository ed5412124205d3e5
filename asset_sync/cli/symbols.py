"""Symbols on a command line: which there are, and what a mistyped one may be."""

from collections.abc import Collection, Sequence
from difflib import get_close_matches

import typer


def known_symbols(
    symbols: Sequence[str], known: Collection[str], lacks: str, lists: str
) -> list[str]:
    """Return the symbols, or say which one there is not and which it may be.

    `lacks` begins the sentence ("The queue has no asset"), `lists` is the command that names all.
    """
    for symbol in symbols:
        if symbol not in known:
            near = get_close_matches(symbol.upper(), known, 1, 0.6)
            hint = f"Did you mean {near[0]}?" if near else f"`{lists}` names all."
            raise typer.BadParameter(f"{lacks} {symbol!r}. {hint}")
    return list(dict.fromkeys(symbols))
