-- One bad thing never stops the rest: strikes by evidence, slots that know how long they stay
-- open, and a clock that may jump. Columns also take the field's usual names.

-- The queue.

alter table asset_sync.queue rename column order_at to sort_at;
alter table asset_sync.queue rename column available_at to not_before;
alter table asset_sync.queue rename column lookup to verify_ticker;
alter table asset_sync.queue rename column asked_until to backfilled_to;
alter table asset_sync.queue
  add column strikes integer not null default 0,
  add column failed_at timestamptz not null default '-infinity',
  add column failed_tickers text[] not null default '{}';

-- How the levels stand is counted for the settings' own assets, by their keys.
drop index asset_sync.queue_live_idx;
drop index asset_sync.queue_oldest_idx;

-- What has failed before goes on as it was.
update asset_sync.queue
set strikes = 1, failed_at = coalesce(last_attempt_at, now()), failed_tickers = array[ticker]
where state = 'dead' or attempts > 0;
update asset_sync.queue set state = 'waiting', not_before = now()
where state = 'dead' and level = 'critical';

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

-- Who started a run.

alter table asset_sync.runs add column started_by text;
comment on column asset_sync.runs.started_by is
  'terminal, cron, systemd or other, as the process itself found; null of a run before version 3.';
