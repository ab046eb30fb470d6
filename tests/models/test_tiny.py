"""The tiny model speaks: what it learns from scripted conversations in part of the recipe's warm start, and whose these are."""

import numpy as np
import pytest

from mtrl_envs.base import Context, User
from mtrl_envs.registry import make
from mtrl_envs.sales.environment import Sales
from mtrl_ray.dialogue.chat import chat_format
from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.learner.methods import sft_processes
from mtrl_ray.monitoring.view import Silent
from mtrl_ray.rollout.dialogue import Limits
from mtrl_ray.rollout.huggingface_engine import HuggingFaceEngine
from mtrl_ray.rollout.lease import make_leases
from mtrl_ray.rollout.loop import DialogueLoop
from mtrl_ray.run.recipes import load
from mtrl_ray.run.tiny_model import ending, make_tiny, tiny_model
from mtrl_ray.settings.tree import ModelSettings, RolloutSettings, WarmStartSettings

DONE = {"steps": 600.0, "loss": 0.0}


def test_a_cache_that_cannot_be_written_is_named(monkeypatch):
    monkeypatch.setenv("MTRL_CACHE", "/proc/nothing")
    with pytest.raises(ConfigurationError, match=r"the cache '/proc/nothing/models' cannot be written .* MTRL_CACHE"):
        tiny_model(ModelSettings(), load("sales", []).environment, make("sales"), Silent(), RolloutSettings())


def test_its_turns_are_well_formed(tmp_path, sales_settings):
    environment = make("sales")
    warm = WarmStartSettings(conversations=1000, steps=200)
    make_tiny(tmp_path, ModelSettings(warm_start=warm), environment, Silent(), RolloutSettings())
    chat = chat_format(str(tmp_path))
    engine = HuggingFaceEngine(str(tmp_path), chat.stop_ids, sales_settings.rollout, sales_settings.model)
    limits = Limits(sales_settings.rollout.response_tokens, sales_settings.model.context_length, temperature=1.0)
    loop = DialogueLoop(engine, chat, environment, limits, concurrency=64, user_seconds=60)
    job = loop.rollout(make_leases(0, "test", 0, range(64)))
    while not job.done.is_set():
        loop.step()
    said = [done.turns[place].text for done in job.conversations for place in done.agent_turns]
    assert not job.failures and len(said) > 150
    assert sum(map(environment.well_formed, said)) > 0.95 * len(said)


def test_shares_say_whose_conversations_it_is_trained_on(tmp_path, monkeypatch):
    monkeypatch.setenv("MTRL_CACHE", str(tmp_path))
    settings, environment, trained_on = load("sales", []).environment, make("sales"), []
    monkeypatch.setattr(
        sft_processes, "sft_in_processes", lambda folder, sft, table, **named: trained_on.append(table) or DONE
    )
    folders = []
    for shares in (None, {"expert": 1, "random": 0}, {"random": 1}, dict(environment.warm_start)):
        warm = WarmStartSettings(conversations=60, shares=shares, probe=None)
        folders.append(tiny_model(ModelSettings(warm_start=warm), settings, environment, Silent(), RolloutSettings()))
    own, experts, others, same = (float(np.mean(table["score"].to_numpy())) for table in trained_on)
    assert others < own < experts and same == own
    assert len(set(folders)) == 4


def test_the_ending_of_a_warm_start_is_said():
    done = {"steps": 1250.0, "loss": 0.2, "probe": 0.956, "passed": 1.0}
    assert ending(done, 0.9) == (
        "warm start: 1250 SFT steps, loss 0.200, probability that it takes up what the user said 0.956"
    )
    assert ending(done | {"probe": 0.6, "passed": 0.0}, 0.9).startswith("warning: warm start: 1250 SFT steps")
    assert "still falling" in ending({"steps": 9.0, "loss": 1.0, "held_out_loss": 1.1, "passed": 0.0}, 0.9)
    assert ending(DONE, None) == "warm start: 600 SFT steps, loss 0.000"


def test_pairs_and_a_seed_reach_the_training(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(
        sft_processes,
        "sft_in_processes",
        lambda folder, sft, table, held_out, taught, seed: (
            given.update(sft=sft, rows=held_out.num_rows, taught=taught.num_rows, seed=seed) or DONE
        ),
    )
    model = ModelSettings(warm_start=WarmStartSettings(conversations=60, seed=3, steps=77, probe=0.8))
    make_tiny(tmp_path, model, make("sales"), Silent(), RolloutSettings())
    assert (given["sft"].steps, given["sft"].until, given["sft"].pairs, given["seed"]) == (77, 0.8, True, 3)
    assert given["rows"] > 100 and given["rows"] % 2 == 0
    assert 0 < given["taught"] <= 120 and given["taught"] % 2 == 0


class Torn(Sales):
    """The user of every fourth context raises."""

    def user(self, context: Context, seed: int) -> User:
        if context.index % 4 == 3:
            raise ValueError(f"no profile {context.index}")
        return super().user(context, seed)


def test_scripted_conversations_that_fail_are_left_out_unless_too_many_are(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MTRL_CACHE", str(tmp_path))
    settings, trained_on = load("sales", []).environment, []
    monkeypatch.setattr(
        sft_processes, "sft_in_processes", lambda folder, sft, table, **named: trained_on.append(table) or DONE
    )
    model = ModelSettings(warm_start=WarmStartSettings(conversations=60, probe=None))
    tiny_model(model, settings, Torn(), Silent(), RolloutSettings(retries=0))
    assert trained_on[0].num_rows == 45 and "15 of 60 conversations" in caplog.text and "no profile 3" in caplog.text
    with pytest.raises(DataError, match=r"15 of 60 conversations of the agent 'warm_start' failed"):
        make_tiny(tmp_path / "made", model, Torn(), Silent(), RolloutSettings(retries=0, data_errors=0.2))
