"""Killing parts of a real run at random, and counting what that costs: `mtrl chaos`."""
