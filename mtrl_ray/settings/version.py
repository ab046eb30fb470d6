"""The version, in a room of its own below all that write it into files."""

__version__ = "0.2.0"
