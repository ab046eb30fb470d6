"""Learning operations, one file each."""
