"""Shared parts of scripted users and agents: text parsing, users with hidden facts, contexts and splits."""
