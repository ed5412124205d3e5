"""The promises, as the schedules of `exploration` can break them: judged from outside after each.

The database is compared with what the provider has logged, and with a model of what the committed
answers must have left.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from itertools import pairwise
from operator import itemgetter

import psycopg2
from exploration import (
    ATTEMPTS_BEFORE,
    BAR,
    BAR_MS,
    CALL_SECONDS,
    DIES_IN_FLIGHT,
    EMPTY,
    FREEZE_SECONDS,
    FREQUENCY_SECONDS,
    LAG_MS,
    LEASE_SECONDS,
    MAX_ATTEMPTS,
    NOON,
    OWN,
    PERIOD_SECONDS,
    SILENT,
    Answer,
    Answers,
    Before,
    Sent,
    World,
    bars_of,
    lane_of,
)
from explorer.plans import Die, Fault, Interrupt, Sleep
from explorer.sessions import FAULTS, JUMP, LOST, REPLY_LOST, RESTART, Row

from asset_sync.model import Feed, Lane
from asset_sync.provider.answers import Bar
from asset_sync.spans import Span, union
from asset_sync.store.bars_query import Selection, bars_query
from asset_sync.sync.progress import Filled, Synced, Warned

LEAST_BLOCK_SECONDS = 60.0
LONGEST_BACK_OFF_SECONDS = 3600.0
# Statements that never wait for another run's transaction. `enqueue` does where it inserts items.
NEVER_WAIT = ("claiming.claim ", "entering.enqueue ", "entering.reclaim ")


def judgement(world: World) -> list[str]:
    """Return the broken promises, each as a sentence."""
    if world.scheduler.is_endless:
        return [f"no end: {world.scheduler.running_at_last} works on and on without a pause"]
    return [
        finding
        for judge in (
            _runs_end_well,
            _limit,
            _stop_after_429,
            _one_at_a_time_after_silence,
            _requests_leave_in_time,
            _one_run_holds_an_item,
            _only_the_holder_ends_a_lease,
            _no_call_is_needless,
            _bars_and_their_history,
            _reads_of_the_past,
            _ledger,
            _items,
            _slots,
            _reports,
            _locks,
            _everything_is_fresh_at_last,
        )
        for finding in judge(world)
    ]


def _used(world: World, *kinds: type) -> bool:
    return any(isinstance(action, kinds) for action in world.scheduler.used.values())


def _faults(world: World) -> Counter[str]:
    return Counter(
        action.name for action in world.scheduler.used.values() if isinstance(action, Fault)
    )


def _runs_end_well(world: World) -> Iterator[str]:
    """A run ends with a report, or because the server was away or it was told to."""
    for task in world.tasks:
        error = task.error
        if error is None:
            continue
        if isinstance(error, SystemExit) and _used(world, Interrupt):
            continue
        if isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError) and (
            _faults(world).keys() & {LOST, REPLY_LOST, RESTART} or _used(world, Sleep)
        ):
            continue
        yield f"{task.name} ended with {type(error).__name__}: {error}"


def _limit(world: World) -> Iterator[str]:
    """No window holds more calls than allowed, by the times at which the provider reads them.

    If the clock jumps forward, only runs that have read it before know that.
    """
    if any(
        begun > jumped
        for jumped in _jumps_forward(world)
        for begun in _first_readings(world).values()
    ):
        return
    read = sorted(sent.reads_at for sent in world.sent)
    most = world.scenario.calls
    for earlier, later in zip(read, read[most:], strict=False):
        if later - earlier < PERIOD_SECONDS - 1e-6:
            yield (
                f"over the limit: {most + 1} calls within {later - earlier:.3f} s, read at"
                f" {earlier:.3f} and {later:.3f}"
            )


def _jumps_forward(world: World) -> list[float]:
    """Return when the database's clock has jumped forward."""
    jumps = [
        str(action)
        for action in world.scheduler.used.values()
        if isinstance(action, Fault) and action.name == JUMP and action.amount > 0
    ]
    return [event.at_seconds for event in world.scheduler.events if event.what in jumps]


def _first_readings(world: World) -> dict[str, float]:
    """Return when each run first read the database's clock."""
    readings = _times_of_commits(world, "clocks.correct_after_jump")
    return {_run_of(task): at for task, at in reversed(readings)}


