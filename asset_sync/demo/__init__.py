"""The stand-in API: the provider's answers on loopback, replaying real bars without a key.

It stands apart from everything else: it knows the provider's API as seen from outside and nothing
of how asset-sync calls it, so that what both agree on has been written down twice.

- `asset_sync.demo.server`: `StandIn`, the server; what it heard is in its log.
- `asset_sync.demo.answers`: what it says when all is well.
- `asset_sync.demo.faults`: what it can do instead of a right answer.
- `asset_sync.demo.replay`: the bars, moved in time.
"""
