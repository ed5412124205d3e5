"""For operators: health, doctor, metrics, monitoring hooks, and the forecast of `plan`."""
