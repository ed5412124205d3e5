"""Breaks the product in small ways, and checks that a test notices each breakage.

There is a breakage for each promise of the README and for most rows of `docs/reliability.md`. Each
is made in a copy of the repository; the working tree never changes. Run it from the repository:

    .venv/bin/python tests/mutants.py [--list] [--only WORDS]

It first runs all the tests on the unbroken copy, then one test for each breakage (two to ten
seconds each), prints a table, and exits 1 if a breakage was not noticed or could not be made.
A test is found by its name, so it may move to another file.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from asset_sync.database import embedded

REPOSITORY = Path(__file__).parents[1]
PACKAGE = "asset_sync"
MOST_SECONDS = 300
# What the tests read.
COPIED = ("asset_sync", "tests", "docs", "systemd")


class Mutant(NamedTuple):
    """One small breakage."""

    promise: str
    where: str
    """The file or directory below the package that has the old text exactly once."""
    old: str
    new: str
    test: str
    """The name of the test that must fail; after a space, words for pytest's `-k` may follow."""


MUTANTS = (
    # --- 1. never over the limit ------------------------------------------------------------------
    Mutant(
        "a slot is free one window after its call's end",
        "budget",
        "set stamped_at = now, open_seconds = ended.open_seconds, token = null",
        "set open_seconds = ended.open_seconds, token = null",
        "test_the_window_of_a_call_begins_when_it_ends",
    ),
    Mutant(
        "history leaves a slot for each item that falls due before its own is free again",
        "budget",
        "where place >= (select count(*) from slots where not live",
        "where place / 2 >= (select count(*) from slots where not live",
        "test_each_item_that_falls_due_before_the_slot_is_free_again_keeps_a_slot",
    ),
    Mutant(
        "a call without an answer holds its slot for two and a half windows",
        "budget",
        "FREEZE_WINDOWS = 1.5",
        "FREEZE_WINDOWS = 0.5",
        "test_the_slot_of_an_unanswered_call_is_free_two_and_a_half_windows_after_it_was_sent",
    ),
    Mutant(
        "no window is over the limit after a freeze of one and a half windows",
        "budget",
        "FREEZE_WINDOWS = 1.5",
        "FREEZE_WINDOWS = 0.0",
        "test_no_window_is_over_the_limit_after_an_api_freezes_and_then_reads_everything",
    ),
    Mutant(
        "the slot of a process that died counts as a call without an answer",
        "budget",
        "open_seconds = %(call_timeout)s + %(freeze)s * period_seconds",
        "open_seconds = 0",
        "test_the_slot_of_a_process_that_died_in_a_call_counts_as_sent_late_and_not_answered",
    ),
    Mutant(
        "after two calls without an answer there is one call at a time",
        "budget",
        "UNANSWERED_CALLS = 2",
        "UNANSWERED_CALLS = 9",
        "test_after_two_unanswered_calls_one_is_made_each_half_window_until_one_is_answered",
    ),
    Mutant(
        "two processes never get the same slot",
        "budget",
        "select from asset_sync.limiter for update;\n            with {_MOMENT}, {_SLOTS},",
        "select from asset_sync.limiter;\n            with {_MOMENT}, {_SLOTS},",
        "test_the_clock_is_read_after_the_limiters_row_is_locked",
    ),
    Mutant(
        "hosts with different plans: the busiest slots count",
        "budget",
        "order by held_until desc, slot limit (select calls from moment)",
        "order by held_until, slot limit (select calls from moment)",
        "test_a_smaller_limit_waits_until_few_enough_slots_are_busy",
    ),
    Mutant(
        "a call whose slot was taken over counts in the oldest slot",
        "budget",
        "where not exists (select from own)",
        "where false",
        "test_a_call_whose_slot_was_taken_over_counts_once_in_the_oldest_slot",
    ),
    Mutant(
        "a crash of the server forgets no call",
        "budget",
        "set local synchronous_commit = on;",
        "",
        "test_a_crash_forgets_no_call_even_with_synchronous_commit_off",
    ),
    Mutant(
        "a clock of the database that jumps does not break the limit",
        "budget",
        "if not jumped and not deviation:",
        "if True:",
        "test_no_window_is_over_the_limit_and_calls_continue_if_the_databases_clock_jumps",
    ),
    Mutant(
        "a host's own clock shows a jump of the database's",
        "budget",
        "if abs(apart) > TOLERANCE_SECONDS:",
        "if False:",
        "test_no_window_is_over_the_limit_and_calls_continue_if_the_databases_clock_jumps",
    ),
    Mutant(
        "a slot that is too old before its call is given back",
        "budget",
        "return left >= self._rate.call_timeout_seconds / 2",
        "return True",
        "test_a_slot_that_is_too_old_before_its_call_is_given_back",
    ),
    Mutant(
        "a 429 without a duration stops all calls for at least a minute",
        "budget",
        "max(LEAST_BLOCK_SECONDS, rate.period_seconds)",
        "rate.period_seconds",
        "test_a_429_without_a_duration_stops_all_calls_for_at_least_a_minute",
    ),
    Mutant(
        "a run waits as long as the API asks for",
        "provider",
        "return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)",
        "return None",
        "test_a_wait_that_the_server_asks_for_is_passed_on_up_to_an_hour",
    ),
    Mutant(
        "after three refusals in a row the key is used at the free plan's rate",
        "budget",
        "\nREFUSALS = 3",
        "\nREFUSALS = 30",
        "test_the_third_429_after_a_full_wait_lowers_this_keys_rate_to_the_free_plans",
    ),
    Mutant(
        "the rate of the settings is tried again after 15 minutes",
        "budget",
        "\nLOWERED_SECONDS = 900",
        "\nLOWERED_SECONDS = 90",
        "test_the_rate_of_the_settings_is_tried_again_after_15_minutes_then_less_often",
    ),
    Mutant(
        "the rate of the settings is tried again at least once a day",
        "budget",
        "MOST_LOWERED_SECONDS = 86_400",
        "MOST_LOWERED_SECONDS = 864_000",
        "test_the_rate_of_the_settings_is_tried_again_at_least_once_a_day",
    ),
    Mutant(
        "after a restore without rows no call is made for a window and a call",
        "database",
        "select now, now + make_interval(secs => %s) from clock_timestamp() as now",
        "select now, now + 0 * make_interval(secs => %s) from clock_timestamp() as now",
        "test_after_a_restore_without_rows_no_call_is_made_for_a_window_and_a_call",
    ),
    # --- 2. never idle under it -------------------------------------------------------------------
    Mutant(
        "a request that was never sent gives its slot back",
        "budget",
        "if end is CallEnd.NOT_SENT:",
        "if False:",
        "test_a_request_that_was_never_sent_gives_its_slot_back",
    ),
    Mutant(
        "a block of years lasts at most an hour",
        "budget",
        "least(blocked_until, blocked_at + greatest(interval '1 hour', 3 * period))",
        "blocked_until",
        "test_a_block_of_years_written_by_somebody_else_lasts_at_most_an_hour",
    ),
    Mutant(
        "the reservation ends after a minute if the priority run never comes",
        "budget",
        "and now < reserved_at + make_interval(secs => %(grace)s)",
        "",
        "test_the_reservation_ends_if_the_priority_run_never_comes",
    ),
    Mutant(
        "the queue leaves the next priority run its slots",
        "budget",
        "and (reserved = 0 or free_for_priority > reserved)",
        "",
        "test_from_one_window_before_a_priority_run_the_queue_leaves_it_its_slots",
    ),
    Mutant(
        "a run reserves slots for the next priority run",
        "sync",
        "(first.give_back, self._reserve_for_next_run, self._note_end)",
        "(first.give_back, self._note_end)",
        "test_the_queue_leaves_slots_for_the_next_priority_run",
    ),
    Mutant(
        "more priority assets than a window has calls are all served in one run",
        "sync",
        "windows_to_wait = (calls - 1) // self.rate.calls",
        "windows_to_wait = 0",
        "test_more_priority_assets_than_a_window_has_calls_are_all_served_in_one_run",
    ),
    Mutant(
        "a run that gets no slot before its end stops at once",
        "budget",
        "if answer.seconds > deadline - self._clock.monotonic():",
        "if deadline < self._clock.monotonic():",
        "test_a_run_that_can_get_no_slot_before_its_end_stops_at_once",
    ),
    # --- 3. nothing lost, nothing twice -----------------------------------------------------------
    Mutant(
        "a transaction that raises is rolled back",
        "database",
        'cursor.execute("rollback")',
        'cursor.execute("commit")',
        "test_a_transaction_that_raises_is_rolled_back",
    ),
    Mutant(
        "a run that lost its lease changes nothing",
        "queue",
        "and q.lease_token = held.token",
        "",
        "test_a_run_that_lost_its_lease_changes_nothing",
    ),
    Mutant(
        "a lease that has not ended is not reclaimed",
        "queue",
        "and lease_until < clock_timestamp()",
        "",
        "test_a_lease_that_has_not_ended_is_not_reclaimed",
    ),
    Mutant(
        "no item is claimed by two runs",
        "queue",
        "limit 1\n          for update of q skip locked",
        "limit 1\n          for update of q",
        "test_a_claim_skips_an_item_that_another_run_is_claiming",
    ),
    Mutant(
        "an interrupted run gives its item back",
        "sync",
        "(first.give_back, self._reserve_for_next_run, self._note_end)",
        "(self._reserve_for_next_run, self._note_end)",
        "test_an_interrupt_in_a_call_puts_the_item_back_without_the_attempt",
    ),
    Mutant(
        "an attempt counts if the item breaks its run",
        "sync",
        "except Exception:\n            held.items = ()\n",
        "except Exception:\n",
        "test_an_attempt_counts_if_the_item_breaks_its_run",
    ),
    Mutant(
        "an item that kills each of its runs becomes dead",
        "queue",
        "case when level <> 'critical' and attempts >= %(max_attempts)s",
        "case when false and attempts >= %(max_attempts)s",
        "test_an_item_that_kills_its_runs_is_dead_after_max_attempts",
    ),
    Mutant(
        "a released item waits",
        "queue",
        "not_before = clock_timestamp() + make_interval(secs => %(after)s)",
        "not_before = clock_timestamp()",
        "test_a_release_takes_the_attempt_off_and_delays_the_item",
    ),
    Mutant(
        "an answer is stored on another connection if the first is lost",
        "sync",
        "STORE_TRIES = 3",
        "STORE_TRIES = 1",
        "test_a_passing_error_is_retried_with_the_answer_already_received",
    ),
    Mutant(
        "if the answer to a commit is lost the server is asked",
        "sync",
        "if not self._was_committed(number):\n                raise",
        "if self._was_committed(number):\n                raise",
        "test_if_the_answer_to_a_statement_is_lost_the_run_finds_out_whether_it_was_committed",
    ),
    Mutant(
        "a deadlock is tried again",
        "database",
        'code[:2] in {"", "08", "40", "57"}',
        'code[:2] in {"", "08", "57"}',
        "test_a_run_survives_a_deadlock",
    ),
    Mutant(
        "a database that fails each time costs few calls",
        "sync",
        "WASTED_CALLS = 3",
        "WASTED_CALLS = 300",
        "test_an_error_that_never_passes_wastes_few_calls",
    ),
    Mutant(
        "data that the database refuses is one asset's failure",
        "database",
        '("", "08", "0A", ',
        '("", "08", "22", "23", "0A", ',
        "test_data_that_the_database_refuses_is_that_assets_failure",
    ),
    Mutant(
        "the same refusal for two assets in a row ends the run",
        "sync",
        "before[0] != symbol and",
        "before[0] == symbol and",
        "test_the_same_refusal_for_two_assets_in_a_row_ends_the_run_and_is_no_assets_failure",
    ),
    Mutant(
        "no call is made whose answer cannot be stored",
        "sync",
        "existing_tables.require_usable(self._state.db, self._state.settings.assets)",
        "pass",
        "test_no_run_makes_a_call_whose_answer_cannot_be_stored",
    ),
    Mutant(
        "two inits at once do no harm",
        "database",
        "select pg_advisory_xact_lock(hashtext('asset-sync migrations'))",
        "select 1",
        "test_two_inits_at_once_do_no_harm",
    ),
    Mutant(
        "a statement has a time limit",
        "database",
        "set local statement_timeout = ",
        "set local lock_timeout = ",
        "test_every_statement_has_a_time_limit",
    ),
    Mutant(
        "the values that a bar had before it was repaired are kept",
        "store/market.py",
        "asset.now, old.* from asset, changed join old using (ts) where %(kept)s",
        "asset.now, old.* from asset, changed join old using (ts) where false",
        "test_the_old_values_of_a_changed_bar_are_kept_each_time",
    ),
    Mutant(
        "a bar that the provider repaired is updated",
        "store",
        "is distinct from (excluded.open",
        "is not distinct from (excluded.open",
        "test_a_bar_that_the_provider_repaired_is_updated",
    ),
    Mutant(
        "a bar never overwrites a newer quote",
        "store",
        "return known is None or known > now or timestamp >= known",
        "return True",
        "test_a_bar_never_overwrites_a_newer_quote",
    ),
    Mutant(
        "no stored price has a future time",
        "store",
        "timestamp=min(price.timestamp, known[price.symbol][1])",
        "timestamp=price.timestamp",
        "test_a_price_with_a_future_time_is_stored_as_of_now_and_blocks_no_later_price",
    ),
    Mutant(
        "a stored bar with an impossible time is not the newest",
        "store",
        "and bar.ts >= timestamptz 'epoch' and bar.ts <= now()",
        "",
        "test_a_bar_with_an_impossible_time_is_not_the_newest",
    ),
    Mutant(
        "times that Python does not know are read as the nearest",
        "database",
        'if text == "-infinity" or text.endswith("BC"):',
        'if text == "-infinity":',
        "test_each_timestamp_is_read_as_the_nearest_that_python_knows",
    ),
    Mutant(
        "no run makes a call while the table of bars is copied",
        "ops/partition.py",
        "held = slots.hold(db, seconds)",
        "held = slots.hold(db, 0)",
        "test_an_interrupted_change_leaves_the_table_as_it_was",
    ),
    Mutant(
        "the calls in flight are stored before the table of bars is copied",
        "ops/partition.py",
        "        _wait_for_calls(db, settings.provider.call_timeout_seconds, clock, tell)\n",
        "",
        "test_a_call_in_flight_is_stored_first_and_runs_wait_without_an_error",
    ),
    Mutant(
        "a table with partitions has the rights of the table before",
        "store/partitioning.py",
        "    _take_rights(cursor)\n",
        "",
        "test_all_that_belongs_to_the_table_is_kept",
    ),
    Mutant(
        "views show the table with partitions",
        "store/partitioning.py",
        "    for _, statement, _ in views:\n        cursor.execute(statement)\n",
        "",
        "test_views_show_the_partitioned_table_with_their_rights",
    ),
    Mutant(
        "a run makes the partition of the next month",
        "sync/loop.py",
        "        months.make_missing_quietly(self._state.db)\n",
        "",
        "test_a_run_makes_the_partition_of_the_next_month",
    ),
    # --- 4. a call brings all it can --------------------------------------------------------------
    Mutant(
        "a call brings every bar since the last one stored",
        "sync",
        "newest - OVERLAP",
        "max(newest, now - OVERLAP)",
        "test_an_update_asks_from_a_few_bars_before_the_newest_one_to_now",
    ),
    Mutant(
        "the last bars are asked for again",
        "sync",
        "OVERLAP = 6 * BAR_LENGTH",
        "OVERLAP = 0 * BAR_LENGTH",
        "test_a_later_sync_asks_for_a_few_bars_again_and_writes_only_changed_ones",
    ),
    Mutant(
        "no more history is asked for than the plan has",
        "sync",
        "start = max(start, backfilled_to or start, earliest)",
        "start = max(start, backfilled_to or start)",
        "test_a_gap_is_asked_for_no_further_back_than_the_plans_history",
    ),
    Mutant(
        "a catch-up continues from the end of the asked range",
        "sync",
        "start = max(start, backfilled_to or start, earliest)",
        "start = max(start, earliest)",
        "test_a_catch_up_that_found_nothing_continues_from_the_end_of_the_asked_range",
    ),
    Mutant(
        "one call brings up to 250 assets",
        "model.py",
        "bulk=250",
        "bulk=25",
        "test_three_hundred_assets_take_two_calls",
    ),
    Mutant(
        "what the key was refused is tried again after a day",
        "store",
        "KEPT_HOURS = 24",
        "KEPT_HOURS = 240",
        "test_a_refusal_is_forgotten_after_a_day",
    ),
    Mutant(
        "a plan without today gets bars until yesterday",
        "sync",
        "today_denied=self.missing.today",
        "today_denied=False",
        "test_a_plan_without_today_gets_bars_until_yesterday_and_it_is_remembered",
    ),
    # --- how the queue orders ---------------------------------------------------------------------
    Mutant(
        "priority assets come first",
        "queue",
        "level <> 'critical', sort_at, symbol",
        "level = 'critical', sort_at, symbol",
        "test_the_line_lists_items_in_the_order_of_claims_critical_first",
    ),
    Mutant(
        "priority assets come in the order of the file",
        "queue",
        "level <> 'critical', sort_at, symbol",
        "level <> 'critical', sort_at desc, symbol",
        "test_critical_assets_are_served_in_the_order_of_the_file",
    ),
    Mutant(
        "each lower level counts as due later",
        "queue",
        "else {due_at} + make_interval(secs => 2 * %(aging)s)",
        "else {due_at}",
        "test_equally_old_items_are_served_by_level",
    ),
    Mutant(
        "an asset that was just refreshed is left alone",
        "queue",
        "w.frequency_seconds * 0.1",
        "w.frequency_seconds * 0",
        "test_an_asset_that_was_just_refreshed_is_not_refreshed_again_before_crons_next_start",
    ),
    Mutant(
        "the queue holds no more than its size",
        "queue",
        "place <= %(max_size)s",
        "place <= 1000000 + %(max_size)s",
        "test_assets_that_do_not_fit_are_reported_and_stay_due_and_are_enqueued_later",
    ),
    Mutant(
        "priority assets always fit into the queue",
        "queue",
        "where state = 'waiting' or level = 'critical' or place",
        "where state = 'waiting' or place",
        "test_a_critical_asset_is_enqueued_even_if_the_queue_is_full",
    ),
    Mutant(
        "an asset is dead after max_attempts failures of its own",
        "queue",
        "and q.attempts >= %(max_attempts)s and",
        "and false and",
        "test_each_failure_of_its_own_doubles_an_items_delay_and_it_is_low_and_at_last_dead",
    ),
    Mutant(
        "the delay after a failure doubles",
        "queue",
        "%(delay)s * power(2, least({strikes}, 20) - 1)",
        "%(delay)s",
        "test_each_failure_of_its_own_doubles_an_items_delay_and_it_is_low_and_at_last_dead",
    ),
    Mutant(
        "no back-off is longer than an hour",
        "queue",
        "LONGEST_BACK_OFF_SECONDS = 3600",
        "LONGEST_BACK_OFF_SECONDS = 36000",
        "test_bad_answers_make_an_item_back_off_up_to_an_hour_and_never_make_it_dead",
    ),
    Mutant(
        "an outage makes no item dead",
        "queue",
        "or {ANSWERED_WELL_AT} > q.failed_at)",
        "or true)",
        "test_while_no_other_asset_is_answered_well_no_back_off_grows_and_no_item_becomes_dead",
    ),
    Mutant(
        "a corrected ticker is tried again at once",
        "queue",
        "(cardinality(q.failed_tickers) > 0 and w.ticker <> all(q.failed_tickers))",
        "false",
        "test_a_corrected_ticker_makes_a_dead_item_wait_as_if_new",
    ),
    Mutant(
        "two hosts with different wrong tickers do not revive an item for ever",
        "queue",
        "w.ticker <> all(q.failed_tickers))",
        "w.ticker <> q.ticker)",
        "test_two_hosts_with_different_wrong_tickers_do_not_revive_an_item_for_ever",
    ),
    Mutant(
        "a run uses its own settings' ticker",
        "queue",
        "ticker = (select own.ticker from own where own.symbol = q.symbol"
        " and own.feed = q.feed),\n",
        "\n",
        "test_a_run_uses_the_ticker_of_its_own_settings",
    ),
    Mutant(
        "the higher of two hosts' levels wins",
        "queue",
        '{RANK.format(level="w.level")} < {RANK',
        '{RANK.format(level="w.level")} <> {RANK',
        "test_of_two_hosts_levels_the_higher_one_wins_and_the_item_does_not_move_back",
    ),
    Mutant(
        "an item that a run holds is not removed",
        "queue",
        "and q.state <> 'leased' returning",
        "returning",
        "test_remove_keeps_an_item_that_a_run_holds",
    ),
    Mutant(
        "without priority runs the queue serves their assets",
        "sync",
        "self.lane is Lane.PRIORITY and not self.settings.batch.priority_assets_enabled",
        "False",
        "test_if_priority_runs_are_switched_off_the_queue_serves_critical_assets_first",
    ),
    Mutant(
        "--limit ends a run",
        "sync",
        "self._limit - self._state.report.served - self._state.shared.in_work",
        "1 + self._limit - self._state.report.served - self._state.shared.in_work",
        "test_a_limit_ends_the_run",
    ),
    # --- the API ----------------------------------------------------------------------------------
    Mutant(
        "three requests in a row that could not be sent end the run",
        "sync",
        "UNSENT_CALLS = 3",
        "UNSENT_CALLS = 30",
        "test_three_requests_in_a_row_that_could_not_be_sent_end_the_run",
    ),
    Mutant(
        "a provider in trouble is asked twice a window",
        "sync",
        "\nBAD_ANSWERS = 3",
        "\nBAD_ANSWERS = 300",
        "test_an_api_that_is_odd_for_a_while_makes_no_item_dead_and_all_are_fresh_soon_after",
    ),
    Mutant(
        "a plan without bars ends the run",
        "sync",
        "NOT_IN_PLAN = 2",
        "NOT_IN_PLAN = 20",
        "test_a_plan_without_bars_ends_the_run",
    ),
    Mutant(
        "a refused key ends the run at once",
        "sync",
        "raise Stop(Ended.KEY_REFUSED,",
        "print(Ended.KEY_REFUSED,",
        "test_a_revoked_key_ends_the_run_at_once",
    ),
    Mutant(
        "a mistyped ticker is distinguished from a quiet market",
        "sync",
        "    if not exists:",
        "    if False:",
        "test_a_mistyped_ticker_costs_one_look_up_and_then_one_call_per_try",
    ),
    Mutant(
        "a firewall's 403 is not taken for a refusal of the key",
        "provider",
        'case 403 if body is not None and "status" in body:',
        "case 403:",
        "test_every_other_answer_raises_the_expected_error",
    ),
    Mutant(
        "no redirect is followed with the key",
        "provider",
        "def get_redirect_target(self",
        "def no_redirect_target(self",
        "test_a_redirect_is_never_followed",
    ),
    Mutant(
        "a list that continues on another path is not taken as complete",
        "provider",
        "if path != REFERENCE_PATH or not re.fullmatch(",
        "if not re.fullmatch(",
        "test_a_list_that_continues_on_another_path_is_not_taken_as_complete",
    ),
    Mutant(
        "an answer that is too large is not unpacked",
        "provider",
        "if len(body) > MAX_BODY_BYTES:",
        "if False:",
        "test_a_gzip_bomb_is_not_unpacked",
    ),
    Mutant(
        "an answer that drips is cut off",
        "provider",
        "with Deadline(self.call_timeout_seconds, self.may_send)",
        "with Deadline(1000.0, self.may_send)",
        "test_a_server_that_drips_cannot_hold_a_call_past_its_total_time",
    ),
    Mutant(
        "a host that was suspended sends nothing late",
        "budget",
        "send_only_if(lambda: self._clock.monotonic() < turn.until)",
        "send_only_if(lambda: True)",
        "test_a_request_is_not_sent_after_its_slots_time",
    ),
    Mutant(
        "a call ends before its slot is free again",
        "budget",
        "min(turn.until - self._clock.monotonic(), most_seconds)",
        "most_seconds",
        "test_a_call_ends_before_its_slot_would_be_free_again",
    ),
    Mutant(
        "an impossible bar is left out",
        "provider",
        "if high < low:\n",
        "if False:\n",
        "test_an_impossible_bar_is_left_out_with_its_reason_and_the_others_are_kept",
    ),
    Mutant(
        "bars of another ticker are never stored",
        "provider",
        "if named != ticker and (rows or named is not None):",
        "if False:",
        "test_bars_of_another_ticker_are_never_stored",
    ),
    Mutant(
        "an answer without bars and without a count of zero is no quiet market",
        "provider",
        "if not rows and not _says_empty(body):",
        "if False:",
        "test_an_answer_without_bars_and_without_a_count_of_zero_is_unreadable",
    ),
    # --- 5. it says what it did, and why it failed ------------------------------------------------
    Mutant(
        "exit 1 if an asset failed",
        "cli",
        "if report.failed or ",
        "if ",
        "test_exit_1_for_a_mistyped_ticker",
    ),
    Mutant(
        "exit 3 if the database is not reachable",
        "",
        "DATABASE = 3",
        "DATABASE = 5",
        "test_a_database_that_is_down_gives_one_sentence_and_exit_3",
    ),
    Mutant(
        "exit 4 if the key is refused",
        "",
        "REFUSED = 4",
        "REFUSED = 5",
        "test_a_revoked_key_ends_with_exit_4_and_is_never_shown",
    ),
    Mutant(
        "exit 70 for a bug",
        "",
        "BUG = 70",
        "BUG = 71",
        "test_a_bug_is_reported_without_a_traceback_and_without_data",
    ),
    Mutant(
        "exit 130 after Ctrl-C",
        "",
        "INTERRUPTED = 130",
        "INTERRUPTED = 131",
        "test_an_interrupted_run_says_so_in_its_last_line",
    ),
    Mutant(
        "a signal during an import is not lost",
        "cli",
        "    if _is_in_import(frame):\n",
        "    if False:\n",
        "test_a_signal_during_an_import_is_raised_when_the_import_is_over",
    ),
    Mutant(
        "a signal in a callback of Python is not lost",
        "cli",
        "        sys.unraisablehook = hear\n",
        "",
        "test_a_signal_in_a_callback_whose_exception_python_ignores_is_raised_again",
    ),
    Mutant(
        "Ctrl-C before a command begins ends the program with 130 and without a traceback",
        "",
        "os._exit(130)",
        "None",
        "test_ctrl_c_before_a_command_begins_ends_the_program_without_a_word",
    ),
    Mutant(
        "-q prints nothing about a run that succeeds",
        "cli",
        "if self._options.quiet and not _is_news(progress, severity):",
        "if False:",
        "test_quiet_prints_nothing_if_all_is_well",
    ),
    Mutant(
        "a known failure is not reported again",
        "cli",
        "        case Failed(is_news=is_news):\n            return is_news\n",
        "",
        "test_a_quiet_run_does_not_repeat_a_known_failure_and_says_when_it_is_over",
    ),
    Mutant(
        "--dry-run makes no call",
        "cli",
        "    if dry_run:\n        _plan(options, Lane.PRIORITY",
        "    if False:\n        _plan(options, Lane.PRIORITY",
        "test_a_dry_run_names_each_call_and_makes_none",
    ),
    Mutant(
        "no text shows a secret",
        "secret.py",
        'return "***"',
        "return self._value",
        "test_no_secret_is_shown_in_any_text_form_of_the_settings",
    ),
    Mutant(
        "a key that the server sends back is not shown",
        "provider",
        'said = said.replace(secret, "***")',
        "pass",
        "test_the_servers_words_are_shortened_to_one_printable_line_without_the_key",
    ),
    Mutant(
        "the key goes to no other machine without TLS",
        "settings",
        'if scheme == "http" and not may_be_plain(host):',
        "if False:",
        "test_a_mistake_in_the_environment_names_the_variable",
    ),
    Mutant(
        "settings that every account may write are refused",
        "settings",
        "if file.st_mode & stat.S_IWOTH:",
        "if False:",
        "test_a_settings_file_that_everybody_may_write_is_refused",
    ),
    Mutant(
        "the program started after a failure gets no secret",
        "ops",
        'if name not in {*SECRET_VARIABLES, "PGPASSWORD"}',
        "if name",
        "test_a_failure_starts_the_command_without_the_secrets_in_its_environment",
    ),
    Mutant(
        "a ping has the exit code",
        "ops",
        'how = f"/{ending.exit_code}" if ending.exit_code else ""',
        'how = ""',
        "test_a_failure_is_pinged_with_its_exit_code_and_last_lines",
    ),
    Mutant(
        "a Redis that is down causes one warning and no failure",
        "sync",
        "except bus.EventsError as error:",
        "except ZeroDivisionError as error:",
        "test_a_redis_that_is_down_causes_one_warning_in_a_run",
    ),
    Mutant(
        "listeners in the database get each new price",
        "store",
        'CHANNEL = "asset_update"',
        'CHANNEL = "asset_updates"',
        "test_listeners_get_each_price_after_its_commit",
    ),
    Mutant(
        "health: no priority run for two intervals is unhealthy",
        "ops",
        "OVERDUE_INTERVALS = 2",
        "OVERDUE_INTERVALS = 20",
        "test_no_priority_run_for_two_intervals_is_unhealthy",
    ),
    Mutant(
        "health: a refused key is reported after the first run that it stops",
        "ops",
        "verdict = Verdict.UNHEALTHY if refused else Verdict.HEALTHY",
        "verdict = Verdict.HEALTHY",
        "test_a_refused_key_is_reported_after_the_first_run_that_it_stops",
    ),
    Mutant(
        "health: a dead asset is reported",
        "ops",
        "Verdict.DEGRADED if dead else Verdict.HEALTHY",
        "Verdict.HEALTHY",
        "test_a_dead_item_is_reported",
    ),
    Mutant(
        "health: a stale asset is reported",
        "ops",
        "return waited > factor * frequency",
        "return waited > 1000 * factor * frequency",
        "test_an_asset_stale_beyond_three_times_its_frequency_is_named",
    ),
    Mutant(
        "the history keeps calls for 30 days",
        "store",
        "CALLS_KEPT_DAYS = 30",
        "CALLS_KEPT_DAYS = 300",
        "test_runs_are_kept_90_days_and_calls_30",
    ),
    # --- larger bars, and bars as of a moment -----------------------------------------------------
    Mutant(
        "readers: a larger bar closes with its last part",
        "database/larger_bars.py",
        "(array_agg(bar.close order by bar.ts))[count(*)]",
        "(array_agg(bar.close order by bar.ts desc))[count(*)]",
        "test_a_platforms_own_table_has_larger_bars_too",
    ),
    Mutant(
        "readers: a part without a mean price does not count in the mean",
        "database/larger_bars.py",
        "filter (where bar.volume > 0 and bar.vwap is not null)",
        "filter (where bar.volume > 0)",
        "test_a_part_without_volume_or_mean_price_does_not_count_in_the_mean",
    ),
    Mutant(
        "readers: a New York day ends at 17:00 there on each day",
        "database/larger_bars.py",
        "wall = f\"({start} at time zone {_NEW_YORK} + interval '1 day')\"",
        "return f\"({start} + interval '24 hours')\"",
        "test_every_larger_bar_says_how_many_bars_were_expected 1d-ny",
    ),
    Mutant(
        "readers: the function reads only its range",
        "database/larger_bars.py",
        "language sql stable parallel safe as $bars$",
        "language sql volatile parallel safe as $bars$",
        "test_the_function_joined_to_assets_reads_only_theirs",
    ),
    Mutant(
        "readers: a name that is taken is left alone",
        "database/larger_bars.py",
        "if found == one.comment or (found is not None and _OURS not in found):",
        "if found == one.comment:",
        "test_a_name_that_is_taken_is_left_alone_and_named",
    ),
    Mutant(
        "readers: a bar that came later was not there",
        "store/bars_query.py",
        "and (later.spans is null or not later.spans @> bar.ts)",
        "",
        "test_a_late_bar_and_a_bar_that_was_revised_twice_are_as_they_were",
    ),
    Mutant(
        "readers: a bar has the values of the moment, not those of a later revision",
        "store/bars_query.py",
        "order by symbol, ts, at\n",
        "order by symbol, ts, at desc\n",
        "test_a_late_bar_and_a_bar_that_was_revised_twice_are_as_they_were",
    ),
    Mutant(
        "readers: a moment of which nothing is kept is refused",
        "store/bars_query.py",
        "if not reaches:",
        "if False:",
        "test_moments_of_which_nothing_is_known_are_refused_with_the_first_that_is",
    ),
    Mutant(
        "readers: what is not known is null",
        "reading/bars.py",
        "return known.take(Array.from_buffer(places).cast(DataType.int64()))",
        "return known",
        "test_the_bars_are_those_that_are_stored",
    ),
    Mutant(
        "readers: a program with a wait callback gets its bars by a cursor",
        "reading/block.py",
        "read = _by_copy if can_copy() else _by_cursor",
        "read = _by_copy",
        "test_a_program_that_has_a_wait_callback_gets_the_same_bars",
    ),
    Mutant(
        "readers: a server that stops sending is given up",
        "database/copying.py",
        "if not can_read(self._reading, answer_seconds()):",
        "if not can_read(self._reading, None):",
        "test_a_server_that_stops_sending_ends_the_copy_after_the_time_for_an_answer",
    ),
    Mutant(
        "readers: a pooler that delivers no NOTIFY is named",
        "reading/prices.py",
        "                _refuse_pooler()\n",
        "                break\n",
        "test_behind_a_pooler_that_delivers_nothing_it_says_so",
    ),
    Mutant(
        "export: no half file stays",
        "reading/export.py",
        "            if _is_at(part, file):\n                part.unlink()\n",
        "",
        "test_a_signal_leaves_no_half_file",
    ),
    Mutant(
        "export: a file is replaced by a whole one",
        "reading/export.py",
        "    part = part_of(path)\n    with _locked",
        "    part = path\n    with _locked",
        "test_a_file_is_replaced_only_by_a_whole_one",
    ),
    Mutant(
        "export: a file that was renamed before it was locked is left alone",
        "reading/export.py",
        "if _is_at(part, file):  # and not",
        "if True:  # and not",
        "test_an_export_that_ends_while_another_one_begins_does_not_share_its_file",
    ),
    Mutant(
        "history: an answer is judged by what was known when its call began",
        "sync/caller.py",
        "result = apply(cursor, scope,",
        "result = apply(cursor, self._run.scope,",
        "test_a_key_that_sees_nothing_of_today_is_found_out_once_and_loses_no_asset",
    ),
    Mutant(
        "history: a refused past is tried again after a day",
        "sync/scope.py",
        "ledger.past_begins if symbol in self.missing.past_symbols else None",
        "ledger.past_begins",
        "test_one_wrong_refusal_cuts_the_past_off_for_a_day_only",
    ),
    Mutant(
        "history: weeks that are due while the API refuses them are asked later",
        "store/ledger.py",
        "then clock_timestamp() + interval '1 day' end",
        "then null end",
        "test_weeks_that_are_due_again_while_the_api_refuses_them_are_asked_a_day_later",
    ),
    Mutant(
        "history: a longer past counts from the next run on",
        "sync/coverage.py",
        "or (since if ledger.tail else None)",
        "",
        "test_a_past_that_became_longer_is_asked_for_by_the_next_run",
    ),
    Mutant(
        "export: an interrupted one continues up to the same moment",
        "reading/export.py",
        "until or min(selection.until or now, now)",
        "min(selection.until or now, now)",
        "test_an_interrupted_export_continues_up_to_the_same_moment",
    ),
    Mutant(
        "export: one that continues sees larger bars as they were when it began",
        "reading/export.py",
        "now=self._until if is_now else None",
        "now=None",
        "test_an_export_that_continues_sees_larger_bars_as_they_were_when_it_began",
    ),
    Mutant(
        "export: no link is followed",
        "reading/export.py",
        " | os.O_NOFOLLOW",
        "",
        "test_a_link_or_a_pipe_in_the_place_of_the_unfinished_file_is_not_followed",
    ),
    Mutant(
        "export: a finished one of what is stored now is made anew",
        "reading/export.py",
        "if self._selection.as_of is not None or not finished:",
        "if True:",
        "test_a_finished_export_of_what_is_stored_now_is_made_anew",
    ),
    Mutant(
        "reading: a server that ends a COPY leaves no traceback",
        "database/copying.py",
        "    sys.excepthook = print_others\n",
        "",
        "test_a_server_that_ends_the_connection_during_a_copy_leaves_no_traceback",
    ),
    Mutant(
        "export: a full disk is a sentence",
        "reading/export.py",
        "                self.error = error\n",
        "                raise\n",
        "test_a_full_disk_is_a_sentence",
    ),
    Mutant(
        "readers: other hours in the settings count at once",
        "store/expected.py",
        "where known.hours is distinct from own.name",
        "where known.hours is null",
        "test_other_hours_in_the_settings_count_at_once_and_those_of_nobody_go",
    ),
    # --- the page for people ----------------------------------------------------------------------
    Mutant(
        "the page shows what comes from outside as text",
        "cli",
        'return escape(_CONTROLS.sub("", str(value)))',
        'return _CONTROLS.sub("", str(value))',
        "test_nothing_from_outside_becomes_markup",
    ),
    Mutant(
        "the page says since when an asset is not well",
        "ops",
        'Check("assets.stale", len(stale), 0, verdict, about, symbols, since)',
        'Check("assets.stale", len(stale), 0, verdict, about, symbols)',
        "test_the_headline_names_the_fault_the_asset_and_since_when",
    ),
    Mutant(
        "the page tells weeks that were never asked from those that were",
        "ops",
        "if unasked * 2 > expected[number]:",
        "if unasked > 2 * expected[number]:",
        "test_the_weeks_of_an_asset_tell_what_was_asked_from_what_came",
    ),
    Mutant(
        "the page allows no script but its own",
        "cli",
        "script-src '{_hash(script)}'",
        "script-src 'unsafe-inline'",
        "test_the_page_allows_only_its_own_script_and_style_and_asks_nobody",
    ),
    Mutant(
        "the page knows when it is old",
        "cli",
        "old_after = every_seconds * _LATE_WRITINGS + _GRACE_SECONDS",
        "old_after = every_seconds * 1000",
        "test_a_page_that_is_not_written_any_more_turns_red chromium",
    ),
    # --- set-up -----------------------------------------------------------------------------------
    Mutant(
        "the metrics file is replaced as a whole",
        "cli",
        "_replace(path.resolve(), text, mode)",
        "path.write_text(text)",
        "test_the_file_is_replaced_as_a_whole_and_the_collector_can_read_it",
    ),
    Mutant(
        "installing changes nothing else in the crontab",
        "schedule",
        "return table[: blocks[0].start()], table[blocks[0].end() :]",
        'return table[: blocks[0].start()], b""',
        "test_installing_replaces_the_earlier_block_in_its_place",
    ),
    Mutant(
        "assets.toml loses nothing if several processes add to it at once",
        "assetfile",
        "fcntl.flock(descriptor, fcntl.LOCK_EX)",
        "pass",
        "test_the_second_process_waits_and_reads_what_the_first_wrote",
    ),
    Mutant(
        "doctor names each right that is missing",
        "database",
        '"select insert delete",',
        '"select insert",',
        "test_the_doctor_names_each_right_that_is_missing",
    ),
    Mutant(
        "plan says when it is not enough",
        "ops",
        "return self.share <= 1 and all(asset.kept for asset in self.assets)",
        "return True",
        "test_plan_says_whether_200_more_assets_fit_and_what_would_make_them_fit",
    ),
)


