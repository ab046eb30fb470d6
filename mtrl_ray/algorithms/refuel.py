"""REFUEL: regressing the relative future (2410.04612, Algorithm 1).

    repeat
        D     = conversations held with π_t
        s_h   drawn uniformly over their states, and continued anew by π_t: another answer y'_h, with a future of its own
        π_t+1 ← regression of  [log π/π_t(y_h|s_h) - log π/π_t(y'_h|s_h)] / η  on the difference of the two returns
    until done

One model is policy and critic: at the minimum log π/π_t is η Q up to a constant per state. Data are always the policy's own, so
training sees the states that the policy gets into. Every iteration holds twice `contexts` x `samples` conversations.
"""

from typing import TYPE_CHECKING, ClassVar

from mtrl_ray.algorithms.base import Algorithm
from mtrl_ray.algorithms.conversation_settings import OutcomeSettings
from mtrl_ray.dialogue.conversation import from_table
from mtrl_ray.feedback.futures import branches, futures
from mtrl_ray.learner.methods.refuel import RefuelUpdate
from mtrl_ray.rollout.lease import derive_seed
from mtrl_ray.settings.section import Section

if TYPE_CHECKING:
    from mtrl_ray.system.system import System


class RefuelSettings(OutcomeSettings, name="refuel", contexts=128):
    """The `algorithm:` section."""

    improvement: RefuelUpdate = RefuelUpdate()


class Refuel(Algorithm[RefuelSettings]):
    """See the module's docstring."""

    settings_class: ClassVar[type[Section]] = RefuelSettings

    def iterate(self, system: "System") -> None:
        """One pass of the loop."""
        settings = self.settings
        logged = system.rollout(settings.contexts, settings.samples)
        held = from_table(system.fetch(logged.table, "conversations to draw states from"))
        seed = derive_seed(system.settings.run.seed, "branches", system.iteration)
        drawn = branches(logged.leases, held, settings.samples, seed)
        parent_of = {lease.id: parent for lease, parent in drawn}
        continued = system.branch([lease for lease, _ in drawn])
        parents = [parent_of[name] for name in continued.ids]
        answers, returns, numbers = futures.remote(logged.table, continued.table, parents, settings.overlong_penalty)
        system.record("futures", numbers)
        system.learn(settings.improvement, logged.table, answers, returns, metrics="improve")
        system.publish()
