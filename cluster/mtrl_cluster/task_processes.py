"""Keeping the processes of Ray's tasks between one task and the next.

A run hands its tables to small tasks a few times in every iteration. Ray ends a task's process after a second without work,
unless the node has CPUs to spare, which a run that uses them all never has; the next task then waits for another process,
which takes a second or two of CPU time to start. Ray's processes read the variable when they start.
"""

import os

VARIABLE = "RAY_num_workers_soft_limit"
KEPT = 4
"""Idle processes on each node, of about 60 MiB of their own each. Small tasks follow each other; few are at work at a time."""


def keep() -> None:
    """Nodes that this process starts keep idle processes; a number that the environment has already holds."""
    os.environ.setdefault(VARIABLE, str(KEPT))
