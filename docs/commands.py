"""Prints docs/commands.md: every command with its help.

`make reference` writes the page; a test fails if the page differs from the program's help.
"""

import os

os.environ["TYPER_USE_RICH"] = "0"  # text without boxes, which typer decides when it is imported

from collections.abc import Iterator

import typer
from typer.core import TyperCommand, TyperGroup

from asset_sync.cli import app

_HEAD = """\
# All commands

Made by `make reference` from the program's own help.
"""


def main() -> None:
    """Print the page."""
    print("\n".join((_HEAD, *sections(app, context_of(app, "asset-sync")))).rstrip())  # noqa: T201


def context_of(
    command: TyperCommand | TyperGroup, name: str, parent: typer.Context | None = None
) -> typer.Context:
    """Return the context in which a command's help is of the same width everywhere."""
    return typer.Context(
        command,
        parent=parent,
        info_name=name,
        terminal_width=80,
        **command.context_settings,
    )


def sections(command: TyperCommand | TyperGroup, context: typer.Context) -> Iterator[str]:
    """Give the section of a command and those of its own commands."""
    level = "##" if context.parent is None or context.parent.parent is None else "###"
    yield f"{level} {context.command_path}\n\n```text\n{context.get_help()}\n```\n"
    if isinstance(command, TyperGroup):
        for name, own in command.commands.items():
            yield from sections(own, context_of(own, name, context))


if __name__ == "__main__":
    main()
