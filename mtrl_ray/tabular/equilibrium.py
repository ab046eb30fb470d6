"""The Nash equilibrium of the regularised game, to rounding error, and a policy's distance from it.

1. The value of a policy depends on the opponent only through y, the opponent's distribution of final states. Let T(y)
   be the distribution of final states of the best policy against y. The equilibrium is the best policy against the y
   with y = T(y).
2. T = ∇W(Py), with W the regularised value as a function of the terminal rewards; W is convex. Its Hessian D, the
   sum over turns of expected covariances /α, is symmetric and positive semi-definite, and P − ½ is antisymmetric, so
   I − D(P − ½) has eigenvalues with real part 1 and is invertible: Newton's method on y − T(y) is always defined.
3. The solver starts at a large regularisation, where the equilibrium is near the reference, and halves it down to the
   game's α. A step that does not lower the residual is halved (per game and context).
4. Duality gap: max_π' P_α(π' ≻ π) − min_π' P_α(π ≻ π'), with best responses by backward induction.
"""

import numpy as np

from mtrl_ray.errors import DataError
from mtrl_ray.tabular.games import PreferenceGame
from mtrl_ray.tabular.mdp import Array, Policy
from mtrl_ray.tabular.values import best_policy, final_distribution, occupancy, trajectory_kl, win_probability

TOLERANCE = 1e-13
"""Largest |y − T(y)| of a solution."""
HALVINGS = 6
"""The solver starts with a regularisation of 2^HALVINGS α."""


def nash_equilibrium(game: PreferenceGame) -> Policy:
    """π*, the fixed point of `π ∝ μ exp(Q^{π,π}/α)`. Raises DataError if |y − T(y)| ≤ 1e-13 is not reached."""
    finals = final_distribution(game.mdp, game.reference)
    for halvings in range(HALVINGS, -1, -1):
        finals, residual = _newton(game, game.alpha * 2.0**halvings, finals)
    worst = int(residual.max(axis=1).argmax())
    if not residual.max() <= TOLERANCE:
        raise DataError(
            f"game {worst}: the equilibrium is only known to {residual[worst].max():.1e}; its alpha is "
            f"{game.alpha[worst]:.3g}, and a larger alpha makes it easier to find"
        )
    return best_policy(game.mdp, game.reference, game.alpha, win_probability(game, finals))[0]


def best_response(game: PreferenceGame, opponent: Policy) -> tuple[Policy, Array]:
    """The policy π' that maximises P_α(π' ≻ opponent), and the maximum, [games]."""
    terminal = win_probability(game, final_distribution(game.mdp, opponent))
    policy, value = best_policy(game.mdp, game.reference, game.alpha, terminal)
    return policy, game.mdp.average(value) + game.alpha * trajectory_kl(game.mdp, opponent, game.reference)


def worst_case(game: PreferenceGame, policy: Policy) -> Array:
    """min over π' of P_α(policy ≻ π'), [games], by backward induction for the opponent."""
    loses = np.einsum("gcx,gcxy->gcy", final_distribution(game.mdp, policy), game.preference)
    _, value = best_policy(game.mdp, game.reference, game.alpha, -loses)
    return -game.mdp.average(value) - game.alpha * trajectory_kl(game.mdp, policy, game.reference)


def duality_gap(game: PreferenceGame, policy: Policy) -> Array:
    """Duality gap of a policy, [games]; zero only at the equilibrium."""
    return best_response(game, policy)[1] - worst_case(game, policy)


def _newton(game: PreferenceGame, alpha: Array, finals: Array, steps: int = 40) -> tuple[Array, Array]:
    """Solve y = T(y) from a start. Returns y [games, contexts, finals] and max |y − T(y)| [games, contexts]."""
    answer, slope = _response(game, alpha, finals)
    for _ in range(steps):
        residual = np.abs(finals - answer).max(axis=-1)
        if residual.max() <= 0.1 * TOLERANCE:
            break
        jacobian = np.eye(game.mdp.finals) - slope @ (game.preference - 0.5)
        step: np.ndarray = np.linalg.solve(jacobian, (answer - finals)[..., None])[..., 0]
        finals, answer, slope = _damped_step(game, alpha, finals, step, residual)
    return finals, np.abs(finals - answer).max(axis=-1)


def _damped_step(
    game: PreferenceGame, alpha: Array, finals: Array, step: Array, residual: Array
) -> tuple[Array, Array, Array]:
    """Take the step, halved until it lowers the residual (to rounding error). Returns y, T(y), ∇²W."""
    length = np.ones(residual.shape)
    for _ in range(30):
        candidate = finals + length[..., None] * step
        answer, slope = _response(game, alpha, candidate)
        worse = np.abs(candidate - answer).max(axis=-1) > np.maximum(residual, TOLERANCE)
        if not worse.any():
            break
        length = np.where(worse, 0.5 * length, length)
    return candidate, answer, slope


def _response(game: PreferenceGame, alpha: Array, finals: Array) -> tuple[Array, Array]:
    """T(y), [games, contexts, finals], and the Hessian of W, [games, contexts, finals, finals]."""
    mdp = game.mdp
    policy, _ = best_policy(mdp, game.reference, alpha, win_probability(game, finals))
    visits = occupancy(mdp, policy)
    outcome = np.broadcast_to(np.eye(mdp.finals), (*mdp.contexts.shape, mdp.finals, mdp.finals))
    """P(final state | state) for the states of the layer after the turn, [games, contexts, states, finals]."""
    hessian = np.zeros((*mdp.contexts.shape, mdp.finals, mdp.finals))
    for turn in reversed(range(mdp.horizon)):
        choices = np.exp(policy[turn])
        by_action = mdp.transitions[turn] @ outcome[:, :, None]
        outcome = np.einsum("gcsa,gcsax->gcsx", choices, by_action)
        centred = by_action - outcome[:, :, :, None]
        weights = (visits[turn][..., None] * choices)[..., None] * centred
        pairs = (*mdp.contexts.shape, -1, mdp.finals)
        hessian += np.swapaxes(weights.reshape(pairs), -1, -2) @ centred.reshape(pairs)
    return visits[-1], hessian / alpha[:, None, None, None]
