"""`asset-sync health`."""

import json
import sys
from datetime import UTC
from typing import TYPE_CHECKING

import typer

from asset_sync.cli.options import Config, Json, Quiet, Verbose, common, exactly, plain, wrapped
from asset_sync.cli.queue import figures

if TYPE_CHECKING:
    from asset_sync.ops.health import Health


def health(
    context: typer.Context,
    as_json: Json = False,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say whether all is well: exit 0 healthy, 1 degraded, 2 unhealthy.

    Example: asset-sync health --json
    """
    from asset_sync import database  # noqa: PLC0415
    from asset_sync.ops.health import Verdict, examine, without_database  # noqa: PLC0415

    options = common(context, config, quiet, verbose)
    settings = options.settings()
    try:
        with database.session(settings.conninfo) as db:
            found = examine(db, settings)
    except database.DatabaseError as error:
        found = without_database(error)
    if as_json:
        exactly(json.dumps(_as_json(found), indent=2))
    elif not options.quiet or found.status is not Verdict.HEALTHY:
        exactly(_text(found))
    raise typer.Exit(list(Verdict).index(found.status))


def _text(found: "Health") -> str:
    from asset_sync.cli.format import bold, red, short_moment, table, yellow  # noqa: PLC0415

    paint = {"healthy": bold, "degraded": yellow, "unhealthy": red}
    checks = [
        [
            paint[one.verdict](one.verdict.value) if one.verdict != "healthy" else "ok",
            one.name,
            "-" if one.value is None else f"{one.value:,.0f}",
            "-" if one.threshold is None else f"{one.threshold:,.0f}",
        ]
        for one in found.checks
    ]
    jobs = [
        [
            f"sync {one.command}",
            short_moment(one.last_run_at) if one.last_run_at else "never",
            short_moment(one.next_run_at) if one.next_run_at else "-",
            red("overdue") if one.overdue else "on time",
        ]
        for one in found.jobs
    ]
    reasons = [f"{one.name}: {one.about}" for one in found.checks if one.verdict != "healthy"]
    parts = [
        paint[found.status](found.status.value),
        table(["verdict", "check", ">value", ">threshold"], checks, spare=[">threshold"]),
    ]
    if jobs:
        parts.append(table(["job", "last run (UTC)", "next expected", ""], jobs))
    if reasons:
        parts.append(wrapped("\n".join(reasons), sys.stdout))
    return "\n\n".join(parts)


def _as_json(found: "Health") -> dict[str, object]:
    last = found.last_priority_update
    return {
        "status": found.status.value,
        "jobs": {one.command: plain(one) for one in found.jobs},
        "queue": figures(found.levels) if found.levels else None,
        "last_priority_update": last.astimezone(UTC).isoformat() if last else None,
        "api_calls_remaining": found.api_calls_remaining,
        "checks": [one._asdict() for one in found.checks],
    }
