"""The stand-in API: the provider's answers on loopback, replaying real bars without a key.

It shares no code with the API's client: both are written from the API's documentation, so that a
mistake in one does not hide the same mistake in the other.

- `asset_sync.demo.server`: `StandIn`, the server; what it heard is in its log.
- `asset_sync.demo.http`: how it speaks HTTP.
- `asset_sync.demo.control`: what other processes read and set while it runs.
- `asset_sync.demo.answers`: what it says when all is well.
- `asset_sync.demo.faults`: what it can do instead of a right answer.
- `asset_sync.demo.replay`: the bars, moved in time.
"""
