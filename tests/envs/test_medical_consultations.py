"""Recorded consultations as patients of `medical`: a file of the form of MTMedDialog's, written by hand."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrl_envs import measure
from mtrl_envs.medical.consultations import assess, consultations
from mtrl_envs.medical.recorded import ANSWER_LIMIT
from mtrl_envs.registry import make
from mtrl_envs.scripted.splits import split_of
from mtrl_ray.dialogue.conversation import StopReason, validate
from mtrl_ray.errors import ConfigurationError

LONG = "My stomach has been making noises all day and all night. " * 12


def consultation(number: int, diagnosis: str = "You have gastritis.") -> dict[str, Any]:
    """One row; `number` makes it distinct."""
    answers = [
        ("When did this begin?", f"{number + 2} days ago."),
        ("Are you vomiting?", "Only once."),
        ("Do you take any medicine?", LONG),
    ]
    return {
        "prompt": [
            {"role": "system", "content": "You are a doctor."},
            {
                "role": "user",
                "content": f"Patient's description: Belly ache number {number}.\nDecide next action:\nAlways",
            },
        ],
        "reward_model": {
            "ground_truth": {"diagnosis": diagnosis, "recommendation": "Avoid spicy food and drink water. Rest."},
            "patient_information": [
                {"doctor_question": [question], "patient_response": ["Well,", answer]} for question, answer in answers
            ],
        },
    }


def write(folder: Path, rows: list[dict[str, Any]], name: str = "set.parquet") -> str:
    """The path of a Parquet file with these rows."""
    path = folder / name
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twenty consultations, each twice, and one whose diagnosis is not in the table."""
    rows = [consultation(number) for number in range(20) for _ in range(2)]
    return write(tmp_path_factory.mktemp("consultations"), [*rows, consultation(99, "I wonder.")])


def test_each_consultation_is_taken_once_and_belongs_to_one_split(file: str) -> None:
    cases = consultations(file)
    assert len(cases["train"]) + len(cases["test"]) == 20
    assert all(split_of(case) == split for split, members in cases.items() for case in members)
    environment = make("medical", contexts=file)
    texts = {environment.context("train", index).hidden["description"] for index in range(60)}
    assert texts == {case["description"] for case in cases["train"]}
    assert all(text.startswith("Belly ache number") and "Decide" not in text for text in texts)


def test_an_interval_is_over_consultations(file: str) -> None:
    environment, test = make("medical", contexts=file), len(consultations(file)["test"])
    measured = measure.mean_outcome(environment, "expert", 4 * test)
    assert (measured.n, measured.clusters) == (4 * test, test)
    sources = {environment.context("test", index).source for index in range(4 * test)}
    assert len(sources) == test and not sources & {environment.context("train", n).source for n in range(20)}


def test_the_figures_of_the_page_are_the_measurements() -> None:
    """Of the scripted doctors on the published set, where the machine has it."""
    path = Path(os.environ.get("MTRL_DATA", Path(__file__).parents[3] / "shared" / "data")) / "mtmed_train.parquet"
    if not path.exists():
        pytest.skip(f"the consultations are not at {path}; set MTRL_DATA to a folder that has mtmed_train.parquet")
    environment = make("medical", contexts=str(path))
    expert, greedy, random = (measure.mean_outcome(environment, agent, 195).mean for agent in measure.AGENTS)
    page = (Path(__file__).parents[2] / "docs" / "environments.md").read_text()
    assert f"`expert` {expert:.3f}, `greedy` {greedy:.3f}, `random` {random:.3f}" in page


def test_questions_get_the_recorded_answers(file: str) -> None:
    environment = make("medical", contexts=file, noise=0.0)
    context = environment.context("train", 0)
    user = environment.user(context, 0)
    assert user.opening() == context.hidden["description"]
    assert user.reply("How long have you had it, since when?").text == context.hidden["answers"][0][1]
    assert user.reply("Did you vomit?").text == "No."
    assert user.reply("Are you vomiting a lot?").text == "Well, Only once."
    taken = user.reply("Which medicines do you take?").text
    assert LONG.startswith(taken.removeprefix("Well, "))
    assert len(taken) <= ANSWER_LIMIT
    reply = user.reply("Diagnosis: gastritis. Please drink water and avoid spicy food.")
    assert (reply.stop, reply.reward) == (StopReason.OUTCOME, 1.0)
    assert user.outcome().metrics["key_turn"] == -1


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("Diagnosis: gastritis. Avoid spicy food and drink water.", 10.0),
        ("Diagnosis: gastritis. Drink water.", 6 + 8 / 3),
        ("You have gastritis.", 6.0),
        ("You have gastritis and enteritis.", 4.0),
        ("You have enteritis. Avoid spicy food and drink water.", 0.0),
        ("", 0.0),
    ],
)
def test_free_text_is_assessed_by_what_it_names(answer: str, number: float) -> None:
    case = {"diagnosis": "It seems you have gastritis.", "advice": "Avoid spicy food and drink water. Rest."}
    assert assess(answer, case) == pytest.approx(number)


@pytest.mark.parametrize("agent", measure.AGENTS)
def test_scripted_agents_can_talk_to_recorded_patients(file: str, agent: str) -> None:
    environment = make("medical", contexts=file)
    for conversation in measure.conversations(environment, agent, 10, "test"):
        validate(conversation)
        assert all(environment.well_formed(conversation.turns[at].text) for at in conversation.agent_turns)


def test_files_that_cannot_be_used_are_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no parquet")
    whole = consultation(0)
    lacking = {**whole, "reward_model": {"ground_truth": {"diagnosis": "a"}, "patient_information": []}}
    cases = [
        (str(tmp_path / "none.parquet"), "there is no such file"),
        (str(tmp_path / "text.parquet"), "it is no Parquet file"),
        (write(tmp_path, [{"prompt": whole["prompt"]}], "a.parquet"), r"lacks reward_model; it needs the columns"),
        (write(tmp_path, [lacking], "b.parquet"), r"lacks reward_model.ground_truth.recommendation, .*doctor_question"),
        (
            write(tmp_path, [{"prompt": [], "reward_model": 3}], "c.parquet"),
            "lacks reward_model.ground_truth.diagnosis",
        ),
        (3, "contexts is 3"),
    ]
    for path, message in cases:
        with pytest.raises(ConfigurationError, match=message):
            make("medical", contexts=path)
    with pytest.raises(ConfigurationError, match="1 usable consultations, none of them for the split"):
        make("medical", contexts=write(tmp_path, [whole], "d.parquet")).context("train", 0)
