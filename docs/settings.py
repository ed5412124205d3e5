"""Writes `docs/settings.md` and the shipped `assets.toml` from the declared settings.

`make reference`; a test fails where the files differ from what this makes.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from textwrap import wrap

from asset_sync.provider.plan import Plan
from asset_sync.settings import CONFIG_VARIABLE, SECRET_VARIABLES, SHIPPED_FILE, search_places
from asset_sync.settings.kinds import SecretKind
from asset_sync.settings.sections import (
    TABLES,
    Addresses,
    AssetBlock,
    DatabaseParts,
    Setting,
    declared,
)

PAGE = Path(__file__).parent / "settings.md"
WIDTH, COMMENT_COLUMN = 100, 36


def main() -> None:
    """Write both files."""
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")


def files() -> dict[Path, str]:
    """Return what each file shall hold."""
    return {PAGE: page(), SHIPPED_FILE: shipped_file()}


# --- docs/settings.md ----------------------------------------------------------------------------


def page() -> str:
    """Return the reference of all settings."""
    return "\n".join(
        (
            "<!-- Made by docs/settings.py from asset_sync/settings/sections.py: change that, and",
            "     run `make reference`. -->",
            "",
            "# Settings",
            "",
            paragraph(
                "Settings stand in a file, `assets.toml`, and in the environment, which wins. All"
                " have a default; a mistake in any of them ends a command with exit code 2 and a"
                " sentence for each mistake."
            ),
            "## Which file is read",
            "",
            "The first of these that exists; with `-v` a run says which:",
            "",
            *(f"{number}. {place}" for number, place in enumerate(places(), start=1)),
            "",
            paragraph(
                "A file that every account may write is refused. So is a `./assets.toml` that"
                " belongs to another account (not root, nor the one that called `sudo`) or that its"
                " group may write, unless it is named: settings say which server gets the key. The"
                " file may have 1 MiB, which holds some 7,000 assets."
            ),
            "## In the file",
            "",
            *(line for name, section in TABLES.items() for line in table(name, section)),
            "## Per asset",
            "",
            paragraph(
                "`[[priority_assets]]` are fetched in each cycle, before all others."
                " `[[secondary_assets]]` take turns for the calls that are left."
            ),
            "| key | default | may be | meaning |",
            "|---|---|---|---|",
            *(
                row(code(key), default_of(one), one.kind.must_be, one.doc)
                for key, one in declared(AssetBlock).items()
            ),
            "",
            "## Only in the environment",
            "",
            paragraph(
                "A secret, here or above, may also be in a file: the variable with `_FILE`"
                " behind its name then holds the path. Secrets are in no table, log, error or"
                " process list. An empty variable counts as unset."
            ),
            "| variable | default | may be | meaning |",
            "|---|---|---|---|",
            row(code(CONFIG_VARIABLE), "see above", "a path", "The settings file."),
            *(
                row(variables(one), default_of(one), one.kind.must_be, meaning(one))
                for one in only_in_environment()
            ),
            "",
        )
    )


def table(name: str, section: type) -> Iterator[str]:
    """Give the lines on one table of the file."""
    yield from (f"### `[{name}]`", "", paragraph(section.__doc__ or ""))
    yield from ("| key | default | may be | variable | meaning |", "|---|---|---|---|---|")
    for key, one in in_file(section).items():
        yield row(code(key), default_of(one), one.kind.must_be, variables(one), meaning(one))
    yield ""


def places() -> Iterator[str]:
    """Give where the settings file is looked for."""
    yield "`--config FILE`"
    yield f"`{CONFIG_VARIABLE}`"
    here, *others, _ = search_places({"HOME": "/HOME"}, Path())
    yield f"`./{here}`"
    for place in others:
        under_home = "/HOME" in str(place)
        yield code(str(place).replace("/HOME", "~")) + (
            " (or under `XDG_CONFIG_HOME`)" if under_home else ""
        )
    yield "the one that came with the program"


def meaning(one: Setting) -> str:
    """Return a setting's sentence, with a word on secrets."""
    return f"{one.doc} A secret." if isinstance(one.kind, SecretKind) else one.doc


def variables(one: Setting) -> str:
    """Return the variables of a setting, the first of which wins."""
    return " or ".join(map(code, one.env))


def default_of(one: Setting) -> str:
    """Return what holds where nothing is set."""
    if one.left_out:
        return one.left_out
    return "needed" if one.default is ... else code(toml(one.default))


