"""The budget of calls, which every process on every host shares."""
