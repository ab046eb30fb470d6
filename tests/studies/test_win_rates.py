"""The win-rate matrix of a study against a naive computation, and the page that shows it."""

import json
import random
import statistics
from dataclasses import replace

import pytest
import yaml

from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, to_table
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.evaluation.holdout import keep, summarise
from mtrl_ray.run.folder import prepare
from mtrl_ray.statistics.estimates import mean_interval
from mtrl_ray.studies.cells import make_cells
from mtrl_ray.studies.definition import read_definition
from mtrl_ray.studies.writing import Output, write_study
from tests.support.rival_letters import RivalLetters

CONTEXTS = 8
STUDY = {
    "title": "Rivals",
    "recipe": "sales",
    "seeds": [0, 1],
    "overrides": {"environment.name": "tests.support.rival_letters:RivalLetters"},
    "axes": {"policy": {"calm": {}, "loud": {"algorithm.window": 2}, "absent": {"algorithm.window": 3}}},
    "win_rates": True,
    "over_start": True,
    "published": {
        "source": "nobody",
        "scores": {"calm": 0.5},
        "win_rates": {"calm": {"loud": 0.25}, "loud": {"calm": 0.75}},
    },
}


def held(cell, rng, mean: int) -> list[Conversation]:
    """A conversation on each context, with about `mean` letters that the oracle counts."""
    said = ["e" * rng.randint(0, 2 * mean) for _ in range(CONTEXTS)]
    talks = [
        Conversation(
            f"{cell.name}-{n}", "rival_letters", "test", f"test-{n}", [Turn(Role.AGENT, text)], 0.5, StopReason.OUTCOME
        )
        for n, text in enumerate(said)
    ]
    prepare(cell.settings, fresh=False, command=cell.command)
    for name, kept in (("start", talks[::-1]), ("end", talks)):
        for place, talk in enumerate(kept):
            talk.context_id = f"test-{place}"
        keep(cell.folder, name, to_table(kept))
        summarise(cell.folder, **{name: mean_interval([0.5] * CONTEXTS)})
    (cell.folder / "metrics.jsonl").write_text("")
    return talks


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory):
    """The folder of the written study, and the conversations of every run."""
    folder = tmp_path_factory.mktemp("rivals")
    (folder / "rivals.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    name, definition = read_definition(str(folder / "rivals.yaml"))
    cells = make_cells(name, definition, definition.seeds, folder / "runs")
    rng = random.Random(0)
    known = {
        cell.name: held(cell, rng, 2 if cell.values["policy"] == "calm" else 4)
        for cell in cells
        if cell.values["policy"] != "absent"
    }
    write_study(definition, cells, Output(name, folder, "mtrl study rivals"))
    return folder, known


def test_a_rate_is_the_mean_preference_on_the_same_context(written):
    folder, known = written
    rates = json.loads((folder / "rivals.json").read_text())["win_rates"]
    prefer = RivalLetters().prefer
    by_seed = [
        statistics.mean(prefer(a, b) for a, b in zip(known[f"loud-s{seed}"], known[f"calm-s{seed}"], strict=True))
        for seed in (0, 1)
    ]
    found = rates["loud"]["calm"]
    assert found["mean"] == pytest.approx(statistics.mean(by_seed), abs=1e-9) and found["interval"] == "seeds"
    assert found["low"] < found["mean"] < found["high"] and found["contexts"]["n"] == CONTEXTS
    other = rates["calm"]["loud"]
    assert other["mean"] == pytest.approx(1 - found["mean"]) and other["low"] == pytest.approx(1 - found["high"])
    assert set(rates) == {"calm", "loud"} and "calm" not in rates["calm"], "what was not run is not there"


def test_a_policy_is_compared_with_the_one_it_started_from(written):
    folder, known = written
    rows = json.loads((folder / "rivals.json").read_text())["rows"]
    prefer = RivalLetters().prefer
    for row in rows:
        by_seed = []
        for seed in (0, 1):
            end = known[f"{row['policy']}-s{seed}"]
            start = [replace(one, context_id=other.context_id) for one, other in zip(end[::-1], end, strict=True)]
            by_seed.append(statistics.mean(prefer(a, b) for a, b in zip(end, start, strict=True)))
        assert row["over_start"]["mean"] == pytest.approx(statistics.mean(by_seed), abs=1e-9)


def test_the_page_shows_the_matrix_beside_the_published_one(written):
    page = (written[0] / "rivals.md").read_text()
    assert (
        "## Win rates" in page
        and "As published (nobody):" in page
        and "| calm | – | 0.250 |" in page
        and "| 0.500 |" in page
    )


def test_a_matrix_needs_a_single_axis(tmp_path):
    axes = STUDY["axes"] | {"task": {"near": {}, "far": {"environment.options.vague": 0.2}}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(STUDY | {"axes": axes}))
    with pytest.raises(ConfigurationError, match="win_rates needs exactly one axis; the study has policy, task"):
        read_definition(str(tmp_path / "two.yaml"))
