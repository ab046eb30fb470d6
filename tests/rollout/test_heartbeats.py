"""Who makes no progress although it has work, with actors that stand in for workers."""

import pytest
import ray

from mtrl_ray.rollout.heartbeats import Heartbeats
from mtrl_ray.rollout.worker_pool import PooledWorker


class Standin:
    """Makes progress unless it is told not to."""

    def __init__(self) -> None:
        self.value, self.works = 0, True

    def work(self, works: bool) -> None:
        self.works = works

    def progress(self) -> int:
        self.value += self.works
        return self.value


@pytest.fixture
def workers(ray_cluster: None):
    made = [PooledWorker(number, ray.remote(Standin).options(num_cpus=0).remote()) for number in range(2)]
    yield made
    for worker in made:
        ray.kill(worker.actor)


def test_one_without_progress_is_stalled_and_one_that_works_never_is(workers):
    now = [0.0]
    beats = Heartbeats(20.0, clock=lambda: now[0])

    def after(seconds: float, working: list[PooledWorker]) -> list[int]:
        """Who is stalled then; each is asked once a second."""
        for _ in range(int(seconds)):
            now[0] += 1.0
            stalled = beats.stalled(working)
            for worker in working:
                if (pulse := beats._pulses[worker.number]).answer is not None:
                    ray.wait([pulse.answer])
        return [worker.number for worker in stalled]

    assert after(60, workers) == []
    ray.get(workers[1].actor.work.remote(False))
    assert after(15, workers) == [] and after(20, workers) == [1]
    ray.get(workers[1].actor.work.remote(True))
    assert after(10, workers) == [], "it makes progress again"
    ray.get(workers[1].actor.work.remote(False))
    after(15, workers)
    assert after(5, workers[:1]) == [] and after(15, workers) == [], "without work it is forgotten"
    ray.kill(workers[0].actor)
    assert 0 in after(40, workers), "one that does not answer"
