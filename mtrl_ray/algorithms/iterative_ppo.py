"""Iterative PPO: multi-turn reinforcement learning as a sequence of single-turn problems (2511.21638, Algorithm 1).

    repeat
        D_multi  = conversations held with π_i
        Q_i      = regression of returns on (state, response) pairs of D_multi          (§2.2)
        D_single = the logged states, as prompts
        π_{i+1}  = policy improvement on D_single, Q_i scoring each response; no later turn is generated

Q is response-level: one scalar per (state, response). The paper fixes this shape, not what Q is:

- `critic: linear`, the default: ridge regression on the policy's own features (`learner.methods.linear_q`), then a policy
  gradient from K responses per state, with what was said beside them (`learner.methods.single_turn`).
- `critic: continued`: no Q at all. Every sampled response is continued to the end, and its score is what came of it: what could
  be gained by a better Q. These conversations are measurements: they are not counted, and nothing else is learned from them.
  Nobody who pays for conversations wants this.
- `critic: network`: the paper's. Q is a copy of the policy with a scalar head (`learner.methods.q`), then token-level PPO with
  a critic (`learner.methods.improvement`), or GRPO or REINFORCE in its place (`improvement.estimator`).

With `q.discount: 0` the return is the reward that arrives right after the response, and the same loop is the single-turn
baseline.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from mtrl_ray.algorithms.base import Algorithm, AlgorithmSettings
from mtrl_ray.evaluation.answer_ranks import measure, measurements
from mtrl_ray.evaluation.answers import continue_all
from mtrl_ray.learner.methods.improvement import Improvement
from mtrl_ray.learner.methods.linear_q import LinearQ, ScoreLinearly
from mtrl_ray.learner.methods.outcome_scores import OutcomeScores
from mtrl_ray.learner.methods.q import QFit
from mtrl_ray.learner.methods.single_turn import SingleTurnImprovement
from mtrl_ray.learner.methods.snapshot import Snapshot
from mtrl_ray.learner.sections import KL
from mtrl_ray.processes.refs import Ref
from mtrl_ray.settings.section import Section

if TYPE_CHECKING:
    from mtrl_ray.system.logged import Logged
    from mtrl_ray.system.system import System


REPEATS = 4
"""Continuations of each response, with `critic: continued`."""


class BoundedImprovement(
    Improvement,
    epochs=1,
    minibatch_conversations=8,
    kl=KL(coefficient=0.0, kind="k2", place="loss"),
    kl_limit=0.02,
):
    """Small steps, and the way that they lead has a bound."""


class IterativePPOSettings(AlgorithmSettings, name="iterative_ppo", contexts=32):
    """The `algorithm:` section."""

    critic: Literal["linear", "network", "continued"] = "linear"
    """What Q is: see above."""
    window: int = Field(8, ge=1)
    """Iterations of conversations that Q is fitted on."""
    states: int = Field(64, ge=1)
    """Logged states per round of improvement, drawn uniformly from the iteration's conversations."""
    responses: int = Field(4, ge=1)
    """Responses sampled in each state (K)."""
    rounds: int = Field(1, ge=1)
    """Rounds of sampling and improvement per iteration."""
    ranking: float = Field(0.1, ge=0)
    """Conversations that are continued to see how Q ranks answers (`evaluation.answer_ranks`), as a share of those that are
    collected; 0: none."""
    logged: float = Field(1.0, ge=0)
    """Without `network`: weight of what was said, with its λ-return, beside the responses sampled in its state; 0: none."""
    sharpening: float = Field(3.0, ge=0)
    """Without `network`: how much the policy is sharpened where likelier responses turned out to be better; 0: not at all."""
    q: QFit = QFit()
    """Without `network`, only `discount` and `td_lambda` count: the λ of what was said."""
    improvement: BoundedImprovement = BoundedImprovement()
    """Without `network`, all but `estimator`, `whiten`, and the critic's settings."""

    @model_validator(mode="after")
    def _possible(self) -> "IterativePPOSettings":
        kl = self.improvement.kl
        if self.critic != "network" and self.responses < 2 and not self.logged:
            raise ValueError(
                f"critic is {self.critic}, logged is 0 and responses is 1; a group needs at least 2 responses"
            )
        if self.critic != "network" and kl.place == "reward" and kl.coefficient:
            raise ValueError(
                f"critic is {self.critic}, which has no rewards of tokens to take a KL from; use improvement.kl.place: loss"
            )
        if self.critic == "network" and self.improvement.estimator == "grpo" and self.responses < 2:
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
        """One pass of the loop."""
        settings = self.settings
        logged = system.rollout(settings.contexts, settings.samples)
        if settings.critic == "network":
            system.learn(settings.q, logged.window(settings.window), metrics="q")
        system.learn(Snapshot())
        every, answers = measurements(settings.ranking, settings.contexts * settings.samples, settings.responses)
        for round_number in range(settings.rounds):
            responses = system.respond(logged.states(settings.states, round_number), settings.responses)
            measured = answers if every and not round_number and logged.iteration % every == 0 else 0
            self._improve(system, logged, responses, measured)
            system.publish()

    def _improve(self, system: "System", logged: "Logged", responses: Ref[pa.Table], measured: int) -> None:
        """One improvement; `measured`: of so many of the responses, how well Q ranks them is measured before it."""
        settings, newest = self.settings, logged.window(1)
        if settings.critic == "network":
            if measured:
                measure(system, logged, responses, measured)
            system.learn(settings.improvement, newest, responses, metrics="improve")
            return
        fit = LinearQ(settings.q.discount, settings.q.td_lambda)
        older = logged.earlier(settings.window)
        scores, _ = system.learn(fit, newest, older, responses, metrics="q")
        if measured:
            measure(system, logged, responses, measured, ScoreLinearly(), scores)
        if settings.critic == "continued":
            chosen, outcomes = continue_all(system, logged, responses, REPEATS)
            read = OutcomeScores(settings.q.discount)
            scores, _ = system.learn(read, newest, responses, chosen, outcomes, scores, metrics="continued")
        improvement = SingleTurnImprovement(settings.improvement, settings.logged, settings.sharpening)
        system.learn(improvement, newest, responses, scores, metrics="improve")
