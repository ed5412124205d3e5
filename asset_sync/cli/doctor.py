"""`asset-sync doctor`."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from asset_sync.cli.options import (
    Common,
    Config,
    Json,
    Quiet,
    Verbose,
    common,
    exactly,
    filled,
    plain,
)
from asset_sync.errors import ExitCode

if TYPE_CHECKING:
    from asset_sync.ops.doctor import Finding


_INDENT = 9


def doctor(
    context: typer.Context,
    offline: Annotated[bool, typer.Option("--offline", help="Make no call to the API.")] = False,
    as_json: Json = False,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Look at settings, files, database, key, cron and Redis; say what is wrong and its cure.

    The key costs one call, which is told before it is made. Exit 1 if there is an error.

    Example: asset-sync doctor --offline
    """
    options = common(context, config, quiet, verbose)
    findings = []
    for finding in _examine(options, offline):
        findings.append(finding)
        if not as_json and (finding.grade != "ok" or not quiet):
            exactly(_line(finding))
    if as_json:
        exactly(json.dumps({"findings": [plain(finding) for finding in findings]}, indent=2))
    if any(finding.grade == "error" for finding in findings):
        raise typer.Exit(ExitCode.SOME_FAILED)


def _examine(options: Common, offline: bool) -> "Iterator[Finding]":
    """Go from what everything rests on to what rests on it; end where nothing more can be seen."""
    from asset_sync import database  # noqa: PLC0415
    from asset_sync.ops import doctor, doctor_jobs  # noqa: PLC0415
    from asset_sync.schedule import installed  # noqa: PLC0415
    from asset_sync.settings import SettingsError  # noqa: PLC0415
    from asset_sync.store import existing_tables  # noqa: PLC0415

    try:
        settings = options.settings()
    except SettingsError as error:
        for mistake in error.mistakes:
            yield doctor.Finding(doctor.Grade.ERROR, "settings", mistake)
        return
    yield from doctor.examine_settings(settings, os.environ)
    jobs = installed.jobs()
    sights = doctor_jobs.look(jobs, settings, os.environ)
    yield from doctor_jobs.examine(sights)
    yield from doctor_jobs.examine_monitoring(sights, settings)
    try:
        with database.raw_session(settings.conninfo) as db:
            if settings.conninfo is None:
                database.migrate(db)
            status = existing_tables.status(db, settings.assets)
            yield from doctor.examine_database(db, settings, status)
            if status.ready:
                if not offline:
                    # The jobs' key is the one that matters.
                    asked = next((one.settings for one in sights if one.settings), settings)
                    question = doctor.question_to_the_api(asked)
                    if question is not None:
                        options.say(f"Asking the API, which takes one call: GET {question}")
                    yield from doctor.examine_key(db, asked)
                yield from doctor.examine_runs(db, settings, jobs)
    except database.DatabaseError as error:
        yield doctor.Finding(doctor.Grade.ERROR, "database", str(error))
    yield from doctor.examine_redis(settings)


def _line(finding: "Finding") -> str:
    """Return a finding as a line; on a narrow terminal it goes on below its own words."""
    from asset_sync.cli.format import bold, red, yellow  # noqa: PLC0415

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
