"""For operators: health, doctor, metrics, hooks, and a forecast of how fresh the data will be."""
