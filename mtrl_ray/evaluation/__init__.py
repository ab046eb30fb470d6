"""Held-out evaluation of policies, with confidence intervals."""
