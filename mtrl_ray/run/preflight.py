"""A look at a run's environment before anything is paid for: before its folder, its actors, its model.

- `check_agents`: a tiny model is warm-started on scripted agents, so the environment has to have those that have a share.
- `preflight`: a few conversations of `mtrl_envs.check`. If more of them fail than `rollout.data_errors` allows, the run ends
  with the first one's sentence. Fewer failures, and anything odd, are warnings. Users that wait for a network are not talked
  to.
- Responses of a tiny model: turns of scripted agents have to fit into `rollout.response_tokens`, counted with a tokenizer that
  is made like the tiny model's. If most do not, the run is refused.
"""

from collections.abc import Callable, Sequence

from mtrl_envs.base import Environment
from mtrl_envs.check import Finding, check, check_lengths
from mtrl_envs.measure import scripted_agents
from mtrl_envs.registry import make
from mtrl_ray.dialogue.conversation import Conversation
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.settings.tree import TINY, Settings

CONTEXTS = 500
CONVERSATIONS = 32
SECONDS = 60.0
"""For all of it; a few seconds on any machine, unless a user hangs."""
TOO_LONG = 0.5
"""Share of scripted turns that do not fit, beyond which a tiny model would learn to say nothing complete."""


def check_agents(settings: Settings, environment: Environment) -> None:
    """Raises ConfigurationError if the tiny model is to be warm-started on agents that the environment does not have."""
    if settings.model.path != TINY:
        return
    given = settings.model.warm_start.shares
    shares = environment.warm_start if given is None else {str(name): share for name, share in given.items()}
    having = scripted_agents(environment)
    missing = [name for name, share in shares.items() if share > 0 and name not in having]
    if shares and not missing:
        return
    lack = (
        f"has no scripted agent {missing[0]!r} (it has: {', '.join(having) or 'none'})"
        if missing
        else "has no warm_start"
    )
    key = "warm_start" if given is None else "model.warm_start.shares"
    raise ConfigurationError(
        f"model.path is {TINY!r}, which is warm-started on conversations of scripted agents, and environment "
        f"{settings.environment.name!r} {lack}; name agents that it has in {key}, or set model.path to a pretrained model"
    )


def preflight(settings: Settings, warn: Callable[[str], object]) -> None:
    """Look at the environment of a run; `warn` gets a sentence for everything odd. Raises ConfigurationError."""
    environment = make(settings.environment.name, **settings.environment.options)
    checked = check(environment, CONTEXTS, CONVERSATIONS, SECONDS, paid=False)
    for finding in checked.findings:
        if finding.state == "failed" and (finding.share == 1 or finding.share > settings.rollout.data_errors):
            raise _refused(settings, finding)
        if finding.state != "ok":
            warn(f"{finding.what}: {finding.said}")
    spoken = [talk for talks in checked.conversations.values() for talk in talks]
    if spoken and settings.model.path == TINY:
        counter = tiny_counter(spoken, settings.model.vocabulary)
        finding, share = check_lengths(spoken, counter, settings.rollout.response_tokens)
        if share > TOO_LONG:
            raise _refused(settings, finding)
        if share:
            warn(f"{finding.what}: {finding.said}")


def _refused(settings: Settings, finding: Finding) -> ConfigurationError:
    name = settings.environment.name
    return ConfigurationError(
        f"{finding.what}: {finding.said} (mtrl check-env {name} shows everything that was looked at)"
    )


def tiny_counter(spoken: Sequence[Conversation], vocabulary: int) -> Callable[[str], int]:
    """Counts the tokens of a response, its end included, with a tokenizer made from conversations as the tiny model's is."""
    from mtrl_ray.models.tiny_tokenizer import train_tokenizer

    tokenizer = train_tokenizer([turn.text for talk in spoken for turn in talk.turns], vocabulary)
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1
