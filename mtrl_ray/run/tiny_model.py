"""The tiny model: a Llama of half a million parameters with its own tokenizer, made by the project.

Scripted agents talk to scripted users (`Environment.warm_start` says in which shares, or `warm_start.shares`). The tokenizer
is trained on these conversations, the model on their agent turns. The result is an ordinary Hugging Face folder, kept in a
cache under a hash of everything it was made from; a second run with the same settings finds it there.

Training ends by what the model can do: whether it takes up what the user said, or, for an environment without a probe, whether
its held-out loss still falls. Neither the clock nor a number of steps decides, because rounding, which differs between
machines, decides when a model finds out. `warm_start.shares` decide whom it imitates, and so how strong it is.
"""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from mtrl_envs.base import Environment
from mtrl_envs.driver import probe_of
from mtrl_envs.measure import MIXTURE
from mtrl_ray.dialogue.chat import chat_format
from mtrl_ray.dialogue.conversation import Conversation, Role, Turn, to_table, visible_history
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.evaluation.holdout import scripted_conversations
from mtrl_ray.models.blank import blank_model
from mtrl_ray.monitoring.view import View
from mtrl_ray.settings.tree import EnvironmentSettings, ModelSettings, RolloutSettings

BATCH_CONVERSATIONS, LEARNING_RATE = 16, 3e-3
"""Of a supervised step."""
HELD_OUT = 400
"""Further scripted conversations, on which the model is tried while it is trained."""
TAUGHT = 1500
"""Most pairs of answers that it learns from."""
ENDING = "warm_start.json"
"""File of the model's folder with the numbers of its supervised fine-tuning."""
FIRST = 8
"""Conversations whose texts are part of the cache's key."""
RECIPE_VERSION = 3
"""Raised when the way the model is made changes, so that cached ones are not taken for new ones."""


def cache_folder() -> Path:
    """Where models are kept: `$MTRL_CACHE`, or mtrl-ray in the user's cache folder."""
    given = os.environ.get("MTRL_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mtrl-ray"


def tiny_model(
    model: ModelSettings,
    environment_settings: EnvironmentSettings,
    environment: Environment,
    view: View,
    rollout: RolloutSettings,
) -> Path:
    """The folder of a warm-started tiny model for an environment; made if the cache does not have it.

    rollout: how long a scripted conversation may take, and what share of them may fail.
    """
    some = rollout.model_copy(update={"data_errors": 1.0})  # few conversations: any share may fail, but not all
    made_from = {  # without settings that are None: a new one leaves the models that are there as they were
        "model": model.model_dump(mode="json", exclude_none=True),
        "environment": environment_settings.model_dump(mode="json"),
        "shares": environment.warm_start,
        "first": [turn.text for done in _scripted(environment, model, some, FIRST) for turn in done.turns],
        "recipe": RECIPE_VERSION,
    }
    digest = hashlib.blake2b(json.dumps(made_from, sort_keys=True).encode(), digest_size=8).hexdigest()
    name = environment_settings.name.replace(":", ".")
    folder = cache_folder() / "models" / f"tiny-{name}-{digest}"
    if (folder / "config.json").is_file():
        view.note(ending(json.loads((folder / ENDING).read_text()), model.warm_start.probe))
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    except OSError as error:
        raise ConfigurationError(
            f"the cache {str(folder.parent)!r} cannot be written ({error.strerror}); name another folder in the environment "
            "variable MTRL_CACHE"
        ) from None
    try:
        metrics = make_tiny(scratch, model, environment, view, rollout)
        view.note(ending(metrics, model.warm_start.probe))
        _settle(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def make_tiny(
    folder: Path, model: ModelSettings, environment: Environment, view: View, rollout: RolloutSettings
) -> dict[str, float]:
    """Make and warm-start the model in an empty folder; the numbers of its supervised fine-tuning.

    Scripted conversations that fail are left out. Raises DataError or EngineError if too many do.
    """
    from mtrl_ray.learner.methods.sft import SFT  # with torch, which a driver that finds its model needs not
    from mtrl_ray.learner.methods.sft_processes import sft_in_processes
    from mtrl_ray.learner.methods.warm_start import WarmStart

    warm = model.warm_start
    view.part("warm start", f"{warm.conversations} scripted conversations")
    spoken = _scripted(environment, model, rollout, warm.conversations + (0 if warm.probe is None else HELD_OUT))
    spoken, held_out = spoken[: warm.conversations], spoken[warm.conversations :]
    blank_model(folder, model, spoken)
    chat = chat_format(str(folder))
    encoded = to_table(chat.encode(conversation) for conversation in spoken)
    view.part("warm start", f"SFT on {len(spoken)} conversations, {warm.steps} steps at most")
    if warm.probe is None or not held_out:
        sft = SFT(steps=warm.steps, minibatch_conversations=BATCH_CONVERSATIONS, learning_rate=LEARNING_RATE)
        metrics = sft_in_processes(folder, sft, encoded, seed=warm.seed)
    else:
        pairs, taught = probes(environment, held_out), probes(environment, spoken, TAUGHT)
        tables = [
            to_table(chat.encode(conversation) for conversation in some) for some in (pairs or held_out, taught) if some
        ]
        start = WarmStart(warm.steps, warm.probe, bool(pairs), BATCH_CONVERSATIONS, LEARNING_RATE)
        metrics = sft_in_processes(folder, start, encoded, *tables, seed=warm.seed)
    view.part("warm start", "")
    (folder / ENDING).write_text(json.dumps(metrics))
    return metrics


def ending(metrics: dict[str, float], wanted: float | None) -> str:
    """How a warm start ended, in a sentence; `wanted`: the threshold of its probe."""
    done = f"warm start: {metrics['steps']:.0f} SFT steps, loss {metrics['loss']:.3f}"
    if "probe" in metrics:
        done += f", probability that it takes up what the user said {metrics['probe']:.3f}"
        if not metrics["passed"]:
            return f"warning: {done}, below {wanted:g}: the start is weaker than wanted; raise model.warm_start.steps"
    elif "held_out_loss" in metrics:
        done += f", held-out loss {metrics['held_out_loss']:.3f}"
        if not metrics["passed"]:
            return f"warning: {done}, which was still falling; raise model.warm_start.steps"
    return done


def probes(environment: Environment, spoken: list[Conversation], most: int | None = None) -> list[Conversation]:
    """Pairs of conversations up to a state that suits `Environment.probe`, followed by the right answer and by the wrong one.

    At most one pair of each conversation, so that pairs are independent; `most` pairs in all, None: any number.
    """
    pairs: list[Conversation] = []
    for held in spoken:
        if most is not None and len(pairs) >= 2 * most:
            break
        for place in held.agent_turns:
            found = probe_of(environment, visible_history(held.turns[:place]))
            if found is not None:
                before = held.turns[:place]
                answers = [Turn(Role.AGENT, text) for text in (found.right, found.wrong)]
                pairs += [replace(held, turns=[*before, answer]) for answer in answers]
                break
    return pairs


def _scripted(
    environment: Environment, model: ModelSettings, rollout: RolloutSettings, count: int
) -> list[Conversation]:
    given = model.warm_start.shares
    shares = None if given is None else {str(agent): share for agent, share in given.items()}
    return scripted_conversations(environment, MIXTURE, count, rollout, "train", shares)


def _settle(scratch: Path, folder: Path) -> None:
    """Move a finished folder into place; another process that was faster wins."""
    try:
        scratch.rename(folder)
    except OSError:
        if not (folder / "config.json").is_file():
            raise
