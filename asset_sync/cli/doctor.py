"""`asset-sync doctor`."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from asset_sync import bus, database
from asset_sync.cli.format import bold, red, yellow
from asset_sync.cli.options import Common, Json, with_common_options
from asset_sync.cli.output import filled, out_raw, plain
from asset_sync.cli.settings import settings_for
from asset_sync.errors import ExitCode
from asset_sync.ops import doctor_jobs
from asset_sync.ops.doctor import (
    Finding,
    Grade,
    examine_bus,
    examine_database,
    examine_key,
    examine_runs,
    examine_settings,
    question_to_the_api,
)
from asset_sync.schedule import installed
from asset_sync.settings import SettingsError
from asset_sync.store import existing_tables

_INDENT = 9


@with_common_options
def doctor(
    options: Common,
    offline: Annotated[bool, typer.Option("--offline", help="Make no call to the API.")] = False,
    as_json: Json = False,
) -> None:
    """Check settings, files, database, key, cron and {bus}; say how to correct each problem.

    The check of the key takes one call, which is announced first. Exit 1 if there is an error.

    Example: asset-sync doctor --offline
    """
    findings = []
    for finding in _examine(options, offline):
        findings.append(finding)
        if not as_json and (finding.grade != "ok" or not options.quiet):
            out_raw(_line(finding))
    if as_json:
        out_raw(json.dumps({"findings": [plain(finding) for finding in findings]}, indent=2))
    if any(finding.grade == "error" for finding in findings):
        raise typer.Exit(ExitCode.SOME_FAILED)


doctor.__doc__ = str(doctor.__doc__).replace("{bus}", bus.NAME)  # typer's help text


def _examine(options: Common, offline: bool) -> Iterator[Finding]:
    """First check what the other checks depend on; stop where nothing more can be checked."""
    try:
        settings = settings_for(options)
    except SettingsError as error:
        for mistake in error.mistakes:
            yield Finding(Grade.ERROR, "settings", mistake)
        return
    yield from examine_settings(settings, os.environ)
    jobs = installed.jobs()
    examined = doctor_jobs.compare(jobs, settings, os.environ)
    yield from doctor_jobs.examine(examined)
    yield from doctor_jobs.examine_monitoring(examined, settings)
    try:
        with database.raw_session(settings.conninfo) as db:
            if settings.conninfo is None:
                database.migrate(db)
            status = existing_tables.status(db, settings.assets)
            yield from examine_database(db, settings, status)
            if status.ready:
                if not offline:
                    # The jobs' key is the one that matters.
                    asked = next((one.settings for one in examined if one.settings), settings)
                    question = question_to_the_api(asked)
                    if question is not None:
                        options.say(f"Asking the API, which takes one call: GET {question}")
                    yield from examine_key(db, asked)
                yield from examine_runs(db, settings, jobs)
    except database.DatabaseError as error:
        yield Finding(Grade.ERROR, "database", str(error))
    yield from examine_bus(settings)


def _line(finding: Finding) -> str:
    """Return a finding as a line; on a narrow terminal its text continues indented."""
    text = f"{bold(finding.subject)}: {finding.text}"
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - _INDENT
        text = f"\n{' ' * _INDENT}".join(filled(text, width))
    grade = f"{finding.grade.value:<{_INDENT}}"
    if finding.grade == "error":
        grade = red(grade)
    elif finding.grade == "warning":
        grade = yellow(grade)
    return grade + text
