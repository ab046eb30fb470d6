"""The numbers of a table against a naive computation, and what is written, on runs whose scores are made up."""

import json
import math
import random
import statistics
import sys
from xml.etree import ElementTree

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mtrl_ray import cli
from mtrl_ray.dialogue.conversation import Conversation, StopReason, to_table
from mtrl_ray.evaluation.holdout import keep, summarise
from mtrl_ray.run.folder import prepare
from mtrl_ray.statistics.estimates import mean_interval
from mtrl_ray.studies import table
from mtrl_ray.studies.cells import make_cells
from mtrl_ray.studies.definition import read_definition

CONTEXTS, ITERATIONS = 12, 4
STUDY = {
    "title": "Made up",
    "recipe": "sales",
    "seeds": [0, 1, 2],
    "axes": {
        "task": {"near": {}, "far": {"environment.options.vague": 0.2}},
        "window": {"one": {"algorithm.window": 1}, "two": {"algorithm.window": 2}, "three": {"algorithm.window": 3}},
    },
    "exclude": [{"task": "far", "window": "three"}],
    "columns": "task",
    "baseline": {"window": "one"},
    "metrics": ["q/r"],
    "areas": ["q/r"],
    "against": "q/r",
}


def naive_t(values):
    """The textbook's interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values) - half, statistics.mean(values) + half


def held(scores):
    return to_table(
        Conversation(f"c{n}", "sales", "test", f"test-{n}", [], score, StopReason.OUTCOME)
        for n, score in enumerate(scores)
    )


def finish(cell, rng) -> dict[str, list[float]]:
    """The folder of a finished run; its scores."""
    prepare(cell.settings, fresh=False, command=cell.command)
    found = {name: [rng.random() for _ in range(CONTEXTS)] for name in ("start", "end")}
    for name, scores in found.items():
        keep(cell.folder, name, held(scores))
        summarise(cell.folder, **{name: mean_interval(scores)})
    summarise(cell.folder, expert=mean_interval([0.9, 1.0]), greedy=mean_interval([0.1, 0.2]))
    rows = [
        {
            "iteration": n,
            "collect/score_mean": rng.random(),
            "collect/conversations": 5,
            "q/r": n / 10 + rng.random() / 100,
        }
        for n in range(1, ITERATIONS + 1)
    ]
    (cell.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found | {"q/r": rows[-1]["q/r"], "area": statistics.mean(row["q/r"] for row in rows)}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory):
    """Runs of every cell but one, the table that `mtrl study` makes of them, and what was made up."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "made_up.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    name, definition = read_definition(str(folder / "made_up.yaml"))
    rng = random.Random(0)
    cells = make_cells(name, definition, definition.seeds, folder / "runs")
    known = {cell.name: finish(cell, rng) for cell in cells}
    options = ["--out", str(folder / "out"), "--runs", str(folder / "runs"), "--json", str(folder / "result.json")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mtrl", "study", str(folder / "made_up.yaml"), *options])
        with pytest.raises(SystemExit) as ending:
            cli.main()
    assert not ending.value.code
    return folder, known


def rows_of(written):
    return json.loads((written[0] / "result.json").read_text())["rows"]


def test_a_row_has_the_naive_mean_and_interval_over_seeds(written):
    _, known = written
    rows = rows_of(written)
    assert [(row["task"], row["window"]) for row in rows] == [
        *(("near", "one"), ("near", "two"), ("near", "three")),
        *(("far", "one"), ("far", "two")),
    ]
    for row in rows:
        ends = [statistics.mean(known[f"{row['task']}-{row['window']}-s{seed}"]["end"]) for seed in range(3)]
        assert row["seeds"] == 3 and row["interval"] == "seeds"
        assert row["mean"] == pytest.approx(statistics.mean(ends))
        assert (row["low"], row["high"]) == pytest.approx(naive_t(ends))
        assert [run["end"] for run in row["runs"]] == pytest.approx(ends)
        last = [known[f"{row['task']}-{row['window']}-s{seed}"]["q/r"] for seed in range(3)]
        assert row["metrics"]["q/r"]["mean"] == pytest.approx(statistics.mean(last))
        assert row["runs"][0]["conversations"] == 5 * ITERATIONS and row["expert"]["mean"] == pytest.approx(0.95)


def test_areas_are_means_over_iterations_with_what_they_could_show(written):
    folder, known = written
    rows = json.loads((folder / "result.json").read_text())["areas"]
    assert [(row["task"], row["window"], row["metric"], row["seeds"]) for row in rows[:2]] == [
        ("near", "one", "q/r", 3),
        ("near", "two", "q/r", 3),
    ]
    for row in rows:
        cells = [f"{row['task']}-{row['window']}-s{seed}" for seed in range(3)]
        ours = [known[cell]["area"] for cell in cells]
        assert row["mean"] == pytest.approx(statistics.mean(ours))
        assert (row["low"], row["high"]) == pytest.approx(naive_t(ours))
        if row["window"] == "one":
            assert row["difference"] is None and "smallest" not in row
            continue
        differences = [one - known[f"{row['task']}-one-s{seed}"]["area"] for seed, one in enumerate(ours)]
        assert row["difference"]["mean"] == pytest.approx(statistics.mean(differences))
        quantiles = stats.t.ppf(0.975, 2) + stats.t.ppf(0.8, 2)
        assert row["smallest"] == pytest.approx(quantiles * statistics.stdev(differences) / math.sqrt(3))
        assert row["runs_for"] >= 2
    page = (folder / "out" / "made_up.md").read_text()
    assert "## Areas under the curves" in page and "(made_up-area-q_r.svg)" in page
    assert ElementTree.parse(folder / "out" / "made_up-area-q_r.svg").getroot().tag.endswith("svg")


def test_a_figure_has_the_scores_over_a_metric(written):
    folder, _ = written
    text = (folder / "out" / "made_up-against.svg").read_text()
    shown = [entry.text for entry in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]
    assert {"q/r", "score", "one", "two", "three"} <= set(shown)
    assert "(made_up-against.svg)" in (folder / "out" / "made_up.md").read_text()
    assert "win rate over start" not in shown


def test_a_context_is_a_cluster(written):
    _, known = written
    row = rows_of(written)[0]
    by_seed = [known[f"near-one-s{seed}"] for seed in range(3)]
    per_context = [statistics.mean(one["end"][n] for one in by_seed) for n in range(CONTEXTS)]
    assert row["contexts"]["n"] == CONTEXTS and row["contexts"]["mean"] == pytest.approx(row["mean"])
    assert (row["contexts"]["low"], row["contexts"]["high"]) == pytest.approx(naive_t(per_context))
    changes = [statistics.mean(one["end"][n] - one["start"][n] for one in by_seed) for n in range(CONTEXTS)]
    assert (row["change"]["contexts"]["low"], row["change"]["contexts"]["high"]) == pytest.approx(naive_t(changes))
    start, end = (statistics.mean(statistics.mean(one[name]) for one in by_seed) for name in ("start", "end"))
    assert row["gap"]["mean"] == pytest.approx((end - start) / (0.95 - start))


def test_differences_are_paired_by_seed(written):
    folder, known = written
    differences = json.loads((folder / "result.json").read_text())["differences"]
    assert [(one["task"], one["window"]) for one in differences] == [("near", "two"), ("near", "three"), ("far", "two")]
    for one in differences:
        found = [
            statistics.mean(known[f"{one['task']}-{one['window']}-s{seed}"]["end"])
            - statistics.mean(known[f"{one['task']}-one-s{seed}"]["end"])
            for seed in range(3)
        ]
        assert one["mean"] == pytest.approx(statistics.mean(found))
        assert (one["low"], one["high"]) == pytest.approx(naive_t(found)) and one["against"] == {"window": "one"}


def test_files_and_page(written):
    folder, _ = written
    out = folder / "out"
    assert (out / "made_up.json").read_text() == (folder / "result.json").read_text()
    page = (out / "made_up.md").read_text()
    shown = [line for line in page.splitlines() if line.startswith("| ")]
    assert shown[0] == "| window | near | far |" and [line.split(" | ")[0] for line in shown[1:4]] == [
        *("| one", "| two", "| three"),
    ]
    assert shown[3].endswith("| – |"), "the excluded cell is a dash"
    first = rows_of(written)[0]
    assert f"{first['mean']:.3f} [{first['low']:.3f}, {first['high']:.3f}]" in shown[1]
    assert f"mtrl study {folder / 'made_up.yaml'} --runs {folder / 'runs'}" in page
    assert page.count("mtrl train sales ") == 15 and "## Missing" not in page
    for figure in sorted(out.glob("*.svg")):
        assert f"]({figure.name})" in page


def test_figures_have_thin_seeds_and_a_thick_mean(written):
    folder, _ = written
    svg = "{http://www.w3.org/2000/svg}"
    found = sorted(path.name for path in (folder / "out").glob("*collect*.svg"))
    assert found == ["made_up-far-collect_score_mean.svg", "made_up-near-collect_score_mean.svg"]
    for name, values in (("far", 2), ("near", 3)):
        text = (folder / "out" / f"made_up-{name}-collect_score_mean.svg").read_text()
        styles = [path.get("class") for path in ElementTree.fromstring(text).iter(f"{svg}path")]
        assert sum(style.endswith(" thin") for style in styles) == 3 * values
        assert sum(not style.endswith(" thin") for style in styles) == values
        shown = [entry.text for entry in ElementTree.fromstring(text).iter(f"{svg}text")]
        assert {"one", "two", "expert 0.95"} <= set(shown) and ("three" in shown) is (name == "near")


def test_contexts_of_one_source_are_a_cluster():
    rng = random.Random(1)
    sources = {f"test-{n}": f"record-{n % 3}" for n in range(12)}
    values = [0.5 + rng.random() / 20 for _ in range(3)]
    start, end = ({context: own[int(name[-1])] for context, name in sources.items()} for own in (values[::-1], values))
    alone = table.numbers([end], {}).as_dict()
    found = table.numbers([end], sources).as_dict()
    assert (alone["clusters"], found["clusters"], found["n"]) == (12, 3, 12)
    low, high = naive_t(values)
    assert (found["low"], found["high"]) == pytest.approx((max(low, 0), min(high, 1)))
    change = table.difference([end], [start], sources).as_dict()
    low, high = naive_t([b - a for a, b in zip(values[::-1], values, strict=True)])
    assert (change["low"], change["high"]) == pytest.approx((max(low, -1), min(high, 1)))


def test_the_page_says_how_many_clusters_there_are():
    from mtrl_ray.studies.writing import _interval

    entry = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 256, "clusters": 22}
    assert _interval(entry) == "0.500 [0.250, 0.750] (22 clusters)"
    assert _interval({**entry, "clusters": 256}) == "0.500 [0.250, 0.750]"


def test_the_mean_curve_ends_where_a_seed_ends():
    from mtrl_ray.studies.figures import _average

    assert _average([{1: 0.0, 2: 1.0, 3: 5.0}, {1: 1.0, 2: 2.0}]) == {1: 0.5, 2: 1.5}


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(2, 9), st.randoms(use_true_random=False))
def test_numbers_on_any_scores(seeds, contexts, rng):
    scores = [{f"test-{n}": rng.random() for n in range(contexts)} for _ in range(seeds)]
    found = table.numbers(scores, {}).as_dict()
    everything = [value for one in scores for value in one.values()]
    assert found["mean"] == pytest.approx(statistics.mean(everything))
    assert found["interval"] == ("seeds" if seeds > 1 else "contexts")
    assert found["low"] <= found["mean"] <= found["high"]
    if seeds == 1:
        assert (found["low"], found["high"]) == (found["contexts"]["low"], found["contexts"]["high"])
    same = table.difference(scores, scores, {})
    assert same.seeds.mean == same.contexts.mean == 0.0
