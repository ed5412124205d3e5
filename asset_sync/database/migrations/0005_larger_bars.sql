-- Larger bars: how many five-minute bars are expected, which SQL cannot know by itself, because
-- the settings say when an asset trades.

create table asset_sync.symbol_hours (
  symbol text primary key,
  hours text not null
);
comment on table asset_sync.symbol_hours is 'Which hours each asset has, as the settings say.';
comment on column asset_sync.symbol_hours.hours is
  'The name of the hours (fx, metals, crypto, us), or the lines of an asset''s own hours.';

create table asset_sync.expected_bars (
  hours text not null,
  day date not null,
  before integer not null,
  before_quarter smallint[] not null,
  primary key (hours, day),
  check (cardinality(before_quarter) = 96)
);
comment on table asset_sync.expected_bars is
  'How many five-minute bars are expected, by hours and day (UTC). Between two moments it is the '
  'difference of what is expected before each: before + before_quarter[number of the quarter of an '
  'hour, 1 to 96].';
comment on column asset_sync.expected_bars.before is
  'How many are expected from the first day of these hours to the beginning of this one.';
comment on column asset_sync.expected_bars.before_quarter is
  'How many are expected from the beginning of the day to that of each quarter of an hour.';
