"""The figure of `mtrl theory`: convergence and its bounds, as one SVG file; the same data give the same bytes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtrl_ray.statistics.drawing import drawing
from mtrl_ray.tabular.checks.convergence import MTPO_FACTOR, MTPO_TAU_FACTOR, theorem_bound
from mtrl_ray.tabular.checks.iterative_ppo import improvement_curve
from mtrl_ray.tabular.checks.rlhf import rlhf_gap
from mtrl_ray.tabular.checks.suite import Run, Suite
from mtrl_ray.tabular.mdp import Array

BLUE, ORANGE, GREEN, GREY, RED = "#2f6db3", "#d98218", "#3a8f5c", "#777777", "#b3413a"


def draw(suite: Suite, path: Path) -> None:
    """Write the figure: divergence of MTPO and MTPO-τ with their bounds, duality gaps on cycles, Iterative PPO."""
    with drawing("mtrl theory", 9.0, 6.4) as made:
        panels = made.figure.subplots(2, 2)
        _convergence(panels[0, 0], suite, "MTPO", suite.mtpo, MTPO_FACTOR, BLUE)
        _convergence(panels[0, 1], suite, "MTPO-τ", suite.mtpo_tau, MTPO_TAU_FACTOR, ORANGE)
        _gaps(panels[1, 0], suite)
        _improvement(panels[1, 1], suite)
        for panel in panels.flat:
            panel.legend(frameon=False, fontsize=8)
    path.write_text(made.svg)


def _convergence(panel: Any, suite: Suite, name: str, runs: Sequence[Run], factor: float, colour: str) -> None:
    marks = np.array(suite.marks)
    _spread(panel, marks, np.concatenate([run.divergence[marks - 1] for run in runs], axis=1), name, colour)
    bounds = [theorem_bound(game, marks, factor) for game in suite.batches]
    lowest = np.concatenate(bounds, axis=1).min(axis=1)
    panel.loglog(marks, lowest, "--", color=GREY, label="the theorem's bound (lowest of all games)")
    panel.set(title=f"{name}: divergence from the equilibrium", xlabel="iteration t", ylabel="KL_p(π*‖π_t)")


def _gaps(panel: Any, suite: Suite) -> None:
    marks = np.array(suite.marks)
    cyclic = [game.of_kind("cyclic") for game in suite.batches]
    runs = (("MTPO", suite.mtpo, BLUE), ("MTPO-τ", suite.mtpo_tau, ORANGE), ("Nash-MD", suite.nash_md, GREEN))
    for name, batches, colour in runs:
        gaps = np.concatenate([run.gap[:, chosen] for run, chosen in zip(batches, cyclic, strict=True)], axis=1)
        panel.loglog(
            marks, np.median(gaps, axis=1), color=colour, label=name, linestyle=":" if colour == GREEN else "-"
        )
    stuck = np.concatenate([rlhf_gap(game)[chosen] for game, chosen in zip(suite.batches, cyclic, strict=True)])
    _spread(panel, marks, np.broadcast_to(stuck, (len(marks), len(stuck))), "RLHF's limit, best temperature", RED)
    panel.set(title="Cyclic preferences: exploitability", xlabel="iteration t", ylabel="duality gap (median)")


def _improvement(panel: Any, suite: Suite) -> None:
    gaps, bounds = (np.stack(entry).mean(axis=-1) for entry in improvement_curve(suite))
    iterations = np.arange(1, len(gaps) + 1)
    _spread(panel, iterations, np.maximum(gaps, 1e-16), "π' ∝ π exp(Q/β), exact Q", GREEN)
    panel.loglog(iterations, np.median(bounds, axis=1), "--", color=GREY, label="median of the 1/k bounds")
    panel.set(title="Iterative PPO: distance from the optimum", xlabel="iteration k + 1", ylabel="V* − V_k")


def _spread(panel: Any, x: np.ndarray, values: Array, name: str, colour: str) -> None:
    """Plot the median over games (the last axis) and the range from smallest to largest."""
    panel.fill_between(x, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.15, linewidth=0)
    panel.loglog(x, np.median(values, axis=1), color=colour, label=f"{name} (median, range)")
