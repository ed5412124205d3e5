"""Plants a bug for each rule of the design, and measures how soon the search finds it.

Each is planted in a copy of the package; the working tree never changes. Run it as


    .venv/bin/python tests/planted_bugs.py [--list] [--only WORDS] [--seconds 60]

It prints a table, and exits 1 if a bug was not found in time or could not be planted.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from random import SystemRandom
from typing import NamedTuple

from explore import say, server

REPOSITORY = Path(__file__).parents[1]
PACKAGE = "asset_sync"


class Bug(NamedTuple):
    """One rule, and how it is broken."""

    rule: str
    file: str
    old: str
    """What stands in the file, perhaps several times."""
    new: str


BUGS = (
    # --- the limit --------------------------------------------------------------------------------
    Bug(
        "the limiter's row is locked before a slot is taken",
        "budget/slots.py",
        "select from asset_sync.limiter for update;\n            with {_MOMENT}, {_SLOTS},",
        "with {_MOMENT}, {_SLOTS},",
    ),
    Bug(
        "a slot is stamped at the end of its call, not only when it is taken",
        "budget/slots.py",
        "set stamped_at = now, open_seconds = ended.open_seconds, token = null",
        "set open_seconds = ended.open_seconds, token = null",
    ),
    Bug(
        "the slot of a call without an answer is held",
        "budget/slots.py",
        "else greatest(0, %(freeze)s * period_seconds - %(ago)s) end as open_seconds",
        "else 0 * (%(freeze)s * period_seconds - %(ago)s) end as open_seconds",
    ),
    Bug(
        "the slot of a killed run counts as a call that is read late",
        "budget/slots.py",
        "open_seconds = %(call_timeout)s + %(freeze)s * period_seconds",
        "open_seconds = 0 * (%(call_timeout)s + %(freeze)s)",
    ),
    Bug(
        "a request that was not sent gives its slot back",
        "budget/slots.py",
        "if end is CallEnd.NOT_SENT:",
        "if False:",
    ),
    Bug(
        "a slot that was not used is given back",
        "sync/loop.py",
        "                    self._state.turns.give_back(turn)\n",
        "",
    ),
    Bug(
        "a slot is given back only by the run that holds it",
        "budget/slots.py",
        "where slot = %s and token = %s",
        "where slot = %s and %s::text is not null",
    ),
    Bug(
        "a 429 stops every run",
        "budget/slots.py",
        "greatest({_BLOCKED_UNTIL}, now + make_interval(secs => %(seconds)s))",
        "least({_BLOCKED_UNTIL}, now + make_interval(secs => %(seconds)s))",
    ),
    Bug(
        "after two calls without an answer there is one at a time",
        "budget/slots.py",
        "UNANSWERED_CALLS = 2",
        "UNANSWERED_CALLS = 9",
    ),
    Bug(
        "the reservation for a priority run lapses",
        "budget/slots.py",
        "PRIORITY_GRACE_SECONDS = 60",
        "PRIORITY_GRACE_SECONDS = 86_400",
    ),
    Bug(
        "a jump of the database's clock is noticed",
        "budget/slots.py",
        "if not jumped and not deviation:",
        "if True:",
    ),
    Bug(
        "an item that could be claimed before the clock was set back can be claimed after it",
        "budget/clocks.py",
        "not_before - before",
        "not_before - coalesce(last_attempt_at, not_before)",
    ),
    Bug(
        "a run compares the database's clock with its own",
        "budget/clocks.py",
        "if abs(apart) > TOLERANCE_SECONDS:",
        "if False:",
    ),
    Bug(
        "a request leaves only while its slot is its own",
        "budget/turn.py",
        "lambda: self._clock.monotonic() < turn.until",
        "lambda: True",
    ),
    # --- the queue --------------------------------------------------------------------------------
    Bug(
        "an item is locked when it is claimed",
        "queue/claiming.py",
        "          for update of q skip locked\n",
        "",
    ),
    Bug(
        "a claim waits for nobody",
        "queue/claiming.py",
        "for update of q skip locked",
        "for update of q",
    ),
    Bug(
        "nobody claims the history that another run asks for",
        "queue/claiming.py",
        "(state in ('idle', 'waiting') and not_before <= clock_timestamp())",
        "(not_before <= clock_timestamp())",
    ),
    Bug(
        "only the holder of the token may change an item",
        "queue/ending.py",
        " and q.lease_token = held.token",
        "",
    ),
    Bug(
        "entering the queue waits for nobody",
        "queue/entering.py",
        "for update of q skip locked",
        "for update of q",
    ),
    Bug(
        "taking items back waits for nobody",
        "queue/entering.py",
        "order by lease_until limit 1000 for update skip locked",
        "order by lease_until limit 1000 for update",
    ),
    Bug(
        "only items whose lease has ended are taken back",
        "queue/entering.py",
        "where state = 'leased' and lease_until < clock_timestamp()",
        "where state = 'leased'",
    ),
    Bug(
        "the items of killed runs are taken back",
        "queue/entering.py",
        "where state = 'leased' and lease_until < clock_timestamp()",
        "where false",
    ),
    Bug(
        "the lease covers the call",
        "sync/line.py",
        "LEASE_MARGIN_SECONDS = 30",
        "LEASE_MARGIN_SECONDS = -9",
    ),
    Bug(
        "a released item does not count its attempt",
        "queue/ending.py",
        '"""state = \'waiting\', attempts = greatest(0, attempts - 1),\n           last_error',
        '"""state = \'waiting\',\n           last_error',
    ),
    Bug(
        "a further strike needs evidence that the provider is well",
        "queue/rules.py",
        "(q.strikes = 0 or {ANSWERED_WELL_AT} > q.failed_at)",
        "(q.strikes = 0 or {ANSWERED_WELL_AT} is not null)",
    ),
    Bug(
        "a strike is no attempt",
        "queue/ending.py",
        '_back_off(cursor, items, error, settings, "attempts = greatest(0, q.attempts - 1)")',
        '_back_off(cursor, items, error, settings, "attempts = q.attempts")',
    ),
    Bug(
        "an item is dead only after the last of its attempts",
        "queue/ending.py",
        "%(may_die)s and q.attempts >= %(max_attempts)s and {COUNTS}",
        "%(may_die)s and q.attempts >= least(1, %(max_attempts)s) and {COUNTS}",
    ),
    Bug(
        "a critical asset stays critical",
        "queue/ending.py",
        "may_die=item.level is not Level.CRITICAL",
        "may_die=True",
    ),
    Bug(
        "a refreshed asset is not due at once",
        "queue/ending.py",
        '"""state = \'idle\', last_success_at = clock_timestamp(), attempts = 0, strikes = 0,\n'
        "           failed_tickers = '{}', last_error = null, verify_ticker = false,",
        '"""state = \'idle\', attempts = 0, strikes = 0,\n'
        "           failed_tickers = '{}', last_error = null, verify_ticker = false,",
    ),
    Bug(
        "a run whose item is being claimed by another one pauses",
        "sync/loop.py",
        "self._state.leave_to_others()",
        "pass",
    ),
    # --- what is stored ---------------------------------------------------------------------------
    Bug(
        "the ledger's row is locked before it is read",
        "store/ledger.py",
        """on conflict (symbol, feed) do update
        set ticker = excluded.ticker, asked = '{}', tail_from = null, tail_until = null,
          asked_at = null, reread_at = null, past_begins = null, unasked_until = null,
          retry_at = null
        where known.ticker <> excluded.ticker;
        select from asset_sync.ledger where symbol = %(symbol)s and feed = %(feed)s for update
""",
        "on conflict (symbol, feed) do nothing\n",
    ),
    Bug(
        "the time of a change is read when its bars are written",
        "store/market.py",
        "select id, symbol, clock_timestamp() as now from trading.symbols",
        "select id, symbol, now() as now from trading.symbols",
    ),
    Bug(
        "what is settled keeps a margin for late bars",
        "sync/coverage.py",
        "end = start_of_bar(asked_at - horizon(lag))",
        "end = start_of_bar(asked_at)",
    ),
    Bug(
        "the values that the provider changed are kept",
        "store/market.py",
        "from asset, changed join old using (ts) where %(kept)s",
        "from asset, changed join old using (ts) where false and %(kept)s",
    ),
    Bug(
        "when each bar came is kept",
        "store/market.py",
        "where is_new and %(kept)s",
        "where not is_new and %(kept)s",
    ),
    Bug(
        "what an answer brings is one transaction",
        "sync/apply.py",
        "    for items, end in judgement.ends:\n        progress +=",
        '    cursor.execute("commit")\n    cursor.execute("begin")\n'
        "    for items, end in judgement.ends:\n        progress +=",
    ),
    Bug(
        "after a lost reply the run asks whether the commit failed",
        "sync/connection.py",
        "            if not self._was_committed(number):\n                raise",
        "            self._was_committed(number)",
    ),
    Bug(
        "after a lost reply the run asks whether the commit succeeded",
        "sync/connection.py",
        "            if not self._was_committed(number):\n                raise",
        "            raise",
    ),
    Bug(
        "if the connection is lost with that question, the run asks again",
        "sync/connection.py",
        "                self.reconnect(error)\n                continue",
        "                raise",
    ),
    Bug(
        "the workers of a run share one watch of the database's clock",
        "sync/state.py",
        "            shared.watch,\n            self._wait_for_a_slot,",
        "            Watch(shared.clock.steady),\n            self._wait_for_a_slot,",
    ),
    Bug(
        "a signal just before a commit leaves no transaction open",
        "database/connection.py",
        "            # Here, so that a signal just before it leaves no transaction open.\n"
        '            cursor.execute("commit")\n'
        "        except BaseException:\n"
        "            with suppress(psycopg2.Error):"
        "  # a lost connection has rolled back by itself\n"
        '                cursor.execute("rollback")\n'
        "            raise\n",
        "        except BaseException:\n"
        "            with suppress(psycopg2.Error):\n"
        '                cursor.execute("rollback")\n'
        "            raise\n"
        '        cursor.execute("commit")\n',
    ),
)


