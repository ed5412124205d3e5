"""What the documents say is what the program does."""

import json
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from textwrap import dedent

import pytest
from conftest import MakeSettings

from asset_sync import __version__
from asset_sync.budget.slots import Lane
from asset_sync.cli import app, health, queue_status, sync
from asset_sync.database import Connection, DatabaseError
from asset_sync.demo.server import StandIn
from asset_sync.errors import ExitCode
from asset_sync.ops.health import Check, JobStatus, examine, without_database
from asset_sync.settings import SHIPPED_FILE, VARIABLES
from asset_sync.sync.report import Report

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CRONTAB = (ROOT / "crontab.example").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()


def section(title: str, page: str = README) -> str:
    """The page from this heading to the next."""
    return page.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def first_column(text: str) -> list[str]:
    """The code in the first column of a table."""
    cells = [row.split("|")[1] for row in text.splitlines() if row.startswith("| ")]
    return [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]


def commands() -> dict[str, set[str]]:
    """Every command with its options, as the program has them."""
    found = {}
    for name, group in app.commands.items():
        subcommands = getattr(group, "commands", {})
        if not subcommands or group.invoke_without_command:  # type: ignore[attr-defined]
            found[name] = {
                option for one in group.params for option in (*one.opts, *one.secondary_opts)
            }
        for sub, command in subcommands.items():
            found[f"{name} {sub}"] = {
                option for one in command.params for option in (*one.opts, *one.secondary_opts)
            }
    return found


def test_the_readme_lists_exactly_the_commands_that_there_are() -> None:
    listed = first_column(section("See how it stands").split("| exit code")[0])

    assert sorted(listed) == sorted(f"asset-sync {name}" for name in commands())


def test_the_page_of_all_commands_is_what_the_program_says() -> None:
    made = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "commands.py")],
        capture_output=True,
        text=True,
        check=True,
    )

    page = (ROOT / "docs" / "commands.md").read_text()
    assert page == made.stdout, "`make reference` writes it anew"
    for command in commands():
        assert f"# asset-sync {command}\n" in page


def test_every_option_the_readme_names_exists() -> None:
    known = {option for options in commands().values() for option in options}
    known |= {option for one in app.params for option in (*one.opts, *one.secondary_opts)}

    named = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", section("See how it stands")))

    assert named <= known
    assert {"--dry-run", "--max-runtime", "--limit", "--json", "--config", "-q", "-v"} <= named
    assert "--log-format" in named


def test_the_readme_lists_exactly_the_exit_codes() -> None:
    table = section("See how it stands").split("| exit code")[1].split("\n\n")[0]
    listed = {int(number) for number in re.findall(r"^\| (\d+) ", table, re.MULTILINE)}
    listed |= {int(number) for number in re.findall(r"\((\d+): terminated\)", table)}

    assert listed == {int(code) for code in ExitCode}


def test_the_readme_makes_the_same_promises_as_the_page_that_shows_how_they_are_held() -> None:
    promise = re.compile(r"^\d\. \*\*(.+?)\*\*", re.MULTILINE)
    made = promise.findall(section("What it promises"))

    assert len(made) == 5
    assert made == promise.findall((ROOT / "docs" / "reliability.md").read_text())[:5]


def test_the_page_of_settings_and_the_shipped_file_are_what_the_declarations_make() -> None:
    generator = runpy.run_path(str(ROOT / "docs" / "settings.py"))

    for path, text in generator["files"]().items():
        assert path.read_text() == text, "run `make reference`"


def test_the_page_of_settings_lists_exactly_the_variables() -> None:
    named = set(re.findall(r"`([A-Z][A-Z_]+[A-Z])`", SETTINGS)) - {"XDG_CONFIG_HOME"}

    assert named == {name for name in VARIABLES if not name.endswith("_FILE")}


