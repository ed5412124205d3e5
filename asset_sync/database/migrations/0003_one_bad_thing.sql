-- Adds strikes, the time for which a slot stays open, and what the correction of clock jumps needs.
-- Renames columns to the usual terms of the field.

-- The queue.

alter table asset_sync.queue rename column order_at to sort_at;
alter table asset_sync.queue rename column available_at to not_before;
alter table asset_sync.queue rename column lookup to verify_ticker;
alter table asset_sync.queue rename column asked_until to backfilled_to;
alter table asset_sync.queue
  add column strikes integer not null default 0,
  add column failed_at timestamptz not null default '-infinity',
  add column failed_tickers text[] not null default '{}';

-- The items of each level are now counted by the keys of the settings' own assets.
drop index asset_sync.queue_live_idx;
drop index asset_sync.queue_oldest_idx;

-- The order of feeds is a number, no longer the first letter of the name.
alter table asset_sync.queue drop constraint queue_feed_check;
alter table asset_sync.queue add column feed_rank smallint not null default 2;
update asset_sync.queue set feed_rank = 1 where feed = 'snapshot';
drop index asset_sync.queue_critical_idx;
drop index asset_sync.queue_others_idx;
create index queue_critical_idx on asset_sync.queue (sort_at, symbol, feed_rank)
  where state = 'waiting' and level = 'critical';
create index queue_others_idx on asset_sync.queue (sort_at, symbol, feed_rank)
  where state = 'waiting' and level <> 'critical';
comment on column asset_sync.queue.feed_rank is
  'Which of the feeds of an asset comes first where they stand in line together.';

-- Items that have failed keep that state.
update asset_sync.queue
set strikes = 1, failed_at = coalesce(last_attempt_at, now()), failed_tickers = array[ticker]
where state = 'dead' or attempts > 0;
update asset_sync.queue set state = 'waiting', not_before = now()
where state = 'dead' and level = 'critical';
-- The symbol is no longer a part of the error's text.
update asset_sync.queue set last_error = substr(last_error, length(symbol) + 3)
where starts_with(last_error, symbol || ': ');

comment on column asset_sync.queue.sort_at is
  'The order of service: due_at plus an allowance per level, so that low items are late but never '
  'starve; critical items stand in the order of the settings file, counted from the epoch.';
comment on column asset_sync.queue.not_before is 'Not to be tried before this.';
comment on column asset_sync.queue.verify_ticker is
  'Its first answer was empty: the next call asks whether the ticker exists at all.';
comment on column asset_sync.queue.backfilled_to is
  'How far a catch-up of several calls has come, where it found no bars.';
comment on column asset_sync.queue.strikes is
  'Failures in a row that count, since the provider answered another asset well between them; each '
  'doubles the back-off, from one minute to one hour.';
comment on column asset_sync.queue.failed_at is 'When it failed last, if not since it succeeded.';
comment on column asset_sync.queue.failed_tickers is
  'Tickers that failed since the last success; another one in the settings gives it a new start.';

-- What the key may not do.

alter table asset_sync.denials rename to entitlements;
alter table asset_sync.entitlements rename constraint denials_pkey to entitlements_pkey;
alter table asset_sync.entitlements drop constraint denials_capability_check;
alter table asset_sync.entitlements add constraint entitlements_capability_check
  check (capability in ('snapshot', 'today', 'past'));
comment on table asset_sync.entitlements is
  'What the key turned out not to include, so that no call is spent on it; asked again after a day.';
comment on column asset_sync.entitlements.capability is
  'snapshot: quotes in bulk; today: bars of the running day; past: bars older than two years.';

-- The limiter.

alter table asset_sync.limiter
  add column answered_at timestamptz not null default '-infinity';
comment on column asset_sync.limiter.answered_at is
  'When the provider last answered any asset well: evidence that a failing asset is to blame.';

-- The slots. A slot stays open for as long as the provider may still count its call.

alter table asset_sync.slots rename column ended_at to stamped_at;
alter table asset_sync.slots rename column previous_ended_at to previous_stamped_at;
alter table asset_sync.slots
  add column open_seconds double precision not null default 0,
  add column previous_open_seconds double precision not null default 0,
  add column last_token uuid;
-- A stamp in the future belongs to a call in flight. Without a token it is from before the clock was
-- set back.
update asset_sync.slots s
set stamped_at = m.now,
  open_seconds = case when token is null then 0
    else least(extract(epoch from stamped_at - m.now), 600) end
from (select clock_timestamp() as now) m
where stamped_at > m.now;
comment on table asset_sync.slots is
  'As many rows as the plan allows calls in a window, or more where it once allowed more: then the '
  'busiest count. A slot is free one window after stamped_at plus open_seconds.';
comment on column asset_sync.slots.stamped_at is
  'When its last call ended, or was begun if it is in flight. Never in the future, so that a later '
  'time proves that the clock was set back.';
comment on column asset_sync.slots.open_seconds is
  'For how long after stamped_at the provider may still count the call: 0 once it is answered.';
comment on column asset_sync.slots.last_token is 'Whose call ended last.';

