"""What counts as a failure of the machinery, and how often and when a run is repaired."""

import pytest
import ray
from ray.exceptions import ActorDiedError, ObjectLostError, RayTaskError

from mtrl_ray.errors import CheckpointError, ConfigurationError, DataError, EngineError
from mtrl_ray.run.recovery import Recovery, lost
from mtrl_ray.run.trainer import RECOVERIES


class Journal:
    """What a recovery says and how long it waits."""

    def __init__(self, most: int) -> None:
        self.said: list[str] = []
        self.waits: list[float] = []
        self.recovery = Recovery(most, self.said.append, sleep=self.waits.append)


def failing(*errors: Exception | None):
    """Work that raises these one after the other, None for a success."""
    left = list(errors)

    def work() -> str:
        error = left.pop(0)
        if error is not None:
            raise error
        return "done"

    return work


def test_work_that_fails_is_repaired_and_tried_again():
    journal, repaired = Journal(5), []
    work = failing(EngineError("the disk is full"), EngineError("the learner is gone"), None)
    assert journal.recovery.carry(work, lambda: repaired.append(1)) == "done"
    assert len(repaired) == journal.recovery.total == 2 and journal.waits == [0.0, 1.0]
    assert journal.said == [
        "the disk is full; recovery 1 of at most 5 in a row",
        "the learner is gone; recovery 2 of at most 5 in a row, in 1 s",
    ]


def test_waits_double_up_to_a_minute_and_the_last_cause_is_named_in_the_end():
    journal = Journal(10)
    with pytest.raises(EngineError, match="no space left; given up after 10 recoveries in a row"):
        journal.recovery.carry(failing(*[EngineError("no space left")] * 11), lambda: None)
    assert journal.waits == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_by_default_a_run_waits_a_quarter_of_an_hour_for_room():
    journal = Journal(RECOVERIES)
    with pytest.raises(EngineError, match="given up after 20 recoveries in a row"):
        journal.recovery.carry(failing(*[EngineError("no space left")] * 21), lambda: None)
    assert 14 * 60 < sum(journal.waits) < 15 * 60


def test_progress_ends_a_row():
    journal = Journal(1)
    errors = iter([EngineError("a"), EngineError("b"), None])

    def work() -> None:
        journal.recovery.progressed()
        error = next(errors)
        if error is not None:
            raise error

    journal.recovery.carry(work, lambda: None)
    assert journal.waits == [0.0, 0.0] and journal.recovery.total == 2


def test_a_repair_may_fail_too():
    journal = Journal(3)
    repair = failing(EngineError("no node has room"), None)
    assert journal.recovery.carry(failing(EngineError("a learner died"), None), repair) == "done"
    assert [said.split(";")[0] for said in journal.said] == ["a learner died", "no node has room"]


@pytest.mark.parametrize("error", [DataError("x"), ConfigurationError("x"), CheckpointError("x"), KeyError("x")])
def test_what_would_fail_again_is_passed_on(error):
    journal = Journal(5)
    with pytest.raises(type(error)):
        journal.recovery.carry(failing(error), lambda: pytest.fail("repaired"))
    assert journal.said == [] and lost(error) is None


@ray.remote(num_cpus=0)
class Victim:
    def die(self) -> None:
        import os

        os._exit(1)

    def fail(self, error: Exception) -> None:
        raise error


def raised(reference) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        ray.get(reference, timeout=60)
    return caught.value


def test_errors_are_told_apart_wherever_they_were_raised(ray_cluster):
    victim = Victim.remote()
    assert lost(raised(victim.fail.remote(EngineError("no memory\nleft")))) == "no memory left"
    assert lost(raised(victim.fail.remote(DataError("torn")))) is None
    defect = raised(victim.fail.remote(ZeroDivisionError("a defect")))
    assert isinstance(defect, RayTaskError) and lost(defect) is None
    died = raised(victim.die.remote())
    assert isinstance(died, ActorDiedError)
    sentence = lost(died)
    assert sentence.startswith("an actor was lost (ActorDiedError") and "\n" not in sentence

    @ray.remote(num_cpus=0)
    def needs(value: object) -> None:
        """Fails because of what it was given."""

    assert "ActorDiedError" in lost(raised(needs.remote(victim.die.remote())))
    assert lost(ObjectLostError("00", None, "")).startswith("Ray lost something (ObjectLostError")
