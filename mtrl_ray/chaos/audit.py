"""The outcome of every lease of a run: compares the journal with the leases of its finished iterations."""

from dataclasses import dataclass
from typing import Any

from mtrl_ray.algorithms.registry import make_algorithm
from mtrl_ray.dialogue.conversation import iterate
from mtrl_ray.monitoring.recorder import read_metrics
from mtrl_ray.replay.journal import Journal
from mtrl_ray.rollout.lease import make_leases
from mtrl_ray.settings.tree import Settings


@dataclass(frozen=True)
class Audit:
    """`leases` of finished iterations; of these `lost`: neither kept nor dropped by cause (surplus
    conversations of another iteration do not make up for them); conversations `repeated`: kept or counted more than once;
    `zero_filled`: kept without any sampled agent tokens.
    """

    leases: int
    lost: int
    repeated: int
    zero_filled: int


def audit(settings: Settings) -> Audit:
    """Audit a run that is not running. Raises DataError for a damaged metrics file."""
    rows = read_metrics(settings.run_folder)
    journal = Journal(settings.run_folder / "journal")
    table = journal.read()
    held = set(table["id"].to_pylist())
    algorithm: Any = make_algorithm(settings.algorithm).settings
    leases = lost = counted_twice = 0
    for row in rows:
        iteration = row["iteration"] - 1
        contexts = range(iteration * algorithm.contexts, (iteration + 1) * algorithm.contexts)
        wanted = make_leases(settings.run.seed, "train", iteration, contexts, getattr(algorithm, "samples", 1))
        missing = sum(lease.id not in held for lease in wanted)
        leases += len(wanted)
        lost += max(0, missing - int(row["collect/failures"]))
        counted_twice += max(0, int(row["collect/score_n"]) - len(wanted))
    silent = sum(
        not any(done.turns[turn].tokens and done.turns[turn].logprobs for turn in done.agent_turns)
        for done in iterate(table)
    )
    return Audit(leases, lost, journal.position.rows - len(held) + counted_twice, silent)
