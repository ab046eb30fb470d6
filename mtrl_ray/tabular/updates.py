"""One iteration of each algorithm on exact values, in closed form.

Mirror descent regularised towards the reference μ: `π_{t+1} ∝ μ^{αη} π_t^{1−αη} exp(η Q)`. The algorithms differ in Q:

| | opponent | own continuation | source |
|---|---|---|---|
| `mtpo` | π_t | π_t | 2405.14655 §3 |
| `mtpo_tau` | the mixture π_t^{1−αη} μ^{αη} | the mixture | 2405.14655 §3 |
| `nash_md` | the mixture | π_t | 2312.00886, here with Q in place of one turn's preference |
| `rlhf` | none: a terminal reward | π_t | 2405.14655 §3 |

1. η_t = 2/(α(t+2)), t = 1, 2, …, and π_1 = μ.
2. For one turn there is no continuation, and `mtpo_tau` and `nash_md` are the same algorithm.
3. The mixture is normalised; `π ∝ mixture · exp(ηQ)` is then the update above.
"""

from collections.abc import Callable, Iterator

from mtrl_ray.tabular.games import PreferenceGame
from mtrl_ray.tabular.mdp import Array, Policy, log_softmax
from mtrl_ray.tabular.values import evaluate, preference_values

Update = Callable[[PreferenceGame, Policy, Array], Policy]
"""(game, π_t, η_t [games]) → π_{t+1}."""


def learning_rate(alpha: Array, step: int) -> Array:
    """η_t = 2/(α(t+2)) of the theorems, [games], for t = 1, 2, …"""
    return 2.0 / (alpha * (step + 2))


def mtpo(game: PreferenceGame, policy: Policy, eta: Array) -> Policy:
    """MTPO: the policy plays against itself."""
    return mirror_step(mixture(game, policy, eta), preference_values(game, policy, policy).q, eta)


def mtpo_tau(game: PreferenceGame, policy: Policy, eta: Array) -> Policy:
    """MTPO-τ: the mixture plays against itself; τ = αη."""
    mixed = mixture(game, policy, eta)
    return mirror_step(mixed, preference_values(game, mixed, mixed).q, eta)


def nash_md(game: PreferenceGame, policy: Policy, eta: Array) -> Policy:
    """Nash-MD: the policy plays against the mixture."""
    mixed = mixture(game, policy, eta)
    return mirror_step(mixed, preference_values(game, policy, mixed).q, eta)


def rlhf(reward: Array) -> Update:
    """Multi-turn RLHF for a reward of the final states, [games, contexts, finals]."""

    def update(game: PreferenceGame, policy: Policy, eta: Array) -> Policy:
        q = evaluate(game.mdp, policy, game.reference, game.alpha, reward).q
        return mirror_step(mixture(game, policy, eta), q, eta)

    return update


def mixture(game: PreferenceGame, policy: Policy, eta: Array) -> Policy:
    """The geometric mixture `π^{1−αη} μ^{αη}`, normalised; eta: [games], at most 1/α."""
    share = (game.alpha * eta)[:, None, None, None]
    return tuple(
        log_softmax((1.0 - share) * current + share * anchor)
        for current, anchor in zip(policy, game.reference, strict=True)
    )


def mirror_step(policy: Policy, q: tuple[Array, ...], eta: Array) -> Policy:
    """`π exp(ηQ)`, normalised."""
    scale = eta[:, None, None, None]
    return tuple(log_softmax(current + scale * advantage) for current, advantage in zip(policy, q, strict=True))


def iterates(game: PreferenceGame, update: Update, steps: int, start: Policy | None = None) -> Iterator[Policy]:
    """Yield π_1, …, π_steps, with the learning rate of rule 1; π_1 is `start`, by default the reference."""
    policy = game.reference if start is None else start
    for step in range(1, steps + 1):
        yield policy
        if step < steps:
            policy = update(game, policy, learning_rate(game.alpha, step))
