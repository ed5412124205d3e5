"""What is stored: the platform's bars and prices, and the history of runs."""
