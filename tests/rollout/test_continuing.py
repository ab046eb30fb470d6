"""Continuations: the logged state again, with its user, and chance that goes its own way from there."""

from dataclasses import replace

import pytest

from mtrl_envs.registry import make
from mtrl_ray.dialogue.conversation import Conversation, Finish, Role, StopReason, Turn, to_table, validate
from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.rollout.continuing import Start, by_start, continuations, require_noise
from mtrl_ray.rollout.engine import Generation
from mtrl_ray.rollout.lease import make_leases
from tests.rollout.test_loop import Scripted, Words, hold, loop_of


def logged(name: str = "train-000003-0000007-001") -> Conversation:
    turns = [
        turn
        for k in range(3)
        for turn in (Turn(Role.USER, "u", [1, k]), Turn(Role.AGENT, "a", [10 + k], [-1.0], [0], Finish.STOP))
    ]
    return Conversation(name, "test", "train", "x", turns, 0.5, StopReason.OUTCOME, iteration=3, sample=1, seed=99)


def test_a_lease_repeats_the_logged_turns_and_knows_the_state_they_lead_to():
    answer = Generation("y", [42], [], [], Finish.LENGTH)
    starts = [Start(logged(), 3, 0, answer), Start(logged(), 3, 1), Start(logged(), 1)]
    given, given_again, sampled, _, first, _ = leases = list(continuations(5, starts, repeats=2))
    assert [one.tokens for one in given.given] == [[10], [42]] and given.given[1] is answer
    assert [one.tokens for one in sampled.given] == [[10]] and first.given == ()
    assert (given.split, given.index, given.user_seed) == ("train", 7, 99)
    assert given.continues is not None and first.continues is not None
    assert (given.continues.turns, given.continues.history) == (1, (1, 0, 10, 1, 1))
    assert (first.continues.turns, first.continues.history) == (0, (1, 0))
    assert given.id == "train-000003-0000007-001/3/0/0" and given_again.id.endswith("/3/0/1")
    assert len({lease.id for lease in leases}) == len({lease.seed for lease in leases}) == 6
    other = list(continuations(5, starts, repeats=2, stream="again"))
    assert not {lease.seed for lease in leases} & {lease.seed for lease in other}
    assert not {lease.id for lease in leases} & {lease.id for lease in other}


def test_what_the_answers_in_a_state_have_in_common():
    starts = [Start(logged(), 3, number) for number in range(3)]

    def drawn(noise):
        return [lease.continues.user_seed for lease in continuations(5, starts, 2, noise)]

    assert len(set(drawn("independent"))) == 6
    assert drawn("common") == drawn("common")[:2] * 3 and len(set(drawn("common"))) == 2
    assert set(drawn("logged")) == {None}
    [elsewhere] = continuations(5, [Start(logged(), 1)], noise="common")
    assert elsewhere.continues.user_seed not in drawn("common"), "another state"


@pytest.mark.parametrize(
    ("starts", "sentence"),
    [
        ([Start(logged("imported/1"), 3)], "'imported/1' was not held by a run's rollout workers"),
        ([Start(logged(), 2)], r"has no turn 2 of the agent; its agent's turns are \[1, 3, 5\]"),
        ([Start(logged(), 9)], "has no turn 9 of the agent"),
        ([Start(logged(), 3, 0, Generation("y", [], [], [], Finish.STOP))], "turn 3 has no tokens"),
        ([Start(logged(), 3), Start(logged(), 3)], "turn 3 is started twice with number 0"),
    ],
)
def test_what_cannot_be_continued_is_said_before_anything_is_rolled_out(starts, sentence):
    with pytest.raises(DataError, match=sentence):
        list(continuations(0, starts))


def test_rows_are_ordered_by_start_and_repeat_and_what_failed_is_missing():
    leases = list(continuations(5, [Start(logged(), 3, number) for number in range(3)], repeats=2))
    rows = [replace(logged(lease.id), sample=lease.sample) for place, lease in enumerate(leases) if place != 2]
    table = by_start(to_table(reversed(rows)), leases, 2)
    assert table["start"].to_pylist() == [0, 0, 1, 2, 2] and table["sample"].to_pylist() == [0, 1, 1, 0, 1]


