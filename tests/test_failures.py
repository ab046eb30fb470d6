"""How much of the work may be left out, and whose fault it is where that is too much."""

import pytest

from mtrl_ray.errors import DataError, EngineError
from mtrl_ray.processes.failures import Failure, causes, sentence, stop_at_too_many


def failures(wrong: int, away: int) -> list[Failure]:
    torn = [Failure.of(f"w{n}", DataError("the file is torn")) for n in range(wrong)]
    return [Failure.of(f"a{n}", EngineError("nobody answers")) for n in range(away)] + torn


@pytest.mark.parametrize(
    ("wrong", "away", "allowed"), [(0, 0, 0.0), (5, 0, 0.5), (0, 5, 0.5), (2, 3, 0.5), (4, 5, 1.0)]
)
def test_what_may_be_left_out(wrong, away, allowed):
    stop_at_too_many(failures(wrong, away), 10, allowed, "conversations", 3)


@pytest.mark.parametrize(
    ("wrong", "away", "allowed", "kind", "sentence"),
    [
        (
            6,
            0,
            0.5,
            DataError,
            "6 of 10 conversations failed 3 times each because of wrong data; the first, w0: DataError",
        ),
        (6, 4, 0.5, DataError, "6 of 10 conversations"),
        (10, 0, 1.0, DataError, "10 of 10 conversations"),
        (
            0,
            6,
            0.5,
            EngineError,
            "6 of 10 .*, 6 because of the infrastructure; the first of these, a0: EngineError: nobody",
        ),
        (3, 3, 0.5, EngineError, "6 of 10 .*, 3 because of the infrastructure; the first of these, a0"),
        (0, 1, 0.0, EngineError, "1 of 10 conversations"),
        (5, 5, 1.0, EngineError, "10 of 10 conversations"),
    ],
)
def test_what_is_too_much_and_whose_fault_it_is(wrong, away, allowed, kind, sentence):
    with pytest.raises(kind, match=sentence):
        stop_at_too_many(failures(wrong, away), 10, allowed, "conversations", 3)


def test_the_most_frequent_causes_are_shown():
    assert causes([]) == ""
    assert causes(failures(1, 2)) == "2 x EngineError: nobody answers; 1 x DataError: the file is torn"


PYDANTIC = """The actor died because of an error raised in its creation task, ray::RolloutWorker.__init__()
  File "worker.py", line 97, in __init__
    self._loop = started.result()
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (4096) is greater than 1024. [type=value_error, input_value={'m': 1}, input_type=A]
    For further information visit https://errors.pydantic.dev/2.11/v/value_error"""


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            PYDANTIC,
            "ValidationError: 1 validation error for ModelConfig "
            "Value error, User-specified max_model_len (4096) is greater than 1024.",
        ),
        ("ray::f()\n  File 'x'\nmtrl_ray.errors.EngineError: no engine here", "EngineError: no engine here"),
        (
            "KeyError: 'a'\n\nDuring handling of it:\n\nValueError: first line\nsecond line",
            "ValueError: first line second line",
        ),
        ("The actor died unexpectedly.\n\tIts node was lost.", "Its node was lost."),
        ("one sentence", "one sentence"),
        ("", "RuntimeError"),
    ],
)
def test_the_sentence_of_an_error_is_its_cause(text: str, cause: str):
    assert sentence(RuntimeError(text)) == cause
