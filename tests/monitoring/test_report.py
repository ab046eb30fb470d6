"""The report: what it says of a finished run, of hostile text, and of every missing or damaged piece."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from mtrl_ray.dialogue.conversation import Role, StopReason
from mtrl_ray.errors import DataError
from mtrl_ray.monitoring.report import write_report
from tests.monitoring.run_folder import CONTEXTS, sale, write_evaluations, write_run

VOID = {"meta", "br", "hr", "img", "input", "link"}
HOSTILE = [
    "<script>document.title = 'owned'</script>",
    "</p></details><img src=x onerror=\"document.title='owned'\">",
    '"><svg onload=alert(1)>',
    "</style><style>body{display:none}</style>",
    "{{ 7 * 7 }}{% raw %}",
    "<!-- --> ]]> &lt;b&gt; \x00 \u202e reversed",
]


class Page(HTMLParser):
    """The elements of a page with their attributes, its text, and whether every element is closed in order."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.texts, self.stack, self.torn = [], [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        self.text = "".join(self.texts)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.stack or self.stack.pop() != tag:
            self.torn.append(tag)

    def handle_data(self, data):
        if self.stack and self.stack[-1] != "style":
            self.texts.append(data)

    def count(self, tag, style=None):
        return sum(t == tag and (style is None or style in (a.get("class") or "").split()) for t, a in self.elements)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "bright-lamp")


@pytest.fixture(scope="module")
def page(run):
    return Page(write_report(run))


def assert_self_contained(page):
    assert page.torn == []
    assert page.stack == []
    names = {tag for tag, _ in page.elements}
    assert not names & {"script", "img", "iframe", "link", "object", "embed", "base", "form", "a"}
    attributes = {name for _, attributes in page.elements for name in attributes}
    assert not {name for name in attributes if name.startswith("on")} | (attributes & {"src", "href", "style"})
    style = page.source[page.source.index("<style>") : page.source.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_the_file_replaces_the_one_before_and_leaves_nothing_beside(run):
    before = {path.name for path in run.iterdir()}
    assert write_report(run) == run / "report.html"
    assert {path.name for path in run.iterdir()} == before | {"report.html"}
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_the_page_needs_nothing_from_outside(page):
    assert_self_contained(page)


def test_the_headline_says_what_came_of_it(run, page):
    summary = json.loads((run / "summary.json").read_text())
    start, end, expert = (summary[name]["mean"] for name in ("start", "end", "expert"))
    assert f"on {CONTEXTS} held-out contexts rose from {start:.3f} to {end:.3f}." in page.text
    assert f"{100 * (end - start) / (expert - start):.0f} %" in page.text
    assert "iterative_ppo on sales, model tiny, seed 0" in page.text
    assert f"{256 * 30:,}" in page.text


def test_every_result_and_curve_is_drawn(page):
    for title in (
        "Score on held-out contexts",
        "Q on held-out conversations",
        "KL from the reference",
        "Q's ranks of the answers in a state",
        "Length of an update",
        "Entropy of the policy",
        "Answers cut at the token limit",
        "Tokens per second",
        "Seconds per iteration",
    ):
        assert title in page.text
    figures = re.findall(r"<figure>.*?</figure>", page.source, re.DOTALL)
    assert len(figures) == 17
    score = next(figure for figure in figures if 'class="title">Score<' in figure)
    assert score.count("<circle") == 30 + 3
    assert score.count('class="band s1"') == 1
    assert score.count('class="reference"') == 2
    # The critic's first value was not finite: one point fewer, and no other chart misses one.
    variance = next(figure for figure in figures if "explained variance<" in figure)
    assert variance.count("<circle") == 29
    assert not re.search(r'="[^"]*(nan|inf)[^"]*"', "".join(figures))


def test_a_rare_metric_is_one_line_with_its_intervals(page):
    figures = re.findall(r"<figure>.*?</figure>", page.source, re.DOTALL)
    gain = next(figure for figure in figures if "Gain of the first choice" in figure)
    assert gain.count('class="line s1"') == 1 + 6, "a line and six whiskers"
    assert gain.count("<circle") == 2 * 6


def test_alarms_are_listed_with_their_iterations(page, tmp_path):
    assert "Alarms" in page.text
    assert "iteration 23: 20% of the agent's answers are cut at the token limit, 3% in the first iteration" in page.text
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1, "collect/truncated": 0.9}\n')
    assert "Alarms" not in Page(write_report(tmp_path)).text


def test_the_table_has_every_metric(run, page):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    keys = {key for line in lines for key in json.loads(line) if key != "iteration"}
    assert set(re.findall(r"<code>([^<]+)</code>", page.source)) == keys


def test_contexts_are_shown_before_and_after_turn_by_turn(run, page):
    pairs = [(sale(i, False), sale(i, True)) for i in range(CONTEXTS)]
    changes = {after.context_id: after.score - before.score for before, after in pairs}
    sections = re.split(r"<h3>", page.source)[1:]
    shown = [re.findall(r'class="context">([^<]+)<', section) for section in sections]
    assert [section.split("<")[0] for section in sections] == ["Biggest improvement", "Biggest loss", "Random draw"]
    assert len(shown[0]) == 4
    assert {changes[name] for name in shown[0]} == {1.0}
    losses = [name for name, change in changes.items() if change < 0]
    assert len(shown[1]) == min(4, len(losses))
    assert set(shown[1]) <= set(losses)
    assert len(shown[2]) == 4
    assert len({name for group in shown for name in group}) == sum(map(len, shown))
    better = sum(change > 0 for change in changes.values())
    assert f"<b>{better}</b> went better" in page.source
    turns = sum(
        sum(turn.role != Role.SYSTEM for turn in side.turns)
        for pair in pairs
        if pair[0].context_id in {name for group in shown for name in group}
        for side in pair
    )
    assert page.count("div", "turn") == turns


