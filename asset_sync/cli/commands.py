"""Which commands there are and where each is; the file of one is imported when it runs."""

from collections import UserDict
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command


class Command(TyperCommand):
    """A command whose usage line shows required arguments without braces."""

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # of typer's own click
        """Return the parts of the usage line after the command's name."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


class Commands(UserDict[str, Any]):  # of commands, whose type is private to typer
    """The commands of a group by name, each a `module:attribute` until it is used."""

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401
        """Return the command, imported if this is the first time."""
        command = self.data[name]
        if isinstance(command, str):
            command = self.data[name] = _load(name, command)
        return command


def _load(name: str, place: str) -> object:
    module, _, attribute = place.partition(":")
    found = getattr(import_module(f"asset_sync.cli.{module}"), attribute)
    if isinstance(found, typer.Typer):  # a group that is a command itself
        return get_command(found)
    app = typer.Typer(add_completion=False)
    app.command(name, cls=Command)(found)
    return get_command(app)


def _group(name: str, help_text: str, commands: dict[str, str]) -> TyperGroup:
    group = TyperGroup(name=name, help=help_text, no_args_is_help=True)
    group.commands = Commands(commands)
    return group


COMMANDS = Commands(
    {
        "health": "health:health",
        "metrics": "metrics:metrics",
        "report": "report:report",
        "doctor": "doctor:doctor",
        "plan": "plan:plan",
        "sync": _group(
            "sync",
            "Refresh assets, within the API's limit.",
            {"priority": "sync:sync_priority", "queue": "sync:sync_queue"},
        ),
        "queue": _group(
            "queue",
            "Show and change the queue.",
            {
                "status": "queue_status:queue_status",
                "list": "queue_edit:queue_list",
                "retry": "queue_edit:queue_retry",
                "add": "queue_edit:queue_add",
                "remove": "queue_edit:queue_remove",
            },
        ),
        "runs": "runs:app",
        "history": _group(
            "history",
            "Show how complete the past is, and fetch what is missing.",
            {
                "status": "history:history_status",
                "holes": "history:history_holes",
                "fill": "history:history_fill",
            },
        ),
        "export": "export:export",
        "assets": _group(
            "assets",
            "Show and change the assets of the settings file.",
            {
                "list": "assets_list:assets_list",
                "show": "assets_show:assets_show",
                "add": "assets_edit:assets_add",
                "remove": "assets_edit:assets_remove",
                "import": "assets_import:assets_import",
                "check": "assets_check:assets_check",
            },
        ),
        "db": _group(
            "db",
            "Set up and check the database.",
            {
                "init": "db:db_init",
                "status": "db:db_status",
                "serve": "db:db_serve",
                "url": "db:db_url",
                "partition": "db_partition:db_partition",
            },
        ),
        "schedule": _group(
            "schedule",
            "Have cron or systemd start the jobs.",
            {"cron": "schedule:schedule_cron", "systemd": "schedule:schedule_systemd"},
        ),
        "demo": "demo:app",
    }
)
