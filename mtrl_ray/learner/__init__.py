"""The learner: tables in, better models out.

Its threads sleep while they wait for each other: on cores that rollout workers and users share, threads that spin (the
default of OpenMP) cost up to ten times the work itself. OpenMP reads the setting when torch is first imported.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