def test_users_without_redraw_go_on_with_their_own_chance(sales_settings):
    require_noise(sales_settings, "common")
    parrots = {"environment": sales_settings.environment.model_copy(update={"name": "tests.test_malformed:Parrot"})}
    settings = sales_settings.model_copy(update=parrots)
    require_noise(settings, "logged")
    with pytest.raises(ConfigurationError, match=r"'tests.test_malformed:Parrot' do not define redraw\(seed\)"):
        require_noise(settings, "common")


@pytest.fixture
def talks(engine, chat):
    """Conversations of `sales`, held by the engine."""
    loop = loop_of(engine, chat, make("sales"))
    done = hold(loop, loop.rollout(make_leases(3, "train", 0, range(12)))).conversations
    return [talk for talk in sorted(done, key=lambda one: one.id) if len(talk.agent_turns) > 2]


def test_a_continuation_begins_in_the_logged_state_and_goes_its_own_way(engine, chat, talks):
    loop = loop_of(engine, chat, make("sales"))
    answer = Generation("y", chat.encode_agent("What do you need it for?"), [], [], Finish.STOP)
    starts = [
        start
        for talk in talks
        for start in (Start(talk, talk.agent_turns[1], 0, answer), Start(talk, talk.agent_turns[1], 1))
    ]
    job = hold(loop, loop.rollout(list(continuations(3, starts, repeats=2))))
    assert not job.failures and len(job.conversations) == 4 * len(talks) > 8
    held = {talk.id: talk for talk in job.conversations}
    replies, said = [], []
    for talk in talks:
        place = talk.agent_turns[1]
        told = [held[f"{talk.id}/{place}/0/{repeat}"] for repeat in range(2)]
        sampled = [held[f"{talk.id}/{place}/1/{repeat}"] for repeat in range(2)]
        for one in (*told, *sampled):
            validate(one)
            assert one.turns[:place] == talk.turns[:place]
        assert all(one.turns[place].tokens == answer.tokens for one in told)
        replies.append(told[0].turns[place + 1].text != told[1].turns[place + 1].text)
        said.append(sampled[0].turns[place].tokens != sampled[1].turns[place].tokens)
    assert sum(replies) > len(talks) / 4, "the user's chance is drawn anew"
    assert sum(said) > len(talks) / 2, "every continuation samples its own answer"


def test_common_chance_and_the_logged_one(engine, chat, talks):
    loop = loop_of(engine, chat, make("sales"))

    def heard(noise, answers):
        starts = [
            Start(talk, place, number, Generation("y", tokens, [], [], talk.turns[place].finish))
            for talk in talks
            for place in talk.agent_turns[1:2]
            for number, tokens in enumerate(answers(talk.turns[place].tokens))
        ]
        job = hold(loop, loop.rollout(list(continuations(3, starts, 1, noise))))
        return {talk.id: talk.turns[talk.agent_turns[1] + 1] for talk in job.conversations}

    twice = heard("common", lambda tokens: [tokens, tokens])
    pairs = [
        (twice[f"{talk.id}/{talk.agent_turns[1]}/0/0"], twice[f"{talk.id}/{talk.agent_turns[1]}/1/0"]) for talk in talks
    ]
    assert all(first == second for first, second in pairs)
    again = heard("logged", lambda tokens: [tokens])
    for talk in talks:
        assert again[f"{talk.id}/{talk.agent_turns[1]}/0/0"] == talk.turns[talk.agent_turns[1] + 1]


def test_a_user_that_does_not_repeat_itself_is_no_outcome(engine, chat):
    calls = iter(range(100))
    environment = Scripted(lambda context, seed: Words(["Hi.", f"Call {next(calls)}.", "Bye."]))
    loop = loop_of(engine, chat, environment)
    [talk] = hold(loop, loop.rollout(make_leases(3, "train", 0, [0]))).conversations
    leases = list(continuations(3, [Start(talk, place) for place in talk.agent_turns[:2]], noise="logged"))
    job = hold(loop, loop.rollout(leases))
    [failure], [done] = job.failures, job.conversations
    assert done.id == leases[0].id, "the opening is the same"
    assert failure.id == leases[1].id and failure.kind == "DataError"
    assert "did not answer the logged turns as it did before" in failure.message