def _stop_after_429(world: World) -> Iterator[str]:
    """After a 429 nobody takes a slot for a minute, by the database's clock."""
    if _jumps_forward(world):
        return
    granted = _slots_of_calls(world)
    for task, at in _times_of_commits(world, "slots.refused"):
        for slot_at, sent in granted:
            if at < slot_at < at + LEAST_BLOCK_SECONDS - 1:
                yield (
                    f"{sent.task} took a slot at {slot_at:.3f} and called, though {task} was"
                    f" refused with 429 at {at:.3f}"
                )


def _one_at_a_time_after_silence(world: World) -> Iterator[str]:
    """After two calls without an answer in a row there is one call each half window."""
    if _used(world, Die, Sleep, Interrupt) or _faults(world).keys() & FAULTS:
        return
    for (before, _), (at, sent) in pairwise(sorted(_slots_of_calls(world), key=itemgetter(0))):
        ended = sorted(
            (one.ended_at, one.outcome)
            for one in world.sent
            if one.ended_at is not None and one.ended_at + 0.005 < at
        )
        last = [outcome for _, outcome in ended[-2:]]
        if last == [SILENT, SILENT] and at - before < PERIOD_SECONDS / 2 - 0.1:
            yield f"{sent.task} calls {at - before:.1f} s after another one, and none is answered"


def _slots_of_calls(world: World) -> list[tuple[float, Sent]]:
    """Return each call with the time at which its run last asked for a slot before."""
    taken = _times_of(world, "slots.take")
    return [
        (max(at for task, at in taken if task == sent.task and at <= sent.sent_at), sent)
        for sent in world.sent
    ]


def _times_of(world: World, label: str) -> list[tuple[str, float]]:
    return [(one.task, one.at_seconds) for one in world.scheduler.events if one.what == label]


def _times_of_commits(world: World, label: str) -> list[tuple[str, float]]:
    return [(one.task, one.at_seconds) for one in world.commits if label in one.labels]


def _requests_leave_in_time(world: World) -> Iterator[str]:
    """A request leaves only while the slot that was taken for it is its own."""
    for at, sent in _slots_of_calls(world):
        if sent.sent_at > at + CALL_SECONDS + 0.01:
            yield f"{sent.task} sends a request {sent.sent_at - at:.1f} s after its slot"


def _only_the_holder_ends_a_lease(world: World) -> Iterator[str]:
    """Nobody else changes an item that is leased, until the lease has ended."""
    if _jumped(world):
        return
    holders: dict[str, str] = {}
    for symbol, task, before, after, left in world.server.query(
        """
        select symbol, task, before::text, after::text, extract(epoch from until - at)::float8
        from world.leases order by number
        """
    ):
        # A run that ends gives back what its workers hold.
        if before is not None and left > 0 and holders.get(before) not in {None, _run_of(task)}:
            yield f"{task} ends the lease of {symbol} that {holders[before]} holds"
        holders[after] = _run_of(task)


def _run_of(task: str) -> str:
    """Return the run of a worker."""
    return task.partition(".")[0]


def _one_run_holds_an_item(world: World) -> Iterator[str]:
    """No two runs ask for one item at once while the lease of the first lasts."""
    by_item: dict[tuple[str, str], list[Sent]] = defaultdict(list)
    for sent in world.sent:
        by_item[sent.symbol, sent.feed].append(sent)
    for (symbol, feed), calls in by_item.items():
        for first, second in pairwise(sorted(calls, key=lambda sent: sent.sent_at)):
            claimed = max(
                (
                    at
                    for label in ("claiming.claim", "claiming.claim_history")
                    for task, at in _times_of(world, label)
                    if task == first.task and at <= first.sent_at
                ),
                default=first.sent_at,
            )
            # A run that is told to end gives back what its workers hold, during their calls.
            since = {_run_of(first.task): first.sent_at}
            since[first.task] = first.ended_at or first.sent_at
            done = [
                one.at_seconds
                for one in world.commits
                if one.task in since
                and one.at_seconds >= since[one.task]
                and any(label.startswith("ending.") for label in one.labels)
            ]
            until = min([claimed + LEASE_SECONDS, *done])
            if second.sent_at < until - 0.5 and second.task != first.task and not _jumped(world):
                yield (
                    f"{symbol} ({feed}) was asked by {second.task} at {second.sent_at:.3f} while"
                    f" {first.task} held it"
                )


