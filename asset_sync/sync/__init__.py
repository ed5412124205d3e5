"""One run: the loop, its calls, and what it does with each answer."""
