"""Waiting for actors: every wait has a deadline and says what it waited for.

`fetch` is `ray.get` with a name for what is awaited; `responsive` asks whether actors still answer. Past the deadline an actor
counts as lost, as if it had died, and `recovery` decides what follows.
"""

from collections.abc import Sequence
from typing import overload

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from mtrl_ray.errors import EngineError
from mtrl_ray.processes.refs import Ref, T

ANSWER_SECONDS = 60.0
"""For answers that take no work: a number, an acknowledgement."""


@overload
def fetch(references: Ref[T], awaited: str, seconds: float = ANSWER_SECONDS) -> T: ...


@overload
def fetch(references: Sequence[Ref[T]], awaited: str, seconds: float = ANSWER_SECONDS) -> list[T]: ...


def fetch(references: object, awaited: str, seconds: float = ANSWER_SECONDS) -> object:
    """The value of a ref, or the values of a list of refs. Raises EngineError past the deadline, and what the actor raised."""
    try:
        return ray.get(references, timeout=seconds)
    except GetTimeoutError as error:
        if isinstance(error, RayTaskError):
            raise
        raise EngineError(f"waited {seconds:.0f} s for {awaited} and got no answer") from None


def responsive(references: Sequence[Ref[object]], seconds: float) -> bool:
    """Whether all of these calls are answered in time; false as soon as one of them fails because its actor is lost."""
    waiting, left = list(references), seconds
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=left)
        if not ready:
            return False
        try:
            ray.get(ready)
        except RayTaskError:
            continue
        except RayError:
            return False
    return True