def _jumped(world: World) -> bool:
    return bool(_faults(world)[JUMP])


def _no_call_is_needless(world: World) -> Iterator[str]:
    """An asset whose answer was stored is not asked again before it is due."""
    stored: dict[str, float] = {}
    if _jumped(world):
        return
    finished = {
        (one.task, one.at_seconds) for one in world.commits if "ending.finish" in one.labels
    }
    for sent in sorted(world.sent, key=lambda sent: sent.sent_at):
        if sent.feed != Feed.BARS:
            continue
        before = stored.get(sent.symbol)
        if before is not None and sent.sent_at - before < FREQUENCY_SECONDS * 0.1:
            yield f"{sent.symbol} was asked again {sent.sent_at - before:.1f} s after its success"
        if sent.outcome == "well" and sent.ended_at is not None:
            ends = [at for task, at in finished if task == sent.task and at >= sent.ended_at]
            later = [
                one.sent_at
                for one in world.sent
                if one.task == sent.task and one.sent_at > sent.sent_at
            ]
            if ends and min(ends) < min(later, default=float("inf")):
                stored[sent.symbol] = min(ends)
    if not _used(world, Die, Interrupt, Sleep, Fault) and not world.rested:
        asked = Counter(sent.symbol for sent in world.sent if sent.feed == Feed.BARS)
        for symbol, count in asked.items():
            if count > 1:
                yield f"{symbol} was asked {count} times although nothing went wrong"


class _Model:
    """What answers leave that are stored one after the other."""

    def __init__(self) -> None:
        self.bars: dict[str, dict[int, Bar]] = defaultdict(dict)
        self.revisions: Counter[tuple[str, int, float]] = Counter()
        self.arrivals: Counter[tuple[str, int, int]] = Counter()

    def copy(self) -> "_Model":
        """Return one that changes by itself."""
        other = _Model()
        other.bars.update({symbol: dict(bars) for symbol, bars in self.bars.items()})
        other.revisions.update(self.revisions)
        other.arrivals.update(self.arrivals)
        return other

    def store(self, symbol: str, bars: Sequence[Bar]) -> None:
        if not bars:
            return
        stored = self.bars[symbol]
        first, last = bars[0].start_ms, bars[-1].start_ms
        sent = {bar.start_ms: bar for bar in bars}
        between = sorted({at for at in stored if first <= at <= last} | sent.keys())
        run: list[int] = []
        if not any(first <= at <= last for at in stored):
            self.arrivals[symbol, first, last] += 1
        else:
            for at in [*between, None]:
                if at is not None and at not in stored:
                    run.append(at)
                elif run:
                    self.arrivals[symbol, run[0], run[-1]] += 1
                    run = []
        for at, bar in sent.items():
            if at in stored and stored[at] != bar:
                self.revisions[symbol, at, stored[at].close] += 1
            stored[at] = bar


@lru_cache(maxsize=8)
def _model_before(answers: Answers) -> _Model:
    """Return what was stored when the schedules began."""
    model = _Model()
    for answer in answers:
        model.store(answer.symbol, _closed(answer))
    return model


def _closed(answer: Answer) -> list[Bar]:
    if answer.feed == Feed.HISTORY:
        return list(answer.bars)
    last = (answer.asked_at - BAR).timestamp() * 1000
    return [bar for bar in answer.bars if bar.start_ms <= last]


_BAR = "(extract(epoch from ts) * 1000)::bigint, open, high, low, close, volume, vwap, trades"


def _by_symbol(rows: Sequence[Row]) -> dict[str, dict[int, Bar]]:
    """Return rows of a symbol and its `_BAR` as bars, by symbol and start."""
    bars: dict[str, dict[int, Bar]] = defaultdict(dict)
    for symbol, *values in rows:
        bar = Bar(*values)
        bars[symbol][bar.start_ms] = bar
    return bars


