"""Versions of the policy's weights: packed once, kept in the object store, pulled by the workers that sample."""