-- The limiter, continued: calls without an answer, refusals, and the clock.

alter table asset_sync.limiter
  add column blocked_at timestamptz not null default '-infinity',
  add column called_at timestamptz not null default '-infinity',
  add column unanswered integer not null default 0,
  add column refused_key text not null default '',
  add column refusals integer not null default 0,
  add column lowered_at timestamptz not null default '-infinity',
  add column lowered_seconds integer not null default 0,
  add column seen_at timestamptz not null default '-infinity',
  add column mark_at timestamptz not null default '-infinity',
  add column jumps integer not null default 0,
  add column jumped_at timestamptz not null default '-infinity',
  add column jumped_seconds double precision not null default 0;
update asset_sync.limiter set blocked_at = clock_timestamp() where blocked_until > clock_timestamp();
comment on column asset_sync.limiter.blocked_at is 'When blocked_until was set.';
comment on column asset_sync.limiter.called_at is 'When a slot was last taken.';
comment on column asset_sync.limiter.unanswered is
  'Calls in a row that got no answer. From two on there is one call at a time.';
comment on column asset_sync.limiter.refused_key is
  'Fingerprint of the key that the refusals and the lowered rate belong to.';
comment on column asset_sync.limiter.refusals is
  'Refusals (429) in a row, each after a full wait and with calls to spare by the settings.';
comment on column asset_sync.limiter.lowered_at is
  'Since when the key is used at the free plan''s rate, because it turned out to allow no more.';
comment on column asset_sync.limiter.lowered_seconds is
  'For how long; then the rate of the settings is tried again.';
comment on column asset_sync.limiter.seen_at is
  'The highest time seen since the clock last jumped; an earlier time proves that it was set back.';
comment on column asset_sync.limiter.mark_at is
  'The highest time seen before the clock was set back, until the clock reaches it again.';
comment on column asset_sync.limiter.jumps is 'How many jumps of the clock were recognised.';
comment on column asset_sync.limiter.jumped_at is 'When the clock last jumped by a second or more.';
comment on column asset_sync.limiter.jumped_seconds is 'How far: above 0 forward, below 0 back.';

-- Platform tables that differ from those of `db init`.

alter table asset_sync.limiter add column tables_tried bigint;
comment on column asset_sync.limiter.tables_tried is
  'Fingerprint of the existing tables, as far as they differ from ours, in which a run has tried '
  'that it can store; they are tried again when they change.';

-- Who started a run.

alter table asset_sync.runs add column started_by text;
comment on column asset_sync.runs.started_by is
  'terminal, cron, systemd or other, as the process itself found; null of a run before version 3.';

-- Impossible times (infinite or far outside of the present) and NaN would end every command that
-- computes with them. Such rows are deleted, and cannot be written any more. The next run adds
-- deleted items of the queue again.

delete from asset_sync.queue
where least(added_at, due_at, sort_at, not_before, last_success_at, last_attempt_at) < 'epoch'
  or greatest(added_at, due_at, sort_at, not_before, last_success_at, last_attempt_at, failed_at,
    lease_until, backfilled_to) >= '10000-01-01 00:00:00+00';
alter table asset_sync.queue add constraint queue_times_check check (
  least(added_at, due_at, sort_at, not_before, last_success_at, last_attempt_at) >= 'epoch'
  and greatest(added_at, due_at, sort_at, not_before, last_success_at, last_attempt_at, failed_at,
    lease_until, backfilled_to) < '10000-01-01 00:00:00+00'
);

delete from asset_sync.runs
where least(started_at, ended_at) < 'epoch'
  or greatest(started_at, ended_at) >= '10000-01-01 00:00:00+00'
  or waited_seconds not between 0 and 1e9;
alter table asset_sync.runs add constraint runs_times_check check (
  least(started_at, ended_at) >= 'epoch'
  and greatest(started_at, ended_at) < '10000-01-01 00:00:00+00'
  and waited_seconds between 0 and 1e9
);

delete from asset_sync.calls where at < 'epoch' or at >= '10000-01-01 00:00:00+00';
alter table asset_sync.calls add constraint calls_times_check
  check (at >= 'epoch' and at < '10000-01-01 00:00:00+00');

update asset_sync.slots set stamped_at = clock_timestamp(), previous_stamped_at = null
where greatest(stamped_at, previous_stamped_at) >= '10000-01-01 00:00:00+00';
alter table asset_sync.slots add constraint slots_times_check check (
  greatest(stamped_at, previous_stamped_at) < '10000-01-01 00:00:00+00'
  and open_seconds between 0 and 1e9 and previous_open_seconds between 0 and 1e9
);

update asset_sync.limiter set blocked_until = '-infinity', reserved_at = '-infinity'
where greatest(blocked_until, reserved_at) >= '10000-01-01 00:00:00+00';
alter table asset_sync.limiter add constraint limiter_times_check check (
  greatest(blocked_until, blocked_at, reserved_at, answered_at, called_at, lowered_at, seen_at,
    mark_at, jumped_at) < '10000-01-01 00:00:00+00'
);
