"""Nodes follow demand in one run, by Ray's own autoscaler on this machine: one, three, one; nothing is aborted."""

from pathlib import Path

import pytest

from mtrl_ray.bench.elastic import bench_elastic
from mtrl_ray.replay.journal import Journal

CONTEXTS = 12


@pytest.mark.timeout(600)
def test_nodes_follow_demand_from_one_to_three_and_back_in_one_run(quick: list[str], tmp_path: Path):
    said: list[str] = []
    story = bench_elastic(tmp_path, quick, said.append)
    assert [line.split(" s  ")[1] for line in said] == [
        "the first iteration",
        "3 workers are wanted",
        "3 nodes",
        "3 workers",
        "an iteration with 3",
        "1 worker is wanted",
        "1 worker",
        "1 node",
    ]
    wanted = [row["workers/wanted"] for row in story.rows]
    assert max(wanted) == 3 and wanted[0] == wanted[-1] == 1
    assert story.figures()["aborted_lost_or_repeated"] == 0
    assert all(row["collect/score_n"] == CONTEXTS for row in story.rows)
    ids = Journal(tmp_path / "elastic" / "journal").ids()
    assert len(ids) == len(set(ids)) >= CONTEXTS * len(story.rows)
    assert not (tmp_path / "elastic" / "fleet.json").exists()
