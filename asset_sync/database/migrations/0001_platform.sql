-- The platform's tables. Missing tables are created; existing ones stay as they are. Each statement
-- first checks whether the object exists: `create ... if not exists` needs the right to create even
-- if the object exists, and a role may have rights only on its own schemas.

do $platform$
begin

if to_regnamespace('trading') is null then
  create schema trading;
  comment on schema trading is 'What is traded.';
end if;

if to_regclass('trading.symbols') is null then
  create table trading.symbols (
    id bigint generated always as identity primary key,
    symbol text not null unique,
    name text,
    asset_type text,
    metadata jsonb not null default '{}',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
  );
  comment on table trading.symbols is 'One row per asset.';
  comment on column trading.symbols.symbol is 'Our name of the asset: EURUSD.';
  comment on column trading.symbols.asset_type is 'forex (metals too) or crypto.';
  comment on column trading.symbols.metadata is
    'metadata.last_update is the last price: {bid, ask, last_price, daily_open, daily_high, '
    'daily_low, daily_close, timestamp, source}. bid and ask are null where it comes from a bar.';
end if;

if to_regnamespace('data_sources') is null then
  create schema data_sources;
  comment on schema data_sources is 'Where data comes from, and how fresh it is.';
end if;

if to_regclass('data_sources.api_providers') is null then
  create table data_sources.api_providers (
    id bigint generated always as identity primary key,
    code text not null unique,
    name text,
    created_at timestamptz not null default now()
  );
  comment on table data_sources.api_providers is 'One row per provider of data.';
end if;

if to_regclass('data_sources.data_sync_status') is null then
  create table data_sources.data_sync_status (
    id bigint generated always as identity primary key,
    ticker_id bigint not null references trading.symbols (id) on delete cascade,
    provider_id bigint not null references data_sources.api_providers (id) on delete cascade,
    last_sync_timestamp timestamptz,
    sync_status text,
    error_message text,
    updated_at timestamptz not null default now(),
    unique (ticker_id, provider_id)
  );
  comment on table data_sources.data_sync_status is 'How each asset stands with each provider.';
  comment on column data_sources.data_sync_status.last_sync_timestamp is
    'When data last came in; a failure leaves it as it was.';
  comment on column data_sources.data_sync_status.sync_status is 'success or error.';
end if;

if to_regnamespace('market_data') is null then
  create schema market_data;
  comment on schema market_data is 'Prices over time.';
end if;

if to_regclass('market_data.ohlcv_5m') is null then
  create table market_data.ohlcv_5m (
    ticker_id bigint not null references trading.symbols (id) on delete cascade,
    ts timestamptz not null,
    open double precision not null,
    high double precision not null,
    low double precision not null,
    close double precision not null,
    volume double precision,
    vwap double precision,
    trades bigint,
    primary key (ticker_id, ts)
  );
  comment on table market_data.ohlcv_5m is 'Five-minute bars, as the provider sends them.';
  comment on column market_data.ohlcv_5m.ts is 'The START of the bar.';
  comment on column market_data.ohlcv_5m.volume is
    'Traded volume; for forex the number of quotes the bar was made of.';
  comment on column market_data.ohlcv_5m.vwap is 'Volume-weighted average price, if sent.';
  comment on column market_data.ohlcv_5m.trades is 'Number of trades (forex: quotes), if sent.';
end if;

if not exists (select from data_sources.api_providers where code = 'polygon') then
  if exists (
    select from information_schema.columns
    where table_schema = 'data_sources' and table_name = 'api_providers' and column_name = 'name'
  ) then
    insert into data_sources.api_providers (code, name) values ('polygon', 'Polygon.io');
  else
    insert into data_sources.api_providers (code) values ('polygon');
  end if;
end if;

end
$platform$;
