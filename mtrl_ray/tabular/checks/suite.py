"""What the checks share: random games, their equilibria, the runs of the algorithms on them, and the result of a check.

1. `Suite(games, seed)` holds everything random. Games, equilibria and runs are computed when a check first needs them.
2. A check holds if `error ≤ bound`. Both are in the unit of the check; if the error is a ratio to a theorem's bound, the
   bound is 1.
3. A check draws its other random numbers from `suite.rng(name)`, so its result does not depend on which others ran.
"""

import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.tabular import updates
from mtrl_ray.tabular.equilibrium import duality_gap, nash_equilibrium
from mtrl_ray.tabular.games import KINDS, SHAPES, PreferenceGame, random_games
from mtrl_ray.tabular.mdp import Array, Policy, divergence
from mtrl_ray.tabular.values import occupancy

LEAST_GAMES = len(KINDS) * len(SHAPES)
LEAST_STEPS = 8


@dataclass(frozen=True)
class Check:
    """Result of a check: the largest `error` over `games` games, compared with its `bound`."""

    name: str
    holds: bool
    error: float
    bound: float
    games: int

    def as_dict(self) -> dict[str, Any]:
        """`{name, holds, error, bound, games}`."""
        return asdict(self)


def verdict(name: str, error: float, bound: float, games: int) -> Check:
    """The result for an error and its bound; a NaN error does not hold."""
    return Check(name, bool(error <= bound), float(error), float(bound), games)


@dataclass(frozen=True)
class Run:
    """Run of an algorithm on a batch."""

    divergence: Array
    """KL_p(π*‖π_t), [steps, games]."""
    gap: Array
    """Duality gap of π_t at the suite's `marks`, [marks, games]."""
    last: Policy
    """π_steps."""


@dataclass(frozen=True)
class Suite:
    """`games` random games in total, with every shape and kind of preference; runs of `steps` iterations."""

    games: int = 240
    seed: int = 0
    steps: int = 1000

    def __post_init__(self) -> None:
        if self.games < LEAST_GAMES:
            raise ConfigurationError(
                f"--games {self.games}: {len(KINDS)} kinds of preference in {len(SHAPES)} shapes need at least "
                f"{LEAST_GAMES} games"
            )
        if self.seed < 0:
            raise ConfigurationError(f"--seed {self.seed}: give a number that is not negative")
        if self.steps < LEAST_STEPS:
            raise ConfigurationError(
                f"{self.steps} iterations are too few to estimate a rate; use at least {LEAST_STEPS}"
            )

    def rng(self, name: str) -> np.random.Generator:
        """The random number generator of a name."""
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

    @cached_property
    def batches(self) -> tuple[PreferenceGame, ...]:
        """One batch per shape."""
        share, rest = divmod(self.games, len(SHAPES))
        return tuple(
            random_games(shape, share + (index < rest), self.rng(f"games {index}"))
            for index, shape in enumerate(SHAPES)
        )

    @cached_property
    def equilibria(self) -> tuple[Policy, ...]:
        """π* of every batch."""
        return tuple(nash_equilibrium(batch) for batch in self.batches)

    @property
    def marks(self) -> tuple[int, ...]:
        """Iterations t at which duality gaps are computed: about ten per decade, and the last one."""
        count = int(10 * np.log10(self.steps)) + 1
        return tuple(sorted({round(float(t)) for t in np.geomspace(1, self.steps, count)}))

    def solved(self) -> Iterator[tuple[PreferenceGame, Policy]]:
        """Batches with their equilibria."""
        return zip(self.batches, self.equilibria, strict=True)

    @cached_property
    def mtpo(self) -> tuple[Run, ...]:
        """MTPO on every batch."""
        return tuple(self._run(batch, star, updates.mtpo) for batch, star in self.solved())

    @cached_property
    def mtpo_tau(self) -> tuple[Run, ...]:
        """MTPO-τ on every batch."""
        return tuple(self._run(batch, star, updates.mtpo_tau) for batch, star in self.solved())

    @cached_property
    def nash_md(self) -> tuple[Run, ...]:
        """Nash-MD on every batch."""
        return tuple(self._run(batch, star, updates.nash_md) for batch, star in self.solved())

    def _run(self, game: PreferenceGame, star: Policy, update: updates.Update) -> Run:
        distance = _DistanceTo(game, star)
        gaps, distances, policy = [], [], star
        for step, policy in enumerate(updates.iterates(game, update, self.steps), start=1):
            distances.append(distance(policy))
            if step in self.marks:
                gaps.append(duality_gap(game, policy))
        return Run(np.stack(distances), np.stack(gaps), policy)


class _DistanceTo:
    """KL_p(π*‖·) with the occupancy of π* computed once."""

    def __init__(self, game: PreferenceGame, star: Policy) -> None:
        self.star = star
        self.weights = [game.mdp.contexts[..., None] * states for states in occupancy(game.mdp, star)[:-1]]

    def __call__(self, policy: Policy) -> Array:
        """[games]"""
        total = np.zeros(len(self.weights[0]))
        for weights, ours, theirs in zip(self.weights, self.star, policy, strict=True):
            total += np.einsum("gcs,gcs->g", weights, divergence(ours, theirs))
        return total