def test_what_was_sent_instead_and_what_was_hidden_is_there(tmp_path):
    write_evaluations(tmp_path, start=[sale(0, False)], end=[sale(0, True)])
    page = Page(write_report(tmp_path))
    sent = next(turn.sent for turn in sale(0, True).turns if turn.sent)
    assert sent in page.text
    assert page.text.count("sent instead") == 2
    assert "agent suggests" in page.text
    assert "What only the environment knows" in page.text
    assert '"worry": "price"' in page.text
    stops = {StopReason.OUTCOME: "ended with its outcome", StopReason.USER_LEFT: "the user left"}
    assert stops[sale(0, True).stop] in page.text


def test_the_config_and_a_command_that_makes_the_run_again(run, page, tmp_path):
    assert (run / "config.yaml").read_text() in page.text
    assert f"mtrl train {run / 'config.yaml'} run.name=bright-lamp-again" in page.text
    (tmp_path / "command.txt").write_text("mtrl train sales run.seed=3\n")
    assert "mtrl train sales run.seed=3" in Page(write_report(tmp_path)).text


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_is_shown_as_text(tmp_path, hostile):
    start, end = sale(0, False), sale(0, True)
    for conversation in (start, end):
        conversation.context_id = hostile
        conversation.context = {hostile: hostile}
        conversation.metrics = {hostile: 1.0}
        for turn in conversation.turns:
            turn.text = hostile
            turn.sent = hostile if turn.role == Role.AGENT else None
    write_evaluations(tmp_path, start=[start], end=[end])
    (tmp_path / "config.yaml").write_text(json.dumps({"run": {"name": hostile}, "algorithm": {"name": hostile}}))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"iteration": 1, hostile: 1, f"{hostile}/seconds": 2}) + "\n")
    estimate = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 3}
    (tmp_path / "summary.json").write_text(json.dumps({hostile: estimate, "start": estimate}))
    (tmp_path / "command.txt").write_text(hostile)
    page = Page(write_report(tmp_path))
    assert_self_contained(page)
    assert page.text.count(hostile) >= 10


def test_an_empty_folder_has_a_page_that_says_so(tmp_path):
    page = Page(write_report(tmp_path))
    for missing in (
        "No evaluation at the start and at the end",
        "No results yet",
        "No metrics yet",
        "No evaluation conversations yet",
        "config.yaml is not there",
    ):
        assert missing in page.text
    assert page.count("figure") == 0


@pytest.mark.parametrize("missing", ["metrics.jsonl", "summary.json", "config.yaml", "evaluation/end.parquet"])
def test_a_page_without_one_of_its_pieces(tmp_path, run, missing):
    run = shutil.copytree(run, tmp_path / "run")
    (run / missing).unlink()
    page = Page(write_report(run))
    assert_self_contained(page)
    assert page.count("p", "missing") >= 1
    assert "cannot be read" not in page.text


@pytest.mark.parametrize("damaged", ["metrics.jsonl", "summary.json", "config.yaml", "evaluation/end.parquet"])
@pytest.mark.parametrize("content", [b"[1, 2\n", b"\xff\xfe\x00\n", b"[]\n", b'{"start": {"mean": "x"}}\n'])
def test_a_damaged_piece_is_named_and_the_rest_shown(tmp_path, run, damaged, content):
    run = shutil.copytree(run, tmp_path / "run")
    (run / damaged).write_bytes(content)
    page = Page(write_report(run))
    assert_self_contained(page)
    harmless = damaged == "config.yaml" and content.startswith(b"{")
    assert (f"{damaged} cannot be read" in page.text) != harmless


def test_numbers_no_chart_expects(tmp_path):
    rows = [
        {"iteration": 1, "q/r": 1e300, "improve/kl_reference": None},
        {"iteration": 2, "q/r": -1e-300, "improve/kl": "x"},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "summary.json").write_text('{"start": {"mean": null, "low": null, "high": null, "n": 0}}')
    page = Page(write_report(tmp_path))
    assert_self_contained(page)
    assert "KL from the reference" not in page.text


def test_a_single_iteration_is_a_dot(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1, "q/r": 0.5, "iteration/seconds": 2}\n')
    page = Page(write_report(tmp_path))
    figures = "".join(re.findall(r"<figure>.*?</figure>", page.source, re.DOTALL))
    assert figures.count("<circle") == 1
    assert figures.count("<rect") == 1


def test_a_long_run_stays_readable(tmp_path):
    rows = [{"iteration": i, "q/r": 0.5, "iteration/seconds": 3.0, "collect/seconds": 2.0} for i in range(1, 2001)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Page(write_report(tmp_path))
    assert page.count("rect", "bar") <= 120
    assert 100 < page.count("circle", "hidden") <= 160


def test_a_fall_and_a_standstill_are_called_so(tmp_path):
    estimates = [{"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 40} for mean in (0.5, 0.3)]
    for end, words in ((1, "fell from 0.500 to 0.300"), (0, "stayed at 0.500")):
        (tmp_path / "summary.json").write_text(json.dumps({"start": estimates[0], "end": estimates[end]}))
        assert words in Page(write_report(tmp_path)).text


def test_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not the folder of a run"):
        write_report(tmp_path / "nowhere")
