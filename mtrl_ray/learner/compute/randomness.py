"""torch's random states in a checkpoint: the CPU's, and those of the GPUs that the process sees."""

from pathlib import Path

import torch

CPU, GPUS = "random.pt", "random_gpus.pt"


def keep(folder: Path) -> None:
    """Write the states into `folder`."""
    torch.save(torch.get_rng_state(), folder / CPU)
    if torch.cuda.is_available():
        torch.save(torch.cuda.get_rng_state_all(), folder / GPUS)


def restore(folder: Path) -> None:
    """Restore the states that `keep` wrote; those of GPUs only if their number is the same."""
    torch.set_rng_state(torch.load(folder / CPU, weights_only=True))
    if torch.cuda.is_available() and (folder / GPUS).is_file():
        states = torch.load(folder / GPUS, weights_only=True)
        if len(states) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(states)
