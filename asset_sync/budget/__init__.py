"""The budget of calls, shared by every process on every host."""
