"""`asset-sync health`."""

import json
import sys
from datetime import UTC

import typer

from asset_sync import database
from asset_sync.cli.format import bold, red, short_moment, table, yellow
from asset_sync.cli.lag import lag_table, lags_as_json
from asset_sync.cli.options import Common, Json, with_common_options
from asset_sync.cli.output import out_raw, plain, wrapped
from asset_sync.cli.queue_status import figures
from asset_sync.cli.settings import settings_for
from asset_sync.ops.health import Health, Verdict, examine, without_database


@with_common_options
def health(
    options: Common,
    as_json: Json = False,
) -> None:
    """Say whether all is well: exit 0 healthy, 1 degraded, 2 unhealthy.

    Example: asset-sync health --json
    """
    settings = settings_for(options)
    try:
        with database.session(settings.conninfo) as db:
            found = examine(db, settings)
    except database.DatabaseError as error:
        found = without_database(error)
    if as_json:
        out_raw(json.dumps(_as_json(found, settings.provider.plan.name), indent=2))
    elif not options.quiet or found.status is not Verdict.HEALTHY:
        out_raw(_text(found))
    raise typer.Exit(list(Verdict).index(found.status))


def _text(found: Health) -> str:
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
    if found.lags:
        parts.append(lag_table(found.lags))
    if reasons:
        parts.append(wrapped("\n".join(reasons), sys.stdout))
    return "\n\n".join(parts)


def _as_json(found: Health, plan: str) -> dict[str, object]:
    last = found.last_priority_update
    return {
        "status": found.status.value,
        "jobs": {one.command: plain(one) for one in found.jobs},
        "queue": figures(found.levels) if found.levels else None,
        "last_priority_update": last.astimezone(UTC).isoformat() if last else None,
        "api_calls_remaining": found.api_calls_remaining,
        "lags": lags_as_json(found.lags, plan),
        "checks": [plain(one) for one in found.checks],
    }
