"""One run: the loop, what becomes of an answer, what is asked for."""
