"""A run's folder as a finished run leaves it: settings, thirty iterations of metrics, summary, evaluations."""

import json
import random
from pathlib import Path

import pyarrow.parquet as pq

from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, to_table
from mtrl_ray.monitoring.recorder import Recorder
from mtrl_ray.run.recipes import dump
from mtrl_ray.settings.tree import Settings
from mtrl_ray.statistics.estimates import correlation, mean_interval

CONTEXTS = 40
ITERATIONS = 30
SYSTEM = "You suggest replies to a shop assistant. Products: Trail 3 bicycle 450, City 7 bicycle 780, Nova lamp 60."
PRICES = {"Trail 3": 450, "City 7": 780, "Nova": 60}


def sale(index: int, skilful: bool) -> Conversation:
    """One `sales` conversation about context `index`; a skilful agent asks before it offers."""
    rng = random.Random(f"{index}/{skilful}")
    wanted = rng.choice(list(PRICES))
    turns = [Turn(Role.SYSTEM, SYSTEM), Turn(Role.USER, "Hello, I am looking for something. Can you help?")]
    if skilful:
        turns += [
            Turn(Role.AGENT, "Gladly! What will you use it for, and how much would you like to spend?"),
            Turn(Role.USER, f"For every day. At most {PRICES[wanted] + 50} dollars."),
        ]
    offer = wanted if skilful else rng.choice(list(PRICES))
    sent = f"We have the {offer}, it costs {PRICES[offer]}, and the bell is free." if index % 5 == 0 else None
    sold = offer == wanted and rng.random() < 0.85
    text = "Wonderful, I will take it." if sold else "No, that is not what I need. Goodbye."
    turns += [
        Turn(Role.AGENT, f"I recommend the {offer} for {PRICES[offer]} dollars.", sent=sent, reward=float(sold)),
        Turn(Role.USER, text),
    ]
    return Conversation(
        id=f"run/test-{index}/{'end' if skilful else 'start'}",
        environment="sales",
        split="test",
        context_id=f"test-{index}",
        turns=turns,
        score=float(sold),
        stop=StopReason.OUTCOME if sold else StopReason.USER_LEFT,
        metrics={"purchase": float(sold), "agent_turns": 1.0 + skilful},
        context={"wants": wanted, "budget": PRICES[wanted] + 50, "worry": "price"},
        seed=index,
    )


def metrics_of(iteration: int) -> dict[str, float]:
    """Plausible numbers of one iteration."""
    rng = random.Random(iteration)
    level = 0.3 + 0.4 * iteration / ITERATIONS
    scores = mean_interval([float(rng.random() < level) for _ in range(256)])
    truth = [rng.random() for _ in range(200)]
    r = correlation([value + rng.gauss(0, 0.5 - 0.01 * iteration) for value in truth], truth).mean
    seconds = {part: rng.uniform(0.8, 1.2) * mean for part, mean in PARTS.items()}
    metrics = {
        **{f"{part}/seconds": value for part, value in seconds.items()},
        "iteration/seconds": sum(seconds.values()) + 0.2,
        "collect/score_mean": scores.mean,
        "collect/score_low": scores.low,
        "collect/score_high": scores.high,
        "collect/conversations": 256,
        "collect/agent_turns": 256 * 3,
        "collect/tokens": 17_000 + rng.randrange(2_000),
        "collect/tokens_per_second": 6_000 + rng.randrange(800),
        "collect/failures": 0,
        "q/loss": 0.2 * 0.95**iteration + 0.01 * rng.random(),
        "q/r": r,
        "q/calibration": 0.12 * 0.96**iteration,
        "improve/kl_reference": 0.004 * iteration + 0.002 * rng.random(),
        "improve/score_within": 0.05 + 0.01 * rng.random(),
        "improve/kl_update": 0.002 + 0.001 * rng.random(),
        "improve/step_fraction": 1.0 if rng.random() < 0.7 else 0.6,
        "collect/answer_tokens": 9.0 + 0.2 * iteration,
        "collect/answer_tokens_p95": 16.0 + 0.5 * iteration,
        "collect/truncated": 0.02 + 0.008 * iteration,
        "respond/truncated": 0.02 + 0.009 * iteration,
        "respond/distinct": 2.6 - 0.03 * iteration,
        "improve/clip_fraction": 0.1 * rng.random(),
        "improve/entropy": 1.4 - 0.02 * iteration,
        "improve/explained_variance": float("nan") if iteration == 1 else 0.6 - 0.5 * 0.9**iteration,
        "improve/tokens_per_second": 21_000 + rng.randrange(3_000),
        "replay/conversations": 256 * iteration,
        "replay/bytes": 900_000 * iteration,
        "weights/version": iteration,
    }
    if iteration % 5 == 1:
        gain = 0.02 + 0.03 * rng.random()
        metrics |= {"ranking/gain": gain, "ranking/gain_low": gain - 0.05, "ranking/gain_high": gain + 0.05}
        metrics |= {"ranking/best_gain": 0.08, "ranking/rank_correlation": 0.3, "ranking/slope": 0.6}
    if iteration % 10 == 0:
        held_out = mean_interval([float(rng.random() < level + 0.03) for _ in range(CONTEXTS)])
        metrics |= {"evaluation/mean": held_out.mean, "evaluation/low": held_out.low, "evaluation/high": held_out.high}
    return metrics


PARTS = {"collect": 2.6, "respond": 1.3, "q": 0.9, "improve": 2.2, "publish": 0.1}


def write_run(folder: Path) -> Path:
    """Fill `folder` and return it."""
    with Recorder(folder, "bright-lamp") as recorder:
        for iteration in range(1, ITERATIONS + 1):
            recorder.record(iteration, metrics_of(iteration))
    settings = Settings.model_validate({"run": {"name": "bright-lamp", "folder": "runs"}})
    (folder / "config.yaml").write_text(dump(settings))
    sides = {"start": [sale(i, False) for i in range(CONTEXTS)], "end": [sale(i, True) for i in range(CONTEXTS)]}
    write_evaluations(folder, **sides)
    summary = {name: mean_interval([one.score for one in side]).as_dict() for name, side in sides.items()}
    summary["expert"] = mean_interval([1.0] * 36 + [0.0] * 4).as_dict()
    summary["greedy"] = mean_interval([1.0] * 12 + [0.0] * 28).as_dict()
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def write_evaluations(folder: Path, **sides: list[Conversation]) -> None:
    """`evaluation/NAME.parquet` for each side."""
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    for name, conversations in sides.items():
        pq.write_table(to_table(conversations), folder / "evaluation" / f"{name}.parquet")
