"""Preferences between conversations that people gave."""
