"""One suite for all tests that only read it: its games, equilibria and runs are computed once."""

import pytest

from mtrl_ray.tabular.checks import Suite
from mtrl_ray.tabular.checks.suite import LEAST_GAMES


@pytest.fixture(scope="session")
def small_suite() -> Suite:
    """The smallest allowed number of games, and as many iterations as `mtrl theory` runs."""
    return Suite(LEAST_GAMES, seed=11)
