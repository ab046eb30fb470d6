"""Iterative PPO: multi-turn reinforcement learning as a sequence of single-turn problems (2511.21638, Algorithm 1).

    repeat
        D_multi  = conversations held with π_i
        Q_i      = regression of returns on (state, response) pairs of D_multi          (§2.2; Monte Carlo, or TD)
        D_single = the logged states, as prompts
        π_{i+1}  = token-level PPO on D_single, Q_i scoring each response at its last token; no later turn is generated

Q is response-level: one scalar per (state, response). With `q.discount: 0` the return is the reward that arrives right after
the response, and the same loop is the single-turn baseline: PPO on the immediate reward.
GRPO or REINFORCE may take PPO's place inside (`improvement.estimator`).
"""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from mtrl_ray.algorithms.base import Algorithm, AlgorithmSettings
from mtrl_ray.evaluation.answer_ranks import measure, measurements
from mtrl_ray.learner.methods.improvement import Improvement
from mtrl_ray.learner.methods.q import QFit
from mtrl_ray.learner.methods.snapshot import Snapshot
from mtrl_ray.settings.section import Section

if TYPE_CHECKING:
    from mtrl_ray.system.system import System


class IterativePPOSettings(AlgorithmSettings, name="iterative_ppo", contexts=256):
    """The `algorithm:` section."""

    window: int = Field(1, ge=1)
    """Iterations of conversations that Q is fitted on. Monte Carlo returns of older policies are biased: use TD targets
    (`q.target`) if this is large."""
    states: int = Field(512, ge=1)
    """Logged states per round of improvement, drawn uniformly from the iteration's conversations."""
    responses: int = Field(4, ge=1)
    """Responses sampled in each state (K)."""
    rounds: int = Field(1, ge=1)
    """Rounds of sampling and improvement per fit of Q."""
    ranking: float = Field(0.1, ge=0)
    """Conversations that are continued to see how Q ranks answers (`evaluation.answer_ranks`), as a share of those that are
    collected; 0: none."""
    q: QFit = QFit()
    improvement: Improvement = Improvement()

    @model_validator(mode="after")
    def _possible(self) -> "IterativePPOSettings":
        if self.improvement.estimator == "grpo" and self.responses < 2:
            raise ValueError("improvement.estimator is grpo and responses is 1; a group needs at least 2 responses")
        if self.q.target == "expected":
            raise ValueError(
                "q.target is expected, which needs responses in the next states, but iterative_ppo fits Q before it samples "
                "any; use monte_carlo, td_lambda or sarsa"
            )
        return self


class IterativePPO(Algorithm[IterativePPOSettings]):
    """See the module's docstring."""

    settings_class: ClassVar[type[Section]] = IterativePPOSettings

    def iterate(self, system: "System") -> None:
        """One pass of the loop. Q is fitted while the responses are sampled: neither needs the other."""
        settings = self.settings
        logged = system.rollout(settings.contexts, settings.samples)
        system.learn(settings.q, logged.window(settings.window), metrics="q")
        system.learn(Snapshot())
        every, answers = measurements(settings.ranking, settings.contexts * settings.samples, settings.responses)
        for round_number in range(settings.rounds):
            states = logged.states(settings.states, round_number)
            responses = system.respond(states, settings.responses)
            if every and not round_number and logged.iteration % every == 0:
                measure(system, logged, responses, answers)
            system.learn(settings.improvement, logged.window(1), responses, metrics="improve")
            system.publish()
