-- Complete, not only fresh: what was asked of each asset and what came, what the provider changed
-- later, and when the next call has the chance of news.

-- The queue: when an idle item is due next, so that history never takes a slot that it needs.

alter table asset_sync.queue
  add column next_at timestamptz,
  add column silent integer not null default 0;
update asset_sync.queue set next_at = now() where state = 'idle';
create index queue_next_idx on asset_sync.queue (next_at) where state = 'idle';
create index queue_retry_idx on asset_sync.queue (not_before) where state = 'waiting';
alter table asset_sync.queue drop constraint queue_times_check;
alter table asset_sync.queue add constraint queue_times_check check (
  least(added_at, due_at, sort_at, not_before, last_success_at, last_attempt_at, next_at) >= 'epoch'
  and greatest(added_at, due_at, sort_at, not_before, last_success_at, last_attempt_at, failed_at,
    lease_until, backfilled_to, next_at) < '10000-01-01 00:00:00+00'
);
comment on column asset_sync.queue.next_at is
  'When an idle item is due next: after its frequency, or later if no news can come before.';
comment on column asset_sync.queue.silent is
  'Answers in a row that brought no newer bar although the market was open; each doubles the time '
  'to the next call, up to an hour.';
comment on column asset_sync.queue.not_before is
  'Not to be tried before this; for an idle item, because no news can come before.';

comment on column asset_sync.runs.command is 'priority, queue or history.';

-- The ledger: which range of each asset was asked, and settled by an answer.

create table asset_sync.ledger (
  symbol text not null,
  feed text not null,
  ticker text not null,
  asked tstzmultirange not null default '{}',
  tail_from timestamptz,
  tail_until timestamptz,
  asked_at timestamptz,
  reread_at timestamptz,
  unasked_until timestamptz,
  retry_at timestamptz,
  past_begins timestamptz,
  primary key (symbol, feed),
  check ((tail_from is null) = (tail_until is null)),
  check (tail_from <= tail_until),
  check (not lower_inf(asked) and not upper_inf(asked)),
  check (greatest(tail_until, asked_at, reread_at, unasked_until, retry_at, past_begins,
    upper(asked)) < '10000-01-01 00:00:00+00'
    and least(tail_from, asked_at, reread_at, unasked_until, retry_at, past_begins,
    lower(asked)) >= 'epoch')
);
comment on table asset_sync.ledger is
  'What was asked of each asset: the ranges that an answer has settled. A hole is a range in which '
  'bars are expected and that was never asked, or was asked and is empty.';
comment on column asset_sync.ledger.ticker is
  'What was asked; for another ticker everything begins anew.';
comment on column asset_sync.ledger.asked is
  'The settled ranges without the tail. It changes seldom: a growing tail in it would rewrite '
  'hundreds of ranges every five minutes (measured: from 1.7 to 79 MB in 72 rounds).';
comment on column asset_sync.ledger.tail_from is 'The start of the settled range that still grows.';
comment on column asset_sync.ledger.tail_until is 'Its end: everything before it is settled.';
comment on column asset_sync.ledger.asked_at is 'When the newest bars were last asked for.';
comment on column asset_sync.ledger.reread_at is
  'When a call last began two open days earlier, to see what the provider has corrected.';
comment on column asset_sync.ledger.unasked_until is
  'The end of the newest range that was never asked; null when there is none.';
comment on column asset_sync.ledger.retry_at is
  'When the next week of `weeks` is asked again; null when there is none.';
comment on column asset_sync.ledger.past_begins is
  'Where the past that the plan includes begins, if the provider refused an earlier start.';
create index ledger_unasked_idx on asset_sync.ledger (unasked_until)
  where unasked_until is not null;

create table asset_sync.weeks (
  symbol text not null,
  week date not null,
  bars integer not null,
  empty_slots integer not null,
  silent_days date[] not null default '{}',
  tries integer not null default 1,
  asked_at timestamptz not null,
  next_try_at timestamptz,
  primary key (symbol, week),
  check (greatest(asked_at, next_try_at) < '10000-01-01 00:00:00+00'
    and least(asked_at, next_try_at) >= 'epoch')
);
comment on table asset_sync.weeks is 'What came of each asset in each week that was asked.';
comment on column asset_sync.weeks.week is 'The Monday with which it begins, UTC.';
comment on column asset_sync.weeks.bars is 'How many bars are stored.';
comment on column asset_sync.weeks.empty_slots is
  'Five minutes in which a bar is expected, that were asked, and of which there is none.';
comment on column asset_sync.weeks.silent_days is
  'Trading days of which no bar came. If all assets of a market are silent, it was closed.';
comment on column asset_sync.weeks.tries is 'How often it was asked, once for each date it was due.';
comment on column asset_sync.weeks.next_try_at is
  'When its empty ranges are asked again: the provider repairs its history late.';

create table asset_sync.lags (
  plan text not null,
  asset_type text not null,
  at timestamptz not null default clock_timestamp(),
  seconds double precision not null check (seconds between 0 and 1e9),
  at_least double precision not null default 0 check (at_least between 0 and seconds),
  check (at >= 'epoch' and at < '10000-01-01 00:00:00+00')
);
create index lags_at_idx on asset_sync.lags (plan, asset_type, at);
comment on table asset_sync.lags is
  'How long after its end a bar was first seen; only where an earlier ask after its end lacked it. '
  'Kept 30 days.';
comment on column asset_sync.lags.at_least is 'When the earlier ask lacked it; seconds: at most.';

-- What the provider changed, and when each bar arrived.

create table asset_sync.revisions (
  symbol text not null,
  ts timestamptz not null,
  at timestamptz not null default clock_timestamp(),
  open double precision,
  high double precision,
  low double precision,
  close double precision,
  volume double precision,
  vwap double precision,
  trades bigint
);
create index revisions_symbol_idx on asset_sync.revisions (symbol, ts);
create index revisions_at_idx on asset_sync.revisions (at);
comment on table asset_sync.revisions is
  'The values that a bar had before the provider changed it; kept [history] keep_revisions_days.';
comment on column asset_sync.revisions.at is 'When the new values were stored.';

create table asset_sync.arrivals (
  symbol text not null,
  at timestamptz not null default clock_timestamp(),
  first_ts timestamptz not null,
  last_ts timestamptz not null
);
create index arrivals_symbol_idx on asset_sync.arrivals (symbol, at);
create index arrivals_at_idx on asset_sync.arrivals (at);
comment on table asset_sync.arrivals is
  'When bars were first stored: one row for each unbroken run of new bars; kept as revisions are. A '
  'bar was first stored at the latest arrival that covers it.';

alter table asset_sync.limiter add column changes_from timestamptz not null default now();
comment on column asset_sync.limiter.changes_from is
  'Since when revisions and arrivals are complete.';

-- What the key shows: a key that never shows a bar of the running day.

alter table asset_sync.entitlements drop constraint entitlements_capability_check;
alter table asset_sync.entitlements add constraint entitlements_capability_check
  check (capability in ('snapshot', 'today', 'past', 'running_day', 'running_day_shown'));
comment on column asset_sync.entitlements.capability is
  'snapshot: quotes in bulk; today: bars of the running day; past: bars older than two years; '
  'running_day: bars of the running day did not come, although nothing was refused; '
  'running_day_shown: they came, which outweighs assets of which none came.';
