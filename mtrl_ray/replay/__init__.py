"""What was said, kept: the journal on disk, the replay buffer in the object store, and logs of other systems."""
