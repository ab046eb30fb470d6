"""Keeping a Ray that is started here on this machine.

Ray's processes listen on every interface, except those of a node whose address is 127.0.0.1. Ray gives a node that
address only if it is told to stay on one machine: by an environment variable, which it reads when it is imported
and keeps as a constant. `confine` sets both, for this process and its children, unless the variable says otherwise.
"""

import os

from ray._private import ray_constants

HERE = "127.0.0.1"
VARIABLE = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR


def confine() -> None:
    """Ray processes that this process starts listen only on 127.0.0.1; with VARIABLE=1 in the environment, everywhere."""
    if os.environ.setdefault(VARIABLE, "0") == "0":
        ray_constants.ENABLE_RAY_CLUSTER = False


def is_here(address: str) -> bool:
    """Whether `host:port` is on this machine's loopback: Ray would put the machine's other address into its place."""
    return address.rpartition(":")[0] in (HERE, "localhost")
