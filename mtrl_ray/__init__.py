"""mtrl-ray: train conversational LLM policies on what a whole conversation achieves.

Threads sleep while they wait for each other: on cores that rollout workers and learners share, threads that spin (the
default of OpenMP) cost up to ten times the work itself. OpenMP reads the setting when torch is first imported.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.2.0"