def code(text: str) -> str:
    """Return the text as code."""
    return f"`{text}`"


def row(*cells: str) -> str:
    """Return a row of a table; a dash stands for nothing."""
    return "| " + " | ".join(cell.replace("|", "\\|") or "-" for cell in cells) + " |"


def paragraph(text: str) -> str:
    """Return wrapped lines and an empty one."""
    return "\n".join(wrap(text, WIDTH, break_on_hyphens=False)) + "\n"


# --- The shipped assets.toml ---------------------------------------------------------------------

HEAD = """\
What asset-sync keeps fresh, and how. Every line below is the default; leave out what you do not \
change. The first of these that exists is read: {places}.

Secrets do not belong here. They come from the environment: {secrets}; or from a file whose path \
stands in the same variable with _FILE behind its name. Without a database configured, an embedded \
PostgreSQL keeps the data.

docs/settings.md has every setting with what it may be.
"""

ARRAYS = {
    "priority_assets": "Fetched in each cycle, before all others.",
    "secondary_assets": "Fetched with the calls that priority assets leave. The same keys.",
}


def shipped_file() -> str:
    """Return the file with every default; its assets stay those that it has."""
    head = HEAD.format(
        places=", ".join(places()).replace("`", ""), secrets=", ".join(SECRET_VARIABLES)
    )
    lines = [line for part in head.split("\n\n") for line in (*comment(part), "#")][:-1]
    for name, section in TABLES.items():
        lines += ["", *comment(section.__doc__ or ""), f"[{name}]"]
        for key, one in in_file(section).items():
            lines += assignment(key, one)
    assets = tomllib.loads(SHIPPED_FILE.read_text(encoding="utf-8"))
    for array, sentence in ARRAYS.items():
        lines += ["", *comment(sentence)]
        if array == "priority_assets":
            lines += ["#", *asset_keys()]
        for asset in assets[array]:
            lines += ["", f"[[{array}]]", *(f"{key} = {toml(asset[key])}" for key in asset)]
    return "\n".join(lines) + "\n"


def assignment(key: str, one: Setting) -> Iterator[str]:
    """Give a setting with its comment, behind it where there is room; an example is off."""
    shown = one.default if one.example is None else one.example
    line = f"{key} = {toml(shown)}" if one.example is None else f"# {key} = {toml(shown)}"
    text = one.doc
    if one.kind.must_be.startswith("one of "):
        text = f"{text[:-1]}: {one.kind.must_be}."
    if one.left_out not in {"", "none"}:
        text += f" Default: {one.left_out}."
    if one.env:
        text += f" (Or {', '.join(one.env)}.)"
    if len(line) >= COMMENT_COLUMN:
        yield from comment(text)
        yield line
        return
    for part in comment(text, WIDTH - COMMENT_COLUMN):
        yield f"{line:<{COMMENT_COLUMN}}{part}"
        line = ""


def asset_keys() -> Iterator[str]:
    """Give a comment on each key of an asset."""
    width = max(map(len, declared(AssetBlock))) + 2
    for key, one in declared(AssetBlock).items():
        text = f"{one.doc[:-1]}: {one.kind.must_be}."
        if default_of(one) != "needed":
            text += f" Default: {default_of(one)}."
        name = key
        for part in comment(text, WIDTH - width - 2):
            yield f"#   {name:<{width}}{part[2:]}"
            name = ""


def comment(text: str, width: int = WIDTH) -> list[str]:
    """Return the text as comment lines."""
    plain = text.replace("`", "").strip()
    return [f"# {line}" for line in wrap(plain, width - 2, break_on_hyphens=False)]


# --- Both ----------------------------------------------------------------------------------------


def in_file(section: type) -> Mapping[str, Setting]:
    """Return the settings of a section that the file may hold."""
    return {key: one for key, one in declared(section).items() if one.in_file}


def only_in_environment() -> Iterator[Setting]:
    """Give the settings that the file may not hold."""
    for section in TABLES.values():
        yield from (one for one in declared(section).values() if not one.in_file)
    for section in (Addresses, DatabaseParts):
        yield from declared(section).values()


def toml(value: object) -> str:
    """Return a value as TOML has it."""
    if isinstance(value, Plan):
        return toml(value.name)
    if isinstance(value, Enum):
        return toml(value.value)
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value)


if __name__ == "__main__":
    main()
