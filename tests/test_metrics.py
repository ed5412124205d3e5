"""The metrics, read by Prometheus' own parser."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import MakeSettings, ShiftingClock
from prometheus_client.parser import text_string_to_metric_families

from asset_sync.cli import main
from asset_sync.database import Connection, query, transaction
from asset_sync.demo.server import StandIn
from asset_sync.model import Lane
from asset_sync.ops.metrics import PREFIX, exposition
from asset_sync.settings import SHIPPED_FILE, Settings, load
from asset_sync.store import ledger
from asset_sync.sync import loop


@pytest.fixture
def settings() -> Settings:
    return load(SHIPPED_FILE, {})


def samples(text: str) -> dict[str, float]:
    """Return every sample by its name and label values."""
    return {
        " ".join([one.name.removeprefix(f"{PREFIX}_"), *one.labels.values()]): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def test_the_metrics_of_a_synced_database_show_freshness_and_calls(
    db: Connection, api: StandIn, clock: ShiftingClock, make_settings: MakeSettings
) -> None:
    settings = make_settings(api)
    for lane in Lane:
        loop.run(db, settings, lane, clock=clock)
    clock.sleep(100)

    found = samples(exposition(db, settings))

    assert found["asset_staleness_seconds XAUUSD"] >= 100
    assert found["asset_update_frequency_seconds XAUUSD"] == 300
    assert found["calls_last_hour bars ok"] == 7
    [(stored,)] = query(db, "select count(*) from market_data.ohlcv_5m")
    assert found["bars_written_last_hour"] == stored > 56_000
    assert (found["slots"], found["slots_used"]) == (5, 0)
    assert found["queue_items medium waiting"] == 0
    assert found["assets_updated_last_hour priority"] == 3
    # 100 s by the test's clock, and the time for which the queue run waited for a slot.
    assert 100 <= time.time() - found["last_run_timestamp_seconds queue"] < 200
    assert found["health assets.stale"] == 0
    assert 0 <= found["asset_data_age_seconds BTCUSD"] < 600
    assert found["asset_data_open_seconds BTCUSD"] == found["asset_data_age_seconds BTCUSD"]
    asked, expected = found["history_asked_bars"], found["history_expected_bars"]
    assert 0 < found["history_bars"] <= asked < expected
    assert found["history_hole_bars never_asked"] == expected - asked
    assert found["history_hole_bars asked_empty"] >= 0
    assert found["history_calls_left"] > 0
    assert found["history_spare_calls_per_day"] > 1000


def test_the_lag_is_a_metric_once_enough_was_measured(db: Connection, settings: Settings) -> None:
    with transaction(db) as cursor:
        for number in range(20):
            ledger.note_lag(cursor, "free", "forex", number)
        ledger.note_lag(cursor, "free", "crypto", 5)
    found = samples(exposition(db, settings))

    assert found["lag_seconds forex free 0.5"] == 9.5
    assert found["lag_seconds forex free 0.95"] > 18
    assert found["lag_measurements forex free"] == 20
    assert found["lag_measurements crypto free"] == 1
    assert not [name for name in found if name.startswith("lag_seconds crypto")]


def test_the_metrics_of_a_new_database_leave_out_what_is_not_known(
    db: Connection, settings: Settings
) -> None:
    found = samples(exposition(db, settings))

    assert found["health batch.priority.seconds_since_run"] == 2
    assert "last_run_timestamp_seconds priority" not in found
    assert "queue_oldest_item_seconds low" not in found


def test_every_metric_has_a_help_a_type_our_prefix_and_a_unit(
    db: Connection, settings: Settings
) -> None:
    for family in text_string_to_metric_families(exposition(db, settings)):
        assert family.name.startswith("asset_sync_")
        assert family.type == "gauge"
        assert family.documentation.endswith(".")
        assert "_ms" not in family.name, "Prometheus counts in seconds"


def test_the_number_of_series_stays_small_if_many_assets_fail(
    db: Connection, settings: Settings
) -> None:
    per_asset = 4 * len(settings.assets)

    assert len(samples(exposition(db, settings))) < per_asset + 50


def run(monkeypatch: pytest.MonkeyPatch, url: str, *arguments: str) -> int:
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setattr(sys, "argv", ["asset-sync", "metrics", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_file_is_replaced_as_a_whole_and_the_collector_can_read_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "asset_sync.prom"
    target.write_text("old")

    with target.open() as reader:
        assert run(monkeypatch, url, "--output", str(target)) == 0
        assert reader.read() == "old", "who has it open reads a whole file"

    assert samples(target.read_text())["slots"] == 5
    assert target.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [target], "nothing else is left there"


def test_a_pipe_is_written_to_and_not_replaced(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        assert run(monkeypatch, url, "--output", str(pipe)) == 0
        assert samples(read.result())["slots"] == 5
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_device_is_written_to_and_not_replaced(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pseudo-terminal is a device that every user may create and break without harm."""
    controller, terminal = os.openpty()
    device = Path(os.ttyname(terminal))
    link = tmp_path / "device"
    link.symlink_to(device)

    def shown() -> str:
        text = b""
        with suppress(OSError):  # when no process has the terminal open any more
            while part := os.read(controller, 4096):
                text += part
        return text.decode()

    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(shown)
        assert run(monkeypatch, url, "--output", str(link)) == 0
        assert device.is_char_device()
        assert link.is_symlink()
        os.close(terminal)
        assert samples(read.result().replace("\r", ""))["slots"] == 5
    os.close(controller)


def test_the_file_behind_a_link_is_replaced_and_the_link_stays(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, link = tmp_path / "asset_sync.prom", tmp_path / "link"
    link.symlink_to(target)

    assert run(monkeypatch, url, "--output", str(link)) == 0

    assert link.is_symlink()
    assert samples(target.read_text())["slots"] == 5


def test_a_file_that_cannot_be_written_is_reported_in_one_sentence(
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, url, "--output", str(tmp_path / "no" / "such.prom")) == 2

    told = capsys.readouterr().err
    assert "cannot be written (No such file or directory)" in told
    assert len(told.splitlines()) == 1


def test_if_the_client_is_missing_the_sentence_says_what_to_install(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "asset_sync.ops.metrics", None)

    assert run(monkeypatch, url) == 2
    assert "asset-sync[metrics]" in capsys.readouterr().err
