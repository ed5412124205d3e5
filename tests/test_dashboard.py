"""The dashboard and the alerts use only what `metrics` prints."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import MakeSettings, ShiftingClock
from prometheus_client.parser import text_string_to_metric_families

from asset_sync import queue
from asset_sync.database import Connection, transaction
from asset_sync.demo.server import StandIn
from asset_sync.model import Feed, Lane
from asset_sync.ops import health
from asset_sync.ops.metrics import exposition
from asset_sync.settings import SHIPPED_FILE, load
from asset_sync.store import ledger
from asset_sync.store.ledger import LEAST_LAGS
from asset_sync.sync import loop

DOCS = Path(__file__).parent.parent / "docs"
DASHBOARD = json.loads((DOCS / "grafana-dashboard.json").read_text())
ALERTS = DOCS / "prometheus-alerts.yml"

# Prometheus adds this label to every sample.
OF_PROMETHEUS = {"instance"}


def targets() -> Iterator[tuple[str, str]]:
    """Each expression of the dashboard with its legend."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]


def selectors(expression: str) -> list[tuple[str, dict[str, str]]]:
    """Return the metrics of an expression with the labels that it selects."""
    return [
        (name, dict(re.findall(r'(\w+)="([^"]*)"', matchers)))
        for name, matchers in re.findall(r"(asset_sync_\w+)(?:\{([^}]*)\})?", expression)
    ]


@pytest.fixture
def told(
    db: Connection, api: StandIn, clock: ShiftingClock, make_settings: MakeSettings
) -> dict[str, dict[str, set[str]]]:
    """The values of each metric's labels, from a database in which each metric has a sample."""
    settings = make_settings(api)
    for lane in Lane:
        loop.run(db, settings, lane, clock=clock)
    with transaction(db) as cursor:
        for _ in range(LEAST_LAGS):
            ledger.note_lag(cursor, "free", "forex", 60.0)
    clock.sleep(301)
    wanted = [queue.Wanted(asset, Feed.BARS) for asset in settings.assets]
    queue.enqueue(db, wanted, settings.queue)
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(exposition(db, settings)):
        assert family.samples, f"{family.name} has no sample"
        labels = found.setdefault(family.name, {})
        for sample in family.samples:
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


def test_the_dashboard_shows_every_metric_and_no_other(
    told: dict[str, dict[str, set[str]]],
) -> None:
    shown = {name for expression, _ in targets() for name, _ in selectors(expression)}

    assert shown == set(told)


def test_dashboard_and_alerts_use_only_existing_labels(
    told: dict[str, dict[str, set[str]]],
) -> None:
    alerts = re.findall(r"^ +expr: (.+)$", ALERTS.read_text(), re.MULTILINE)
    assert alerts
    for expression in [*(expression for expression, _ in targets()), *alerts]:
        assert selectors(expression)
        for name, labels in selectors(expression):
            for label in labels.keys() - OF_PROMETHEUS:
                assert labels[label] in told[name][label]


def test_each_legend_uses_labels_of_its_own_expression(
    told: dict[str, dict[str, set[str]]],
) -> None:
    for expression, legend in targets():
        [*_, (name, _)] = selectors(expression)
        assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= set(told[name])
        if "max(" not in expression and "sum(" not in expression:
            assert len(re.findall(r"\{\{", legend)) == len(told[name]), "no two series look alike"


def test_the_dashboard_can_be_imported_with_any_prometheus() -> None:
    [given] = DASHBOARD["__inputs"]
    source, host = DASHBOARD["templating"]["list"]
    panels = DASHBOARD["panels"]

    assert DASHBOARD["schemaVersion"] == 38, "that of Grafana 10, which later ones raise themselves"
    assert (given["type"], given["pluginId"]) == ("datasource", "prometheus")
    assert source["current"]["value"] == f"${{{given['name']}}}"
    assert selectors(host["query"]["query"]) == [("asset_sync_slots", {})]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for part in [host, *panels, *(target for panel in panels for target in panel["targets"])]:
        assert part["datasource"] == {"type": "prometheus", "uid": f"${{{source['name']}}}"}
    for expression, _ in targets():
        assert all(labels["instance"] == "$instance" for _, labels in selectors(expression))


def test_no_panel_of_the_dashboard_overlaps_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        place = {
            (at["x"] + right, at["y"] + down) for right in range(at["w"]) for down in range(at["h"])
        }
        assert max(x for x, _ in place) < 24
        assert not place & taken, panel["title"]
        taken |= place


def test_the_alerts_name_every_check_of_health(db: Connection) -> None:
    comment = ALERTS.read_text().split("groups:")[0]

    checks = {check.name for check in health.examine(db, load(SHIPPED_FILE, {})).checks}

    assert checks == set(
        re.findall(r"\b(?:api|assets|batch|clock|data|history|queue)\.[a-z_.]+[a-z]", comment)
    ) - {"assets.toml"}


# --- promtool ---------------------------------------------------------------------------------


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    return found


def run(*command: str, directory: Path) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_every_expression(promtool: str, tmp_path: Path) -> None:
    rules = [{"record": "shown", "expr": expression} for expression, _ in targets()]
    (tmp_path / "rules.yml").write_text(  # JSON is valid YAML
        json.dumps({"groups": [{"name": "dashboard", "rules": rules}]})
    )

    run(promtool, "check", "rules", "rules.yml", str(ALERTS), directory=tmp_path)


def test_the_expected_alerts_fire_and_no_others(
    db: Connection, promtool: str, tmp_path: Path
) -> None:
    """Prometheus reads the metrics of a database without a run for half an hour."""
    told = {
        f'{sample.name}{{check="{check}",instance="gold"}}': f"{sample.value:.0f}x30"
        for family in text_string_to_metric_families(exposition(db, load(SHIPPED_FILE, {})))
        for sample in family.samples
        for check in [sample.labels.get("check")]
        if check
    }
    stopped = 'asset_sync_last_run_timestamp_seconds{command="priority",instance="gold"}'
    unhealthy, degraded = (f"batch.{lane}.seconds_since_run" for lane in ("priority", "queue"))
    tests = [
        fired(
            told,
            f'AssetSyncUnhealthy",check="{unhealthy}",instance="gold",severity="critical',
            f'AssetSyncDegraded",check="{degraded}",instance="gold",severity="warning',
        ),
        fired(
            {stopped: "0x30"},
            'AssetSyncOverdue",command="priority",instance="gold",severity="critical',
            'AssetSyncAbsent",severity="critical',
        ),
    ]
    (tmp_path / "tests.yml").write_text(json.dumps({"rule_files": [str(ALERTS)], "tests": tests}))

    run(promtool, "test", "rules", "tests.yml", directory=tmp_path)


def fired(series: dict[str, str], *alerts: str) -> dict[str, object]:
    """Return a test for promtool: after half an hour of this, exactly these alerts fire."""
    expected = [
        {"labels": f'ALERTS{{alertstate="firing",alertname="{alert}"}}', "value": 1}
        for alert in alerts
    ]
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": told} for name, told in series.items()],
        "promql_expr_test": [
            {"expr": 'ALERTS{alertstate="firing"}', "eval_time": "30m", "exp_samples": expected}
        ],
    }
