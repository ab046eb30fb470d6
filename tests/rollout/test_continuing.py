"""Continuations: the logged state again, with its user, and chance that goes its own way from there."""

from dataclasses import replace

import pytest

from mtrl_envs.registry import make
from mtrl_ray.dialogue.conversation import Conversation, Finish, Role, StopReason, Turn, to_table, validate
from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.rollout.continuing import Start, by_start, continuations, require_chance
from mtrl_ray.rollout.engine import Generation
from mtrl_ray.rollout.lease import fingerprint, make_leases
from tests.rollout.test_loop import Scripted, Words, hold, loop_of

LEASE = make_leases(0, "train", 3, [7], 2)[1]


def logged(name: str = LEASE.id) -> Conversation:
    turns = [
        turn
        for k in range(3)
        for turn in (Turn(Role.USER, "u", [1, k]), Turn(Role.AGENT, "a", [10 + k], [-1.0], [0], Finish.STOP))
    ]
    return Conversation(
        name, "test", "train", "x", turns, 0.5, StopReason.OUTCOME, iteration=3, sample=1, seed=LEASE.seed
    )


def start(turn: int, number: int = 0, answer: Generation | None = None) -> Start:
    return Start(LEASE, logged(), turn, number, answer)


def test_a_lease_repeats_the_logged_turns_and_knows_the_state_they_lead_to():
    answer = Generation("y", [42], [], [], Finish.LENGTH)
    starts = [start(3, 0, answer), start(3, 1), start(1)]
    given, given_again, sampled, _, first, _ = leases = list(continuations(5, starts, repeats=2))
    assert [one.tokens for one in given.given] == [[10], [42]] and given.given[1] is answer
    assert [one.tokens for one in sampled.given] == [[10]] and first.given == ()
    assert (given.split, given.index, given.user_seed) == ("train", 7, LEASE.seed)
    assert given.state is not None and first.state is not None
    assert (given.state.turns, given.state.history) == (1, fingerprint([1, 0, 10, 1, 1]))
    assert (first.state.turns, first.state.history) == (0, fingerprint([1, 0]))
    assert given.id == "train-000003-0000007-001/3/0/0" and given_again.id.endswith("/3/0/1")
    assert len({lease.id for lease in leases}) == len({lease.seed for lease in leases}) == 6
    other = list(continuations(5, starts, repeats=2, stream="again"))
    assert not {lease.seed for lease in leases} & {lease.seed for lease in other}
    assert not {lease.id for lease in leases} & {lease.id for lease in other}


def test_what_the_answers_in_a_state_have_in_common():
    starts = [start(3, number) for number in range(3)]

    def drawn(chance):
        return [lease.state.chance for lease in continuations(5, starts, 2, chance)]

    assert len(set(drawn("independent"))) == 6
    assert drawn("common") == drawn("common")[:2] * 3 and len(set(drawn("common"))) == 2
    assert set(drawn("logged")) == {None}
    [elsewhere] = continuations(5, [start(1)], chance="common")
    assert elsewhere.state.chance not in drawn("common"), "another state"


@pytest.mark.parametrize(
    ("starts", "sentence"),
    [
        ([start(2)], "turn 2 is not the agent's"),
        ([start(9)], "turn 9 is not the agent's"),
        ([start(3, 0, Generation("y", [], [], [], Finish.STOP))], "turn 3: the answer has no tokens"),
        ([start(3), start(3)], "turn 3 is started twice with number 0"),
    ],
)
def test_what_cannot_be_continued_is_said_before_anything_is_rolled_out(starts, sentence):
    with pytest.raises(DataError, match=sentence):
        list(continuations(0, starts))


def test_rows_are_ordered_by_start_and_repeat_and_what_failed_is_missing():
    leases = list(continuations(5, [start(3, number) for number in range(3)], repeats=2))
    rows = [replace(logged(lease.id), sample=lease.sample) for place, lease in enumerate(leases) if place != 2]
    table = by_start(to_table(reversed(rows)), leases, 2)
    assert table["start"].to_pylist() == [0, 0, 1, 2, 2] and table["sample"].to_pylist() == [0, 1, 1, 0, 1]


def test_users_without_redraw_go_on_with_their_own_chance(sales_settings):
    require_chance(sales_settings, "common")
    parrots = {"environment": sales_settings.environment.model_copy(update={"name": "tests.support.letters:Silent"})}
    settings = sales_settings.model_copy(update=parrots)
    require_chance(settings, "logged")
    with pytest.raises(ConfigurationError, match=r"'tests.support.letters:Silent' do not define redraw\(seed\)"):
        require_chance(settings, "common")


@pytest.fixture
def talks(engine, chat):
    """Conversations of `sales` with three agent turns or more, held by the engine, and their leases."""
    loop = loop_of(engine, chat, make("sales"))
    leases = make_leases(3, "train", 0, range(12))
    done = {talk.id: talk for talk in hold(loop, loop.rollout(leases)).conversations}
    return [(lease, done[lease.id]) for lease in leases if len(done[lease.id].agent_turns) > 2]


def test_a_continuation_begins_in_the_logged_state_and_goes_its_own_way(engine, chat, talks):
    loop = loop_of(engine, chat, make("sales"))
    answer = Generation("y", chat.encode_agent("What do you need it for?"), [], [], Finish.STOP)
    starts = [
        Start(lease, talk, talk.agent_turns[1], number, said)
        for lease, talk in talks
        for number, said in enumerate((answer, None))
    ]
    job = hold(loop, loop.rollout(list(continuations(3, starts, repeats=2))))
    assert not job.failures and len(job.conversations) == 4 * len(talks) > 8
    held = {talk.id: talk for talk in job.conversations}
    replies, said = [], []
    for _, talk in talks:
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

    def users_turns(chance, answers):
        """What the user says to the logged answer, by continuation."""
        starts = []
        for lease, talk in talks:
            said = talk.turns[talk.agent_turns[1]]
            answer = Generation("y", said.tokens, [], [], said.finish)
            starts += [Start(lease, talk, talk.agent_turns[1], number, answer) for number in range(answers)]
        job = hold(loop, loop.rollout(list(continuations(3, starts, 1, chance))))
        return {done.id: done.turns[int(done.id.split("/")[1]) + 1] for done in job.conversations}

    twice, apart, again = users_turns("common", 2), users_turns("independent", 2), users_turns("logged", 1)
    names = [f"{talk.id}/{talk.agent_turns[1]}" for _, talk in talks]
    assert all(twice[f"{name}/0/0"] == twice[f"{name}/1/0"] for name in names)
    assert any(apart[f"{name}/0/0"] != apart[f"{name}/1/0"] for name in names)
    for name, (_, talk) in zip(names, talks, strict=True):
        assert again[f"{name}/0/0"] == talk.turns[talk.agent_turns[1] + 1]


def test_a_user_that_does_not_repeat_itself_is_no_outcome(engine, chat):
    calls = iter(range(100))
    environment = Scripted(lambda context, seed: Words(["Hi.", f"Call {next(calls)}.", "Well?", "Bye."]))
    loop = loop_of(engine, chat, environment)
    [lease] = make_leases(3, "train", 0, [0])
    [talk] = hold(loop, loop.rollout([lease])).conversations
    leases = list(continuations(3, [Start(lease, talk, place) for place in talk.agent_turns[:2]], chance="logged"))
    job = hold(loop, loop.rollout(leases))
    [failure], [done] = job.failures, job.conversations
    assert done.id == leases[0].id, "the opening is the same"
    assert failure.id == leases[1].id and failure.kind == "DataError"
    assert "did not answer the logged turns as it did before" in failure.message
