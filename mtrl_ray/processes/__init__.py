"""Starting, waiting for and losing processes: what every actor of a run has in common."""
