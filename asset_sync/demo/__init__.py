"""The stand-in API: the provider's answers on loopback, replaying real bars without a key.

It shares no code with the rest of asset-sync: it knows the provider's API from outside, and not
how asset-sync calls it, so that a misunderstanding of the API cannot be in both.

- `asset_sync.demo.server`: `StandIn`, the server; what it heard is in its log.
- `asset_sync.demo.http`: how it speaks HTTP.
- `asset_sync.demo.control`: what other processes read and set while it runs.
- `asset_sync.demo.answers`: what it says when all is well.
- `asset_sync.demo.faults`: what it can do instead of a right answer.
- `asset_sync.demo.replay`: the bars, moved in time.
"""
