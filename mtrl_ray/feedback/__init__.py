"""Sources of feedback: judges of turns, preferences between conversations, pairs to learn from."""
