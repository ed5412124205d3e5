"""Polygon.io, now Massive.com: its client, endpoints, markets and plans.

The facts about the API are those of its specification at https://polygon.io/docs and of recorded
answers. The client is imported where the first call is made: requests takes 150 ms.
"""