def test_the_page_of_settings_lists_exactly_the_settings_of_the_file() -> None:
    shipped = tomllib.loads(
        re.sub(
            r"^# (calls|period_seconds|ping_url|on_failure) =",
            r"\1 =",
            SHIPPED_FILE.read_text(),
            flags=re.MULTILINE,
        )
    )
    listed = {
        name: first_column(text)
        for name, text in re.findall(
            r"^### `\[(\w+)\]`$(.*?)(?=^##)", SETTINGS, re.MULTILINE | re.DOTALL
        )
    }

    assert listed == {
        table: list(values) for table, values in shipped.items() if isinstance(values, dict)
    }
    asset_keys = {key for asset in shipped["priority_assets"] for key in asset}
    assert set(first_column(section("Per asset", SETTINGS))) == asset_keys | {"enabled"}


def test_the_readme_names_only_settings_and_variables_that_there_are() -> None:
    text = section("Settings")

    assert set(re.findall(r"`([A-Z][A-Z_]+[A-Z])`", text)) <= set(VARIABLES)
    for table, key in re.findall(r"`([a-z_]+)\.([a-z_]+)`", text.replace("assets.toml", "")):
        assert f"`{key}`" in SETTINGS.split(f"### `[{table}]`")[1].split("\n##")[0]


def test_the_readme_names_exactly_the_keys_of_the_json(
    db: Connection, api: StandIn, make_settings: MakeSettings
) -> None:
    text = re.sub(r"\s+", " ", section("See how it stands"))
    of_sync, of_status, of_health = re.search(
        r"`sync … --json` tells (.*?)\. `queue status --json` tells (.*?)\. "
        r"`health --json` tells (.*?)\. ",
        text,
    ).groups()  # type: ignore[union-attr]
    settings = make_settings(api)
    status = queue_status._as_json(queue_status.look(db, settings))
    found = examine(db, settings)

    assert named_keys(of_sync) == set(sync._as_json(Report(1, Lane.QUEUE)))
    assert named_keys(of_status) == set(status)
    assert named_keys(of_health) == (
        set(health._as_json(found)) | set(JobStatus._fields) - {"command"} | set(Check._fields)
    )
    json.dumps(status)


def named_keys(text: str) -> set[str]:
    return set(re.findall(r"`([a-z_]+)`", text))


def command_lines(text: str) -> list[str]:
    """Each command line of ours: alone on its line, after cron's times or a prompt, or as code."""
    alone = r"^ *(?:\*/\d+ .*? +|\w*\$ )?(?:[A-Z_]+=\S+ )*(asset-sync [a-z][^#`\n]*)"
    lines = [
        *re.findall(alone, text, re.MULTILINE),
        *re.findall(r"`(asset-sync [a-z][^`]*)`", text),
    ]
    parts = (part.strip() for line in lines for part in re.split(r"&&|[;|<]", line))
    return [part for part in parts if part.startswith("asset-sync ")]


@pytest.mark.parametrize(
    "text",
    [README, CRONTAB, OPERATIONS],
    ids=["README.md", "crontab.example", "operations.md"],
)
def test_every_command_line_in_the_documents_is_one_the_program_takes(text: str) -> None:
    known = commands()

    assert command_lines(text)
    for line in command_lines(text):
        words = line.split()[1:]
        name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
        assert name in known, line
        assert {word for word in words if word.startswith("-")} <= known[name], line


def test_the_page_for_operators_says_what_to_do_at_each_check_of_health(
    db: Connection, api: StandIn, make_settings: MakeSettings
) -> None:
    looked_at = examine(db, make_settings(api)).checks
    looked_at += without_database(DatabaseError("gone")).checks

    listed = first_column(section("Alarms, and what to do at each", OPERATIONS))

    assert listed == [check.name for check in looked_at]


def test_the_page_for_operators_says_what_to_do_at_each_exit_code() -> None:
    table = section("What cron mails", OPERATIONS)
    cells = re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE)

    assert [int(code) for cell in cells for code in cell.split(", ")] == list(ExitCode)


