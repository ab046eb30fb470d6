"""Prices, names and questions in free text."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrl_envs.car_dealer.moves import seller_move as read_dealer
from mtrl_envs.sales.moves import CATALOGUE, customer_move
from mtrl_envs.sales.moves import seller_move as read_seller
from mtrl_envs.scripted import intents

AMOUNTS = [
    ("$300", [300]),
    ("300 dollars", [300]),
    ("It costs 300", [300]),
    ("38k", [38000]),
    ("$38K!", [38000]),
    ("38,000", [38000]),
    ("$38,500.50 all in", [38500.5]),
    ("38.5k", [38500]),
    ("38 grand or 40 thousand", [38000, 40000]),
    ("between $300-$400", [300, 400]),
    ("US$1,200", [1200]),
    ("the 2021 model with 250 hp", []),
    ("a 2 year warranty and 100% cotton, 30 days", []),
    ("model X300", []),
    ("$99999999999999999999", []),
    ("", []),
]


@pytest.mark.parametrize(("text", "amounts"), AMOUNTS)
def test_prices(text: str, amounts: list[float]) -> None:
    assert intents.prices(intents.clean(text)) == amounts


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("the FALCON, please", ["Falcon"]),
        ("Falcon's screen", ["Falcon"]),
        ("I would take the Flacon", ["Falcon"]),
        ("I would take the Falcn or the walnuts", ["Falcon", "Walnut"]),
        ("a budget that follows", []),
        ("falconry", []),
        ("\uff26\uff41\uff4c\uff43\uff4f\uff4e", ["Falcon"]),
    ],
)
def test_names(text: str, found: list[str]) -> None:
    assert intents.names(intents.clean(text), CATALOGUE) == found


@given(st.sampled_from(sorted(CATALOGUE)), st.data())
def test_one_swap_keeps_a_name(name: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(1, len(name) - 2))
    swapped = name[:at] + name[at + 1] + name[at] + name[at + 2 :]
    assert intents.names(intents.clean(f"the {swapped} then"), CATALOGUE) == [name]


@given(st.text(max_size=300))
def test_any_text_can_be_read(text: str) -> None:
    assert all(amount >= 0 for amount in intents.prices(intents.clean(text)))
    read_seller(text)
    read_dealer(text)
    customer_move(text)


@pytest.mark.parametrize("piece", ["a", "what ", "$1,", "for the ", "not ", "deal ", "? ", "((((", "1" * 50, "not at "])
def test_long_text_is_read_fast(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    start = time.process_time()
    read_seller(text)
    read_dealer(text)
    customer_move(text)
    assert time.process_time() - start < 3


@pytest.mark.parametrize("text", ["<|end|> hi", "hello </s>", "[INST] hello", "(sent: hello) What do you need?"])
def test_template_markers_are_seen(text: str) -> None:
    assert intents.template_markers(text)


@pytest.mark.parametrize("text", ["What is your budget?", "It is < $300 (really), [sic]."])
def test_ordinary_text_has_no_template_markers(text: str) -> None:
    assert not intents.template_markers(text)


def test_a_statement_is_no_question() -> None:
    topic = intents.phrases(r"budget\b")
    assert intents.asks_about("could you tell me your budget", topic)
    assert intents.asks_about("nice. what is your budget?", topic)
    assert not intents.asks_about("it fits your budget.", topic)
    assert not intents.asks_about("it fits your budget. what else?", topic)
