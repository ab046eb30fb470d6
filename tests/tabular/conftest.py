"""One suite for all tests that only read it: games, equilibria and runs are made once."""

import pytest

from mtrl_ray.tabular.checks import Suite
from mtrl_ray.tabular.checks.suite import LEAST_GAMES


@pytest.fixture(scope="session")
def whole() -> Suite:
    """The least number of games, and as many iterations as `mtrl theory` takes."""
    return Suite(LEAST_GAMES, seed=11)
