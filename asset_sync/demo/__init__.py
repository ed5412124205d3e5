"""The stand-in API: the provider's answers on loopback, replaying real bars without a key.

It shares no code with the API's client: both are written from the API's documentation, so that a
mistake in one does not hide the same mistake in the other.

- `asset_sync.demo.server`: `StandIn`, the server, with a log of all calls.
- `asset_sync.demo.answers`: the right answers.
- `asset_sync.demo.faults`: the faults that can replace a right answer.
- `asset_sync.demo.replay`: the bars, moved in time.
"""
