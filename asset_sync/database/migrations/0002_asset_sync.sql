-- asset-sync's own tables. No process runs all the time: queue, rate limit and history are stored
-- here, and every process on every host shares them. All times are by this database's clock.

do $schema$
begin
  if to_regnamespace('asset_sync') is null then
    create schema asset_sync;
  end if;
end
$schema$;

comment on schema asset_sync is 'Queue, rate limit and history of asset-sync.';

create table asset_sync.migrations (
  version integer primary key,
  name text not null,
  applied_at timestamptz not null default now()
);
comment on table asset_sync.migrations is 'Which migrations this database has had.';

create table asset_sync.runs (
  id bigint generated always as identity primary key,
  command text not null,
  host text not null,
  pid integer not null,
  started_at timestamptz not null default clock_timestamp(),
  ended_at timestamptz,
  reason_ended text,
  updated integer not null default 0,
  failed integer not null default 0,
  api_calls integer not null default 0,
  bars_written integer not null default 0,
  waited_seconds double precision not null default 0
);
create index runs_started_idx on asset_sync.runs (started_at);
comment on table asset_sync.runs is 'One row per run of `asset-sync sync`; kept 90 days.';
comment on column asset_sync.runs.command is 'priority or queue.';
comment on column asset_sync.runs.reason_ended is
  'Why the run ended; null while it works, and for ever if it was killed.';
comment on column asset_sync.runs.waited_seconds is 'Spent waiting for a slot of the rate limit.';

create table asset_sync.queue (
  symbol text not null,
  feed text not null check (feed in ('bars', 'snapshot')),
  ticker text not null,
  asset_type text not null,
  name text not null,
  level text not null check (level in ('critical', 'high', 'medium', 'low')),
  state text not null default 'idle' check (state in ('idle', 'waiting', 'leased', 'dead')),
  added_at timestamptz not null default now(),
  last_success_at timestamptz,
  due_at timestamptz not null default now(),
  order_at timestamptz not null default now(),
  available_at timestamptz not null default now(),
  attempts integer not null default 0,
  lookup boolean not null default false,
  asked_until timestamptz,
  last_attempt_at timestamptz,
  last_error text,
  lease_token uuid,
  lease_until timestamptz,
  primary key (symbol, feed),
  check ((state = 'leased') = (lease_token is not null)),
  check ((state = 'leased') = (lease_until is not null))
);
-- One index per lane: the claim reads its head and nothing else.
create index queue_critical_idx on asset_sync.queue (order_at, symbol, feed desc)
  where state = 'waiting' and level = 'critical';
create index queue_others_idx on asset_sync.queue (order_at, symbol, feed desc)
  where state = 'waiting' and level <> 'critical';
create index queue_leases_idx on asset_sync.queue (lease_until) where state = 'leased';
-- For the counts of `queue status` and for the queue's size. The index is small because it has few
-- different keys: counting 100,000 items reads about 90 blocks.
create index queue_live_idx on asset_sync.queue (level, state) where state <> 'idle';
create index queue_oldest_idx on asset_sync.queue (level, due_at)
  where state in ('waiting', 'leased');
create index queue_dead_idx on asset_sync.queue (last_attempt_at) where state = 'dead';
comment on table asset_sync.queue is
  'One row per asset and feed, for ever: idle until it is due, then waiting, leased by a run, and '
  'idle again; dead after too many failures of its own. The primary key keeps it from being '
  'queued twice.';
comment on column asset_sync.queue.level is
  'The level it is served at; low after a failure of its own.';
comment on column asset_sync.queue.due_at is
  'Since when it is due: last success plus its frequency, or when it was added.';
comment on column asset_sync.queue.order_at is
  'The order of service: due_at plus an allowance per level, so that low items are late but never '
  'starve; critical items stand in the order of the settings file, counted from the epoch.';
comment on column asset_sync.queue.available_at is 'Not to be tried before this.';
comment on column asset_sync.queue.attempts is 'Tries since the last success that count against it.';
comment on column asset_sync.queue.lookup is
  'Its first answer was empty: the next call asks whether the ticker exists at all.';
comment on column asset_sync.queue.asked_until is
  'How far a catch-up of several calls has come, where it found no bars.';
comment on column asset_sync.queue.lease_token is
  'Only the run that holds this token may finish the item.';

create table asset_sync.calls (
  id bigint generated always as identity primary key,
  run_id bigint references asset_sync.runs (id) on delete cascade,
  at timestamptz not null default clock_timestamp(),
  feed text not null,
  symbols text[] not null,
  outcome text not null,
  duration_ms integer not null,
  bars_written integer not null default 0,
  error text
);
create index calls_at_idx on asset_sync.calls (at);
create index calls_run_idx on asset_sync.calls (run_id);
comment on table asset_sync.calls is 'One row per HTTP request to the provider; kept 30 days.';
comment on column asset_sync.calls.outcome is 'ok, or the kind of error.';

create table asset_sync.limiter (
  id smallint primary key default 1 check (id = 1),
  blocked_until timestamptz not null default '-infinity',
  reserved_at timestamptz not null default '-infinity',
  reserved_calls integer not null default 0
);
insert into asset_sync.limiter default values;
comment on table asset_sync.limiter is 'One row, which every process locks before it takes a slot.';
comment on column asset_sync.limiter.blocked_until is 'The provider said 429: no call before this.';
comment on column asset_sync.limiter.reserved_at is 'When the next priority run is expected.';
comment on column asset_sync.limiter.reserved_calls is
  'How many slots it will want; the queue leaves them free around reserved_at.';

create table asset_sync.slots (
  slot integer generated always as identity primary key,
  ended_at timestamptz not null default '-infinity',
  previous_ended_at timestamptz,
  token uuid
);
comment on table asset_sync.slots is
  'As many rows as the plan allows calls in a window, or more where it once allowed more: then the '
  'busiest count. A slot is free one window after ended_at.';
comment on column asset_sync.slots.ended_at is
  'When its last call ended. While a call is in flight: the latest moment it can end, so that a '
  'process that dies frees its slot by itself.';
comment on column asset_sync.slots.token is 'Whose call is in flight.';

create table asset_sync.denials (
  key_fingerprint text not null,
  plan text not null,
  capability text not null check (capability in ('snapshot', 'today')),
  symbol text not null default '',
  noted_at timestamptz not null default now(),
  primary key (key_fingerprint, plan, capability, symbol)
);
comment on table asset_sync.denials is
  'What the key may not do, so that no call is spent on it; asked again after a day.';
comment on column asset_sync.denials.key_fingerprint is 'First digits of the key''s SHA-256.';
comment on column asset_sync.denials.symbol is 'The asset it was denied for; empty for all.';