# --- running them ---------------------------------------------------------------------------------


def main() -> int:
    """Try the breakages asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the breakages and run nothing")
    parser.add_argument("--only", metavar="WORDS", help="those whose promise or test holds this")
    options = parser.parse_args()
    # so that the server and the copy are removed
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    words = (options.only or "").lower()
    chosen = [one for one in MUTANTS if words in one.promise.lower() or words in one.test]
    if not chosen:
        parser.error("no promise and no test holds these words")
    if options.list:
        for mutant in chosen:
            _say(f"{mutant.promise}\n    {mutant.where or PACKAGE}: {mutant.test}")
        return 0
    with _copy() as copy, _server() as url:
        bench = _Bench(copy, url)
        bench.try_unbroken([mutant.test for mutant in chosen])
        results = [(bench.verdict(mutant), mutant) for mutant in chosen]
    killed = sum(verdict == "killed" for verdict, _ in results)
    _say(f"\n{killed} of {len(results)} killed")
    for verdict, mutant in results:
        if verdict != "killed":
            _say(f"{verdict}: {mutant.promise}\n    {mutant.test}")
    return 0 if killed == len(results) else 1


class _Bench:
    """A copy of the repository, with a server for its tests."""

    def __init__(self, copy: Path, url: str) -> None:
        self._copy = copy
        self._red: set[str] = set()
        self._environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(copy),
            "PYTHONPATH": str(copy),
            # Bytecode would hide a change of the same size in the same second.
            "PYTHONDONTWRITEBYTECODE": "1",
            "TEST_DATABASE_URL": url,
        }

    def try_unbroken(self, tests: Sequence[str]) -> None:
        """Note which tests fail before anything is broken."""
        names = {test.split()[0] for test in tests}
        nodes = [node for name in names if (node := self._node(name)) is not None]
        _, out = self._pytest(*nodes)
        self._red = set(re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", out, re.MULTILINE))
        _say(out.splitlines()[-1])

    def verdict(self, mutant: Mutant) -> str:
        """Break the product, run the test, repair the product, and return the verdict."""
        began = time.monotonic()
        file, name = self._file_of(mutant), mutant.test.split()[0]
        if file is None:
            verdict = "cannot be made"
        elif self._node(name) is None:
            verdict = "has no test"
        elif name in self._red:
            verdict = "red unbroken"
        else:
            whole = file.read_text("utf-8")
            file.write_text(whole.replace(mutant.old, mutant.new), "utf-8")
            try:
                verdict = self._tried(mutant.test)
            finally:
                file.write_text(whole, "utf-8")
        _say(f"{verdict:15}{time.monotonic() - began:4.0f} s  {mutant.promise}")
        return verdict

    def _file_of(self, mutant: Mutant) -> Path | None:
        """Return the only file with the old text, which it must have exactly once, or None."""
        place = self._copy / PACKAGE / mutant.where
        files = [place] if place.is_file() else [*place.rglob("*.py"), *place.rglob("*.sql")]
        counts = {file: file.read_text("utf-8").count(mutant.old) for file in files}
        found = [file for file, count in counts.items() if count]
        return found[0] if len(found) == 1 and counts[found[0]] == 1 else None

    def _tried(self, test: str) -> str:
        name, _, case = test.partition(" ")
        code, out = self._pytest("-x", str(self._node(name)), *(["-k", case] if case else []))
        if code == 0 and not re.search(r"\b\d+ passed", out):
            return "skipped"
        return {0: "survived", 1: "killed"}.get(code, "no test ran")

    def _pytest(self, *arguments: str) -> tuple[int, str]:
        """Return exit code and output; a test that hangs counts as failed."""
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
            cwd=self._copy,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            out, _ = process.communicate(timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired:
            return 1, "it hung"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return process.returncode, out

    def _node(self, name: str) -> str | None:
        for file in sorted((self._copy / "tests").glob("test_*.py")):
            if f"\ndef {name}(" in file.read_text("utf-8"):
                return f"tests/{file.name}::{name}"
        return None


@contextmanager
def _copy() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="asset-sync-mutants-") as directory:
        Path(directory).chmod(0o755)  # for tests that act as another account
        copy = Path(directory)
        for one in COPIED:
            shutil.copytree(REPOSITORY / one, copy / one, ignore=shutil.ignore_patterns("__pyc*"))
        for file in REPOSITORY.iterdir():
            if file.is_file():
                shutil.copy2(file, copy / file.name)
        yield copy


@contextmanager
def _server() -> Iterator[str]:
    """Give one server for all tests: starting one for each would take two seconds."""
    with tempfile.TemporaryDirectory(prefix="asset-sync-mutants-") as base:
        server = embedded.start(Path(base) / "data")
        try:
            yield server.address("postgres")
        finally:
            server.leave()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
