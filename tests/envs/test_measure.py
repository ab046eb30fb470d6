"""Scripted agents against scripted users: determinism, valid conversations, and that planning pays."""

import pytest

from mtrl_envs import measure
from mtrl_envs.base import Context, Environment, Outcome, Reply, User
from mtrl_envs.registry import ENVIRONMENTS, make
from mtrl_envs.win_rates import win_rate
from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, validate, visible_text
from mtrl_ray.errors import ConfigurationError

NAMES = sorted(ENVIRONMENTS)
TEST_CONTEXTS = 256


@pytest.mark.parametrize("name", NAMES)
def test_planning_pays(name: str) -> None:
    expert, greedy, random = (
        measure.mean_outcome(make(name), agent, TEST_CONTEXTS, "test", seed=0) for agent in measure.AGENTS
    )
    assert expert.mean >= 2 * greedy.mean
    assert expert.low > greedy.high
    assert greedy.low > random.high
    assert expert.n == TEST_CONTEXTS


@pytest.mark.parametrize("name", NAMES)
def test_the_warm_start_leaves_room_for_learning(name: str) -> None:
    expert, mixture = (measure.mean_outcome(make(name), a, TEST_CONTEXTS, "train") for a in ("expert", "warm_start"))
    assert 0.35 * expert.mean < mixture.mean < 0.75 * expert.mean


@pytest.mark.parametrize("agent", [*measure.AGENTS, measure.MIXTURE])
@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_same_conversation(name: str, agent: str) -> None:
    first, again = (list(measure.conversations(make(name), agent, 20, "train", seed=3)) for _ in range(2))
    assert first == again
    other = list(measure.conversations(make(name), agent, 20, "train", seed=4))
    assert [c.turns for c in first] != [c.turns for c in other]
    assert len({c.id for c in [*first, *other]}) == 40


@pytest.mark.parametrize("agent", measure.AGENTS)
@pytest.mark.parametrize("name", NAMES)
def test_conversations_are_valid_and_short(name: str, agent: str) -> None:
    environment = make(name)
    for conversation in measure.conversations(environment, agent, 60, "train", seed=1):
        validate(conversation)
        assert [turn.role for turn in conversation.turns[:3]] == [Role.SYSTEM, Role.USER, Role.AGENT]
        assert 1 <= len(conversation.agent_turns) <= environment.max_turns
        assert sum(conversation.rewards) == pytest.approx(conversation.score)
        assert conversation.stop == StopReason.OUTCOME or conversation.score == 0
        assert all(environment.well_formed(conversation.turns[at].text) for at in conversation.agent_turns)
        assert sum(len(turn.text.split()) + len((turn.sent or "").split()) for turn in conversation.turns) < 250
        assert all(isinstance(value, float) for value in conversation.metrics.values())


class Spy:
    """An agent that keeps what it reads."""

    def __init__(self, agent: object) -> None:
        self.agent, self.read = agent, []

    def respond(self, history: list[tuple[Role, str]]) -> str:
        self.read = list(history)
        return self.agent.respond(history)


def test_agents_read_what_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = make("sales", as_is=0.0, edited=0.0, ignored=1.0)
    spies: list[Spy] = []
    plain = environment.agent

    def agent(name: str, seed: int) -> Spy:
        spies.append(Spy(plain(name, seed)))
        return spies[-1]

    monkeypatch.setattr(environment, "agent", agent)
    conversation = measure.rollout(environment, environment.context("train", 0), "expert", 0)
    turns = conversation.turns
    assert turns[2].sent
    assert spies[0].read[3] == (Role.USER, visible_text(turns[3].text, turns[2].sent))


def test_unknown_agents_and_empty_measurements_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="unknown scripted agent 'oracle': use one of expert, greedy, random"):
        measure.mean_outcome(make("sales"), "oracle", 1)
    with pytest.raises(ConfigurationError, match="at least one conversation"):
        measure.mean_outcome(make("sales"), "expert", 0)
    with pytest.raises(KeyError):
        make("car_dealer").agent("oracle", 0)


class Recorded(Environment):
    """Contexts made from five records, again and again; what a user says and scores is in the record."""

    name, max_turns, warm_start = "recorded", 1, {"expert": 1.0}

    def context(self, split: str, index: int) -> Context:
        return Context(f"{split}-{index}", split, index, "Talk.", {"record": index % 5}, f"record-{index % 5}")

    def user(self, context: Context, seed: int) -> User:
        return Silent(context.hidden["record"] / 4)

    def agent(self, name: str, seed: int) -> Spy:
        return Spy(type("Quiet", (), {"respond": staticmethod(lambda history: "Hm.")}))

    def well_formed(self, response: str) -> bool:
        return True

    def prefer(self, first: Conversation, second: Conversation) -> float:
        return 0.5 + (first.score - second.score) / 2 + (first.score - 0.5) / 4


class Silent(User):
    """Leaves at once, with a given score."""

    def __init__(self, score: float) -> None:
        self.score = score

    def opening(self) -> str:
        return "Hello."

    def reply(self, response: str) -> Reply:
        return Reply("Bye.", stop=StopReason.USER_LEFT)

    def outcome(self) -> Outcome:
        return Outcome(self.score)


def test_contexts_of_one_source_count_once_in_an_interval() -> None:
    once = measure.mean_outcome(Recorded(), "expert", 5)
    often = measure.mean_outcome(Recorded(), "expert", 200)
    assert (once.n, once.clusters, often.n, often.clusters) == (5, 5, 200, 5)
    assert (often.mean, often.low, often.high) == pytest.approx((once.mean, once.low, once.high))
    assert often.high - often.low > 0.9, "five records say little"


def test_a_win_rates_interval_is_over_sources_too() -> None:
    held = list(measure.conversations(Recorded(), "expert", 200))
    rate = win_rate(held, held, Recorded().prefer)
    few = win_rate(held[:5], held[:5], Recorded().prefer)
    assert (rate.n, rate.clusters) == (200, 5)
    assert (rate.mean, rate.low, rate.high) == pytest.approx((few.mean, few.low, few.high))