def plant(bug: Bug, copy: Path) -> bool:
    """Break the copy; return whether the text was there."""
    shutil.rmtree(copy / PACKAGE, ignore_errors=True)
    shutil.copytree(
        REPOSITORY / PACKAGE, copy / PACKAGE, ignore=shutil.ignore_patterns("__pycache__")
    )
    file = copy / PACKAGE / bug.file
    whole = file.read_text("utf-8")
    file.write_text(whole.replace(bug.old, bug.new), "utf-8")
    return bug.old in whole


def find(copy: Path, url: str, seconds: float) -> tuple[float | None, str]:
    """Return after how many seconds of searching the bug was found, and what showed it."""
    command = [
        sys.executable,
        str(copy / "tests" / "explore.py"),
        "--until-found",
        "--seconds",
        str(seconds),
        "--first",
        str(SystemRandom().randrange(10**9)),
    ]
    environ = {
        **os.environ,
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TEST_DATABASE_URL": url,
    }
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    found = re.search(r"found after ([\d.]+) s, (.*)", done.stdout)
    if found is None:
        return None, (done.stdout + done.stderr).strip().splitlines()[-1][:200]
    return float(found[1]), found[2]


def main() -> int:
    """Plant the bugs asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the rules and plant nothing")
    parser.add_argument("--only", metavar="WORDS", default="", help="those whose rule holds this")
    parser.add_argument("--skip", type=int, default=0, help="leave out so many of them")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each, at most")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the server is removed
    chosen = [bug for bug in BUGS if options.only.lower() in bug.rule.lower()][options.skip :]
    if options.list:
        say("\n".join(bug.rule for bug in chosen))
        return 0
    times: list[float] = []
    with server() as url, tempfile.TemporaryDirectory(prefix="asset-sync-planted-") as directory:
        copy = Path(directory)
        shutil.copytree(REPOSITORY / "tests", copy / "tests")
        for bug in chosen:
            if not plant(bug, copy):
                say(f"cannot be planted: {bug.rule}")
                continue
            seconds, shown = find(copy, url, options.seconds)
            if seconds is not None:
                times.append(seconds)
            took = "not found" if seconds is None else f"{seconds:6.1f} s"
            say(f"{took:>9}  {bug.rule}\n           {shown[:150]}")
    median = sorted(times)[len(times) // 2] if times else float("nan")
    say(f"\n{len(times)} of {len(chosen)} found, the median after {median:.1f} s")
    return 0 if len(times) == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
