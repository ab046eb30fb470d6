"""A log's parts, what a model cannot take of them, and the intervals of what was learned."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, from_table, to_table
from mtrl_ray.dialogue.tokens import ChatFormat
from mtrl_ray.errors import DataError
from mtrl_ray.evaluation.logged import LeftOut, encoded, ending, parts
from mtrl_ray.evaluation.logged_preferences import _encoded, figures, pair_parts
from mtrl_ray.evaluation.logged_q import _by_turn, _quality
from mtrl_ray.feedback.pairs import Pair
from mtrl_ray.replay.split import held_out
from mtrl_ray.statistics.estimates import correlation, mean_interval
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.templates import QWEN2_5, QWEN_ADDED, QWEN_SPECIAL


def talk(name: str, split: str = "train", turns: int = 1, **changes) -> Conversation:
    said = [Turn(Role.SYSTEM, "Be kind.")]
    for place in range(turns):
        said += [Turn(Role.USER, f"question {place}"), Turn(Role.AGENT, f"answer {place}", reward=float(place))]
    fields = {"context_id": name, **changes}
    return Conversation(f"e/{name}", "e", split, turns=said, score=1.0, stop=StopReason.LOGGED, **fields)


def names(table: pa.Table) -> list[str]:
    return table["context_id"].to_pylist()


def test_the_logs_own_split_is_honoured():
    log = to_table([talk(str(n), "test" if n % 3 == 0 else "train") for n in range(30)])
    split = parts(log, None, None, seed=0)
    assert names(split.test) == [str(n) for n in range(0, 30, 3)] and split.train.num_rows == 20
    assert (split.how, split.shared) == ("the log's own split", 0)
    drawn = parts(log, None, 0.4, seed=1)
    assert names(drawn.test) == [str(n) for n in range(30) if held_out(str(n), 0.4, 1)], "as --held-out asks"


def test_a_log_of_one_split_is_divided_by_contexts():
    log = to_table([replace(talk(str(n // 2)), id=f"e/{n}") for n in range(80)])
    split = parts(log, None, None, seed=0)
    assert not set(names(split.train)) & set(names(split.test))
    assert split.train.num_rows + split.test.num_rows == 80 and split.how.startswith("20% of the contexts")


def test_a_second_log_is_the_test_without_what_it_shares():
    log = to_table([talk(str(n), "test") for n in range(10)])
    other = to_table([talk(str(n)) for n in range(8, 14)])
    split = parts(log, other, None, seed=0)
    assert split.train.num_rows == 10 and names(split.test) == ["10", "11", "12", "13"] and split.shared == 2
    same_customer = to_table([talk("99", source="Ann"), talk("98", source="Bob")])
    apart = parts(to_table([talk("1", source="Ann")]), same_customer, None, seed=0)
    assert names(apart.test) == ["98"] and apart.shared == 1
    with pytest.raises(
        DataError, match="10 are left to fit and 0 to judge, after 10 that are on contexts of the training"
    ):
        parts(log, log, None, seed=0)
    with pytest.raises(DataError, match=r"0 to judge \(0% of the contexts"):
        parts(log, None, 0.0, seed=0)


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat.from_tokenizer(byte_tokenizer(QWEN2_5, QWEN_SPECIAL, QWEN_ADDED, eos="<|im_end|>"))


def test_a_conversation_that_cannot_be_read_leaves_the_others(chat):
    bad = talk("bad", turns=2)
    bad.turns.insert(3, Turn(Role.SYSTEM, "Be brief."))
    left_out = LeftOut()
    kept = encoded([talk("a"), bad, replace(bad, id="e/worse"), talk("b")], chat, 10_000, False, left_out)
    assert [one.id for one in kept] == ["e/a", "e/b"] and all(one.tokens for one in kept)
    assert (left_out.total, left_out.count, left_out.too_long) == (4, 2, 0)
    [sentence] = left_out.sentences(10_000)
    assert sentence.startswith(
        "2 of 4 conversations are left out, as the model cannot read them; mostly: conversation …: turns"
    )


def test_long_conversations_are_left_out_and_said_or_keep_their_end(chat):
    talks = [talk(str(n), turns=n) for n in (1, 2, 9)]
    sizes = [len(chat.encode(one).tokens) for one in talks]
    left_out = LeftOut()
    kept = encoded(talks, chat, sizes[1], False, left_out)
    assert [one.id for one in kept] == ["e/1", "e/2"] and (left_out.too_long, left_out.longest) == (1, sizes[2])
    assert left_out.sentences(sizes[1]) == [
        f"1 of 3 conversations (33.3%) are left out: they are longer than --context-length {sizes[1]}; "
        f"--context-length {sizes[2]} keeps all of them"
    ]
    cut = LeftOut()
    [*_, shorter] = encoded(talks, chat, sizes[1], True, cut)
    assert cut.sentences(sizes[1]) == [
        f"1 of 3 conversations lost their beginning: they are longer than {sizes[1]} tokens"
    ]
    assert [turn.text for turn in shorter.turns] == ["Be kind.", "question 7", "answer 7", "question 8", "answer 8"]
    assert shorter.rewards == [7.0, 8.0] and len(shorter.tokens) <= sizes[1]
    assert (
        shorter.tokens
        == chat.encode(replace(shorter, turns=[replace(turn, tokens=[]) for turn in shorter.turns])).tokens
    )


def test_nothing_is_kept_of_a_conversation_whose_last_turn_alone_is_too_long(chat):
    long = talk("long", turns=2)
    long.turns[-1].text = "word " * 100
    own = chat.encode(long)
    assert ending(own, chat, 100) is None
    assert ending(own, chat, len(own.tokens)) is not None, "it drops a turn all the same, when it is asked"


@pytest.mark.parametrize("turns", [(8, 8), (8, 1), (1, 8)])
def test_long_pairs_are_left_out_and_said_or_keep_their_ends(chat, turns):
    sides = [talk(f"{place}", turns=count) for place, count in enumerate(turns)]
    lengths = [len(chat.owned(side).tokens) for side in sides]
    limit = sum(lengths) - 1
    pair = Pair(sides[0], sides[1], 0.75)
    table, given = _encoded([pair], chat, limit, out := LeftOut("pairs"))
    assert (table.num_rows, len(given), out.too_long, out.longest) == (0, 0, 1, limit + 1)
    table, given = _encoded([pair], chat, limit, out := LeftOut("pairs"), cut=True)
    kept = from_table(table)
    assert sum(len(side.tokens) for side in kept) <= limit and (out.cut, out.count) == (1, 0)
    assert given.tolist() == [0.75, 0.25]
    assert [side.turns[-1].text for side in kept] == [side.turns[-1].text for side in sides]
    assert [len(side.turns) == len(own.turns) for side, own in zip(kept, sides, strict=True)].count(True) <= 1
    table, _ = _encoded([pair], chat, 8, out := LeftOut("pairs"), cut=True)
    assert table.num_rows == 0 and out.too_long == 1


def predictions(rng, dialogues: int, turns: int) -> tuple[pa.Table, np.ndarray]:
    """Turns of dialogues that share their return; Q knows a part of it."""
    ids = np.repeat(np.arange(dialogues), turns)
    returns = rng.normal(size=dialogues)[ids]
    table = {
        "q": 0.4 * returns + rng.normal(size=dialogues)[ids],
        "return": returns,
        "turn": np.tile(np.arange(turns), dialogues),
    }
    return pa.table(table), ids


def test_the_interval_of_r_is_over_dialogues_and_not_over_turns():
    rng = np.random.default_rng(0)
    table, ids = predictions(rng, 60, 12)
    found = _quality(table, table, ids)["r"]
    assert (found["n"], found["clusters"]) == (720, 60)
    turns = correlation(table["q"].to_numpy(), table["return"].to_numpy())
    assert found["mean"] == pytest.approx(turns.mean)
    assert found["high"] - found["low"] > 2.5 * (turns.high - turns.low)
    # as the bootstrap over dialogues has it
    q, returns = (table[name].to_numpy().reshape(60, 12) for name in ("q", "return"))
    draws = [rng.integers(0, 60, 60) for _ in range(2000)]
    low, high = np.quantile([np.corrcoef(q[d].ravel(), returns[d].ravel())[0, 1] for d in draws], [0.025, 0.975])
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.05)


def test_r_among_turns_at_the_same_position_has_an_interval_too():
    table, ids = predictions(np.random.default_rng(1), 40, 3)
    by_turn = _by_turn(table, ids)
    each = [np.corrcoef(*(table[name].to_numpy()[k::3] for name in ("q", "return")))[0, 1] for k in range(3)]
    assert by_turn.mean == pytest.approx(np.mean(each)) and (by_turn.n, by_turn.clusters) == (120, 40)
    assert by_turn.low < by_turn.mean < by_turn.high
    assert np.isnan(_by_turn(table.slice(0, 20), ids[:20]).mean), "fewer than ten at any position"


def test_several_judgements_of_one_context_are_one_cluster():
    predicted = np.array([0.9, 0.1, 0.2, 0.8, 0.7, 0.3] * 10, dtype=np.float32)
    given = np.array([1, 0] * 30, dtype=np.float32)
    context = [f"c{n % 3}" for n in range(30)]
    found = figures(predicted, given, context)["accuracy"]
    once = mean_interval([1.0, 0.0, 1.0])
    assert (found["n"], found["clusters"]) == (30, 3)
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((once.mean, once.low, once.high))


def test_pairs_are_parted_as_their_conversations_are():
    def pair(name: str, split: str) -> Pair:
        first = talk(name, split)
        return Pair(first, replace(first, id=f"{first.id}/2"), 1.0)

    pairs = [pair(str(n), "test" if n < 3 else "train") for n in range(9)]
    own = pair_parts(pairs, None, None, 0)
    assert [one.first.context_id for one in own.test] == ["0", "1", "2"] and len(own.train) == 6
    given = pair_parts(pairs, [pair("8", "train"), pair("x", "train")], None, 0)
    assert len(given.train) == 9 and [one.first.context_id for one in given.test] == ["x"] and given.split.shared == 1
