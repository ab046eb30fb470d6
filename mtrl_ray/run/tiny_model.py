"""The tiny model: a Llama of half a million parameters with its own tokenizer, made by the project.

1. Scripted agents talk to scripted users (`Environment.warm_start` says in which shares, or `warm_start.shares`); the
   tokenizer is trained on these conversations, the model on their agent turns.
2. The result is an ordinary Hugging Face folder, kept in a cache under a hash of everything it was made from; a second
   run with the same settings finds it there.
3. The number of training steps decides how strong it is, never the clock. Weights still differ between machines: a
   thousand steps carry the rounding of the first ones far.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from mtrl_envs.base import Environment
from mtrl_envs.measure import MIXTURE
from mtrl_ray.dialogue.chat import chat_format
from mtrl_ray.dialogue.conversation import Conversation, to_table
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.evaluation.holdout import scripted_conversations
from mtrl_ray.models.blank import blank_model
from mtrl_ray.monitoring.view import View
from mtrl_ray.settings.tree import EnvironmentSettings, ModelSettings, RolloutSettings

BATCH_CONVERSATIONS, LEARNING_RATE = 16, 3e-3
"""Of a supervised step."""
FIRST = 8
"""Conversations whose texts are part of the cache's key."""
RECIPE_VERSION = 1
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
        make_tiny(scratch, model, environment, view, rollout)
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

    warm = model.warm_start
    view.part("warm start", f"{warm.conversations} scripted conversations")
    spoken = _scripted(environment, model, rollout, warm.conversations)
    blank_model(folder, model, spoken)
    chat = chat_format(str(folder))
    encoded = to_table(chat.encode(conversation) for conversation in spoken)
    view.part("warm start", f"{warm.steps} SFT steps on {len(spoken)} conversations")
    sft = SFT(steps=warm.steps, minibatch_conversations=BATCH_CONVERSATIONS, learning_rate=LEARNING_RATE)
    metrics = sft_in_processes(folder, encoded, sft)
    view.part("warm start", "")
    view.note(f"warm start: {warm.steps} SFT steps, loss {metrics['loss']:.3f}")
    return metrics


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
