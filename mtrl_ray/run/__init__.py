"""The life of a run: recipe, folder, trainer, checkpoints, recovery, stopping."""
