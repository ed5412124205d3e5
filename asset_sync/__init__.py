"""Keeps market data fresh in PostgreSQL under a hard API limit."""

__version__ = "0.1.0"
