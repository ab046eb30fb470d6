"""Who says what was good: judges of turns, preferences between conversations, pairs to learn from."""