def test_the_crontab_is_one_that_cron_takes() -> None:
    jobs = [line for line in CRONTAB.splitlines() if line and not line.startswith("#")]
    variables = [line for line in jobs if re.match(r"[A-Z_]+=", line)]

    assert {line.split("=")[0] for line in variables} >= {"PATH", "POLYGON_API_KEY_FILE"}
    assert {line.split("=")[0] for line in variables} <= {"SHELL", "PATH", *VARIABLES}
    assert [line.split(None, 5)[5] for line in jobs if line not in variables] == [
        "asset-sync sync priority -q",
        "asset-sync sync queue -q",
    ]


def test_what_the_crontab_leaves_to_choose_is_one_that_cron_takes() -> None:
    chosen = re.findall(r"^#(\S+ \S+ \S+ \S+ \S+)  (asset-sync .+)$", CRONTAB, re.MULTILINE)
    known = commands()

    assert [line.split(" | ")[1:] for _, line in chosen] == [
        *(["systemd-cat -t asset-sync"], ["systemd-cat -t asset-sync"]),
        [],
    ]
    for when, line in chosen:
        assert set(when.split()) <= {"*", "*/5"}
        words = line.split(" | ")[0].removesuffix(" 2>&1").split()[1:]
        options = {word for word in words if word.startswith("-")}
        name = " ".join(word for word in words if not word.startswith(("-", "/")))
        assert options <= known[name]
    *_, (_, metrics) = chosen
    assert metrics in README


def test_no_log_file_is_written_that_somebody_would_have_to_rotate() -> None:
    units = "".join(path.read_text() for path in (ROOT / "systemd").iterdir())

    assert not re.findall(r"^Standard(?:Output|Error)=", units, re.MULTILINE), "journald's, then"
    assert not re.findall(r">\s*[/~\w]", CRONTAB)


def test_every_test_that_the_page_on_reliability_names_is_there() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))

    named = set(re.findall(r"`(test_\w+)`", page))

    assert named
    assert named <= set(re.findall(r"^def (test_\w+)\(", tests, re.MULTILINE))


@pytest.mark.parametrize(
    "name", ["README.md", "docs/operations.md", "docs/reliability.md", "docs/settings.md"]
)
def test_every_file_and_heading_that_a_page_points_to_is_there(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        file, _, heading = target.partition("#")
        pointed_to = page.parent / file if file else page
        assert pointed_to.exists(), target
        assert not heading or heading in anchors(pointed_to.read_text()), target


def anchors(text: str) -> set[str]:
    """What a page's headings are linked by: lower case, hyphens for blanks, nothing else kept."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}


def test_nothing_shown_on_the_page_for_operators_is_wider_than_a_terminal() -> None:
    blocks = re.split(r"```(?:toml)?", OPERATIONS)[1::2]
    seen = [line for block in blocks if "$ " in block for line in dedent(block).splitlines()]

    assert len(seen) > 50
    assert [line for line in seen if len(line) > 80] == []


def test_the_changelog_has_the_shape_that_it_says_it_has() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()

    assert "## [Unreleased]" in text
    assert set(re.findall(r"^### (\w+)", text, re.MULTILINE)) <= {
        "Added",
        "Changed",
        "Deprecated",
        "Removed",
        "Fixed",
        "Security",
    }


def test_nobodys_key_password_or_host_is_in_the_repository() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    # A Polygon key is 32 letters and digits; a hash in lower-case hex is not one.
    key = re.compile(r"\b(?=\w*[A-Z])(?=\w*[a-z])(?=\w*\d)[A-Za-z0-9_]{32}\b")
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in {".svg", ".csv"} or not path.is_file():
            continue
        # A certificate for tests is made up, too, and is nothing but such letters.
        text = re.sub(r"-----BEGIN.*?-----END", "", path.read_text(), flags=re.DOTALL)
        assert not key.search(text), name


def test_the_package_says_the_version_that_it_installs_as() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "asset_sync", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == f"asset-sync {__version__}\n"