def _bars_and_their_history(world: World) -> Iterator[str]:
    """Bars, revisions and arrivals are what the committed answers leave, and nothing else."""
    model = _model_before(world.answers_before).copy()
    for one in world.applied:
        model.store(one.answer.symbol, _closed(one.answer))
    stored = _by_symbol(
        world.server.query(
            f"""
            select symbol, {_BAR}
            from market_data.ohlcv_5m b join trading.symbols s on s.id = b.ticker_id
            """
        )
    )
    for symbol in world.scenario.symbols:
        wrong = [
            at
            for at in stored[symbol].keys() | model.bars[symbol].keys()
            if stored[symbol].get(at) != model.bars[symbol].get(at)
        ]
        if wrong:
            yield f"{symbol}: {len(wrong)} bars are missing or differ from what was answered"
    kept = Counter(
        (symbol, at, close)
        for symbol, at, close in world.server.query(
            """
            select symbol, (extract(epoch from ts) * 1000)::bigint, close
            from asset_sync.revisions
            """
        )
    )
    if any(
        isinstance(action, Fault) and action.name == JUMP and action.amount < 0
        for action in world.scheduler.used.values()
    ):
        return  # what came before `changes_from` by the new time is not needed
    if kept != model.revisions:
        yield f"revisions: {kept - model.revisions} too many, {model.revisions - kept} missing"
    came = Counter(
        (symbol, first, last)
        for symbol, first, last in world.server.query(
            """
            select symbol, (extract(epoch from first_ts) * 1000)::bigint,
              (extract(epoch from last_ts) * 1000)::bigint from asset_sync.arrivals
            """
        )
    )
    if came != model.arrivals:
        yield f"arrivals: {came - model.arrivals} too many, {model.arrivals - came} missing"


