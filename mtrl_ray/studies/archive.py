"""Copies of finished runs without training data: small enough to publish with a table, and to add seeds on another machine.

A copy has the settings, metrics, summary and turn scores of a run, and its held-out conversations without
tokens. A study treats it like the original run, but it can neither be resumed nor used for chat.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from mtrl_ray.dialogue.conversation import Conversation, from_table, to_table
from mtrl_ray.evaluation.turn_ranks import FOLDER
from mtrl_ray.monitoring.recorder import FILE
from mtrl_ray.run.folder import write_settings
from mtrl_ray.studies.cells import Cell
from mtrl_ray.studies.runs import SUMMARY, State, state

HELD_OUT = "evaluation"


def archive(cells: Sequence[Cell], folder: Path) -> int:
    """Copy the files that tables need from every finished run to FOLDER/RUN. Returns the number of runs."""
    finished = [cell for cell in cells if state(cell) is State.FINISHED]
    for cell in finished:
        _archive(cell, folder / cell.name)
    return len(finished)


def _archive(cell: Cell, kept: Path) -> None:
    shutil.rmtree(kept, ignore_errors=True)
    (kept / HELD_OUT).mkdir(parents=True)
    run = cell.settings.run.model_copy(update={"folder": str(kept.parent)})
    write_settings(cell.settings.model_copy(update={"run": run}))
    for name in (FILE, SUMMARY):
        if (cell.folder / name).is_file():  # a run without iterations has no metrics
            shutil.copyfile(cell.folder / name, kept / name)
    if (cell.folder / FOLDER).is_dir():
        shutil.copytree(cell.folder / FOLDER, kept / FOLDER)
    for path in sorted((cell.folder / HELD_OUT).glob("*.parquet")):
        table = to_table(map(_without_tokens, from_table(pq.read_table(path))))
        pq.write_table(table, kept / HELD_OUT / path.name, compression="zstd")


def _without_tokens(conversation: Conversation) -> Conversation:
    turns = [replace(turn, tokens=[], logprobs=[], versions=[]) for turn in conversation.turns]
    return replace(conversation, turns=turns)
