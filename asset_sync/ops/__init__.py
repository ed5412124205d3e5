"""What operators look at: health, doctor, metrics, hooks, and how fresh a plan keeps the data."""
