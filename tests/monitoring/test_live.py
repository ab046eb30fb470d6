"""The live view: what it prints, in a terminal and in a pipe, and how it estimates the time left."""

import io

import pytest
from rich.console import Console

from mtrl_ray.monitoring.heartbeat import Steps, duration
from mtrl_ray.monitoring.live import LiveView

METRICS = {
    "iteration/seconds": 8.0,
    "collect/score_mean": 0.41,
    "collect/score_low": 0.36,
    "collect/score_high": 0.46,
    "collect/tokens_per_second": 6123.4,
    "collect/failures": 0,
    "improve/kl_reference": 0.0123,
    "q/r": 0.62,
}


class Clock:
    """Seconds that pass when they are told to."""

    now = 1000.0

    def __call__(self):
        return self.now


def viewed(terminal, iterations=20, **options):
    clock, output = Clock(), io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=110, color_system=None)
    return LiveView("bright-lamp", iterations, console=console, clock=clock, **options), clock, output


def test_in_a_pipe_each_iteration_is_one_line():
    view, clock, output = viewed(terminal=False)
    with view:
        view.part("rollout", "holding 256 conversations")
        for number in (1, 2):
            clock.now += 8
            view.iteration(number, METRICS)
    first, second = output.getvalue().splitlines()
    numbers = "score 0.410 [0.360, 0.460] · KL 0.0123 · Q r 0.62 · 6,123 tokens/s · 8.0 s"
    assert first == f"iteration 1/20 · {numbers} · 2:32 left"
    assert second == f"iteration 2/20 · {numbers} · 2:24 left"


def test_a_line_says_how_far_the_step_went_how_answers_are_and_how_q_ranks_them():
    view, _, output = viewed(terminal=False)
    numbers = {
        "improve/kl_update": 0.0052,
        "improve/step_fraction": 0.42,
        "ranking/rank_correlation": -0.1,
        "ranking/gain": 0.0214,
        "respond/distinct": 2.26,
        "collect/answer_tokens": 11.6,
        "collect/truncated": 0.12,
    }
    usual = {"improve/step_fraction": 1.0, "collect/truncated": 0.0}
    with view:
        view.iteration(1, numbers)
        view.iteration(2, usual)
    first, second = output.getvalue().splitlines()
    assert (
        "step 0.0052 · 42% of it kept · ranks answers ρ -0.10 · first choice +0.021 · 2.3 answers differ · "
        "12 tokens an answer · 12% cut · " in first
    )
    assert "kept" not in second and "cut" not in second


def test_in_a_pipe_a_long_phase_says_at_growing_intervals_what_it_does():
    view, clock, output = viewed(terminal=False)
    view.part("warm start", "1300 SFT steps")
    view.part("rollout", "idle")
    said = []
    for second in range(100):
        clock.now = 1000.0 + second
        view.heartbeat.tick()
        if len(output.getvalue().splitlines()) > len(said):
            said.append(second)
    assert said == [10, 30, 70]
    assert output.getvalue().splitlines()[1] == "0:30  warm start: 1300 SFT steps (0:30)"
    view.note("warm start: done")
    view.part("warm start", "")
    clock.now += 15
    view.heartbeat.tick()
    assert output.getvalue().splitlines()[-1] == "warm start: done", "nothing goes on, nothing is said"


def test_steps_say_how_long_the_rest_takes():
    clock, said = Clock(), []
    steps = Steps(3, said.append, clock)
    for name in ("first", "second", "third"):
        steps.begin(name)
        clock.now += 20
    assert said == ["1 of 3: first", "2 of 3: second · about 0:40 left", "3 of 3: third · about 0:20 left"]


def test_a_line_without_metrics_or_with_nan_leaves_them_out():
    view, clock, output = viewed(terminal=False)
    with view:
        clock.now += 1
        view.iteration(
            1, {"q/r": float("nan"), "improve/kl_reference": None, "collect/failures": 3, "evaluation/mean": 0.5}
        )
    assert output.getvalue() == "iteration 1/20 · held out 0.500 · 3 failed · 0:19 left\n"


def test_a_long_line_is_never_broken():
    view, _, output = viewed(terminal=False)
    with view:
        view.note("x" * 500)
    assert output.getvalue() == "x" * 500 + "\n"


def test_notes_are_text_not_markup():
    view, _, output = viewed(terminal=False)
    with view:
        view.note("[bold]loud[/bold] :smiley: \x1b[2Jcleared\x07")
    assert output.getvalue() == "[bold]loud[/bold] :smiley: [2Jcleared\n"


def test_the_table_in_a_terminal():
    view, clock, output = viewed(terminal=True)
    with view:
        view.part("rollout", "holding 256 [red]conversations")
        view.part("judge", "reading")
        clock.now += 65
        view.iteration(5, {**METRICS, "evaluation/mean": 0.5, "evaluation/low": 0.4, "evaluation/high": 0.6})
        view.iteration(6, METRICS)
        view.note("a worker joined")
    shown = output.getvalue()
    last = shown[shown.rindex("bright-lamp") :]
    assert "a worker joined" in shown
    assert "iteration 6 of 20" in last
    assert "1:05 elapsed" in last
    rows = {line.split()[0]: line.split() for line in last.splitlines() if line.strip()}
    assert rows["rollout"] == ["rollout", "holding", "256", "[red]conversations", "1:05"]
    assert rows["judge"] == ["judge", "reading", "1:05"]
    assert rows["weights"] == ["weights", "–"]
    assert "score 0.410 [0.360, 0.460] · held out 0.500 [0.400, 0.600]" in last


def test_a_terminal_may_have_plain_lines_too():
    view, _, output = viewed(terminal=True, table=False)
    with view:
        view.iteration(1, METRICS)
    assert output.getvalue().count("\n") == 1
    assert "elapsed" not in output.getvalue()


def test_an_error_inside_leaves_the_terminal_usable():
    view, _, output = viewed(terminal=True)
    with pytest.raises(KeyError), view:
        raise KeyError("q")
    hidden, shown = output.getvalue().rfind("\x1b[?25l"), output.getvalue().rfind("\x1b[?25h")
    assert 0 <= hidden < shown


def test_time_left_counts_this_sessions_iterations_and_the_pause_since():
    view, clock, _ = viewed(terminal=False, done=10)
    with view:
        assert view.seconds_left() is None
        for number in (11, 12):
            clock.now += 6
            view.iteration(number, {})
        assert view.seconds_left() == pytest.approx(8 * 6)
        clock.now += 4
        assert view.seconds_left() == pytest.approx(8 * 6 - 4)
        clock.now += 1000
        assert view.seconds_left() == 0


def test_time_left_is_bounded_by_the_budget():
    view, clock, _ = viewed(terminal=False, iterations=1000, minutes=2)
    with view:
        clock.now += 500  # a warm start, engines, an evaluation: before the budget
        view.begin()
        clock.now += 30
        view.iteration(1, {})
        assert view.seconds_left() == pytest.approx(90)


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0:00"), (7, "0:07"), (59.6, "1:00"), (750, "12:30"), (3723, "1:02:03")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