def _reads_of_the_past(world: World) -> Iterator[str]:
    """A read as of a moment returns what the answers had left that were committed by then.

    It is read as of a commit in the middle. What was written before it and committed after it is in
    either state.
    """
    if not world.applied or _jumped(world) or world.rested:
        return
    middle = world.applied[len(world.applied) // 2].at_seconds
    model = _model_before(world.answers_before).copy()
    between = set()
    for one in world.applied:
        if one.at_seconds <= middle:
            model.store(one.answer.symbol, _closed(one.answer))
        elif one.written_after <= middle:
            between.add(one.answer.symbol)
    then = NOON + timedelta(seconds=middle)
    with world.server.reader() as db, db.cursor() as cursor:
        past = bars_query(db, Selection(world.scenario.symbols, as_of=then))
        cursor.execute(f"select symbol, {_BAR} from ({past}) past")
        stored = _by_symbol(cursor.fetchall())
    for symbol in world.scenario.symbols:
        if symbol not in between and stored[symbol] != model.bars[symbol]:
            yield f"{symbol}: a read as of {middle:.3f} is not what was stored then"


def _ledger(world: World) -> Iterator[str]:
    """What is called settled is stored, and nothing that was settled is forgotten."""
    rows = world.server.query(
        """
        select l.symbol, array(select lower(span) from unnest(asked) span),
          array(select upper(span) from unnest(asked) span), tail_from, tail_until,
          array(select (extract(epoch from ts) * 1000)::bigint from market_data.ohlcv_5m b
            join trading.symbols s on s.id = b.ticker_id where s.symbol = l.symbol)
        from asset_sync.ledger l where l.symbol = any(%s)
        """,
        (list(world.scenario.symbols),),
    )
    for symbol, starts, ends, tail_from, tail_until, bars in rows:
        spans = [Span(*span) for span in zip(starts, ends, strict=True)]
        if tail_from is not None:
            spans.append(Span(tail_from, tail_until))
        settled, stored = union(spans), set(bars)
        for span in settled:
            there = bars_of(symbol, span.start, span.end, NOON + timedelta(days=1))
            end_ms = span.end.timestamp() * 1000
            lacking = [b for b in there if b.start_ms < end_ms and b.start_ms not in stored]
            if lacking and not _faults(world)[EMPTY]:
                yield f"{symbol}: {len(lacking)} bars are called settled and are not stored"
        for task, told in world.told.items():
            for progress in told:
                if (
                    isinstance(progress, Filled)
                    and progress.symbol == symbol
                    and not any(
                        span.start <= progress.settled.start and progress.settled.end <= span.end
                        for span in settled
                    )
                ):
                    yield f"{symbol}: what {task} has settled is not in the ledger"


def _items(world: World) -> Iterator[str]:
    """Each asset has its item, whose failures are its own, and nobody holds it for ever."""
    rows = world.server.query(
        """
        select symbol, feed, state, attempts, strikes, level,
          extract(epoch from lease_until - clock_timestamp())::float8,
          extract(epoch from not_before - clock_timestamp())::float8
        from asset_sync.queue where symbol = any(%s)
        """,
        (list(world.scenario.symbols),),
    )
    if not _used(world, Die, Fault, Interrupt):
        lanes = {start.lane for start in world.scenario.starts}
        wanted = {symbol for symbol in world.scenario.symbols if lane_of(symbol) in lanes}
        for symbol in wanted - {row[0] for row in rows if row[1] == "bars"}:
            yield f"{symbol} has no item"
    killed = _killed(world)
    before = ATTEMPTS_BEFORE if world.scenario.before is Before.FAILING else 0
    for symbol, feed, state, attempts, strikes, level, lease, wait in rows:
        name = f"{symbol} ({feed})"
        sent = [one for one in world.sent if one.symbol == symbol]
        own = before + sum(one.outcome in OWN for one in sent)
        bad = [one for one in sent if one.outcome != "well"]
        if lane_of(symbol) is Lane.PRIORITY and level != "critical":
            yield f"{name} is not critical any more"
        if state == "dead" and (level == "critical" or own + killed < MAX_ATTEMPTS):
            yield f"{name} is dead after {own} failures of its own"
        if attempts > own + killed + sum(one.ended_at is None for one in sent):
            yield f"{name}: {attempts} attempts count, but {own} failures are its own"
        if strikes > before + _most_strikes(world, bad):
            yield f"{name}: strike {strikes} without evidence that the provider is well"
        if state == "leased" and lease > LEASE_SECONDS and not _jumped(world):
            yield f"{name} is leased for {lease:.0f} s"
        is_corrected = world.rested or not _jumped(world)
        if wait > LONGEST_BACK_OFF_SECONDS + 1 and is_corrected:
            yield f"{name} waits for {wait:.0f} s"


def _killed(world: World) -> int:
    """Return how many attempts may count because a run was killed, or stopped for too long."""
    killed = sum(isinstance(action, Die | Sleep) for action in world.scheduler.used.values())
    faults = _faults(world)
    killed += sum(count for name, count in faults.items() if name in {*FAULTS, DIES_IN_FLIGHT})
    # With a process all of its calls end.
    return killed * world.scenario.workers + (world.scenario.before is Before.LEFT)


def _most_strikes(world: World, bad: Sequence[Sent]) -> int:
    """Return how many strikes these calls may have left: the first, and each after evidence."""
    strikes = min(1, len(bad))
    # After an answer without bars the run asks whether the ticker exists. That it does is evidence,
    # and also a failure of an asset that has no bars yet.
    strikes += any(sent.outcome == EMPTY for sent in bad)
    well = [sent.ended_at for sent in world.sent if sent.outcome == "well" and sent.ended_at]
    in_order = sorted(bad, key=lambda sent: sent.sent_at)
    for earlier, later in pairwise(in_order):
        until = (later.ended_at or later.sent_at) + 60
        strikes += any(earlier.sent_at <= at <= until for at in well)
    return strikes


def _slots(world: World) -> Iterator[str]:
    """A slot in use stands for a call, and none is held for ever."""
    [(used, longest, tokens)] = world.server.query(
        """
        select count(*) filter (where free_in > 0), max(free_in), count(token)
        from (
          select token, extract(epoch from stamped_at + make_interval(secs => open_seconds + %s)
            - clock_timestamp())::float8 as free_in
          from asset_sync.slots where isfinite(stamped_at)
        ) slots
        """,
        (PERIOD_SECONDS,),
    )
    most = CALL_SECONDS + FREEZE_SECONDS + PERIOD_SECONDS
    if longest is not None and longest > most + 1 and not _jumped(world):
        yield f"a slot is held for {longest:.0f} s more"
    if _used(world, Die, Sleep, Interrupt) or _faults(world).keys() & {*FAULTS, DIES_IN_FLIGHT}:
        return
    if tokens and world.scenario.before is not Before.LEFT:
        yield f"{tokens} slots are still held though every run has ended"
    since = world.scheduler.now - PERIOD_SECONDS - 1
    calls = sum(
        max(sent.ended_at or 0, sent.sent_at + FREEZE_SECONDS * (sent.outcome == SILENT)) > since
        for sent in world.sent
    )
    if used > calls + (world.scenario.before is Before.LEFT):
        yield f"{used} slots are used for {calls} calls"


def _reports(world: World) -> Iterator[str]:
    """What a run reports is stored; and it says that it lost a lease only if it did."""
    rows = world.server.query(
        """
        select run_id, count(*) from asset_sync.calls
        where outcome = 'ok' and at >= %s group by run_id
        """,
        (NOON - timedelta(hours=1) if _jumped(world) else NOON,),
    )
    recorded: Mapping[int, int] = dict(rows)
    if sum(recorded.values()) < len(world.applied) and not _jumped(world):
        yield f"{len(world.applied)} answers are stored, {recorded} are recorded"
    for task in world.tasks:
        told, report = world.told[task.name], world.reports.get(task.name)
        done = sum(isinstance(step, Synced | Filled) for step in told)
        stored = recorded.get(report.run_id, 0) if report is not None else done
        if done > stored and task.name != "rest":
            yield f"{task.name} reports {done} answers of which only {stored} are stored"
        lost = [step for step in told if isinstance(step, Warned) and "lease ended" in step.text]
        if lost and not _used(world, Sleep) and not _jumped(world):
            yield f"{task.name} lost a lease: {lost[0].text}"


def _locks(world: World) -> Iterator[str]:
    """No deadlock, no transaction left open, and no claim that waits for another run."""
    for who in world.server.deadlocks:
        yield f"deadlock of {who}"
    for session in world.server.ended:
        if session.was_left_in_transaction:
            yield f"{session.task.name} has left its connection in a transaction"
    for wait in world.server.lock_waits:
        inserts = world.scenario.before is Before.NEW and "enqueue" in wait.label
        if f"{wait.label} ".startswith(NEVER_WAIT) and not inserts:
            yield f"{wait.label} of {wait.task} waits for {', '.join(wait.holders)}"


def _all_is_done(world: World) -> bool:
    """Whether the runs had the time for everything, however they were disturbed."""
    if world.rested:
        # After a jump back it may be that nothing is due, and so the failures are still there.
        return not (_jumped(world) and world.scenario.before is Before.FAILING)
    return world.scenario.is_roomy and not _used(world, Die, Sleep, Interrupt, Fault)


def _everything_is_fresh_at_last(world: World) -> Iterator[str]:
    """When all have come to rest, the state is that which one run alone reaches."""
    if world.starved:
        yield "a run that works alone gets no call"
    if not _all_is_done(world):
        return
    now = world.scheduler.now
    rows = world.server.query(
        """
        select q.symbol, q.state, q.attempts, q.strikes, q.lease_token is null,
          extract(epoch from clock_timestamp() - q.last_success_at)::float8, d.sync_status,
          (select (extract(epoch from max(ts)) * 1000)::bigint from market_data.ohlcv_5m
            where ticker_id = s.id)
        from asset_sync.queue q left join trading.symbols s on s.symbol = q.symbol
        left join data_sources.data_sync_status d on d.ticker_id = s.id
        where q.symbol = any(%s) and q.feed = 'bars'
        """,
        (list(world.scenario.symbols),),
    )
    by_symbol = {row[0]: row for row in rows}
    lanes = set(Lane) if world.rested else {start.lane for start in world.scenario.starts}
    for symbol in world.scenario.symbols:
        if lane_of(symbol) not in lanes:
            continue
        row = by_symbol.get(symbol)
        if row is None:
            yield f"{symbol} has no item"
            continue
        _, state, attempts, strikes, free, age, status, newest = row
        if state == "dead":  # whether it may be is judged above
            continue
        if (state, attempts, strikes, free, status) != ("idle", 0, 0, True, "success"):
            yield (
                f"{symbol} does not come to rest: {state}, attempts {attempts}, strikes {strikes},"
                f" status {status}"
            )
        elif age is None or (age > now + 5 and not _jumped(world)):
            yield f"{symbol} was not refreshed"
        elif not (_faults(world)[EMPTY] or _jumped(world) or _used(world, Sleep)) and (
            newest is None
            or (NOON + timedelta(seconds=now - age - 15)).timestamp() * 1000 - newest
            > 2 * BAR_MS + LAG_MS
        ):
            yield f"{symbol} lacks its newest bars"
