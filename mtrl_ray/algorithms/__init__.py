"""Algorithms: one file each, readable beside its paper; registered by name in `registry`."""
