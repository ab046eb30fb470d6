"""Failures: of single pieces of work (a conversation, a judge's answer about one), and of Ray's actors.

A piece that failed in each of its tries is left out and counted; it never enters a batch as a zero or a ½. If all pieces are
left out, or more than a share of them (`rollout.data_errors`), nothing is learned from the rest. The error is a DataError if
wrong data alone are too many, because a retry would give them again, and otherwise an EngineError, which `recovery` handles.
Either names the first piece of its kind with its cause.

What Ray raises becomes an error of this project here and nowhere else. `explained` gives what the actor raised, or an
EngineError if Ray lost an actor or an object. `sentence` gives the cause of any error in one line.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ray.exceptions import RayActorError, RayError, RayTaskError

from mtrl_ray.errors import DataError, EngineError, MtrlError

logger = logging.getLogger(__name__)
T = TypeVar("T")

_HEADER = re.compile(r"(\w+\.)*\w*(Error|Exception|Exit|Interrupt|Timeout)(:|$)")
_MODULE = re.compile(r"^(\w+\.)+")
_ADVERT = "For further information visit"  # the last line of pydantic's errors
_INPUT = re.compile(r"\s*\[type=\w+, input_value=.*?, input_type=\w+\]")

SHOWN = 3
"""Causes of failures that are shown."""
SENTENCE = 400
"""Longest account of a failure, in characters."""


@dataclass(frozen=True)
class Failure:
    """A piece of work that failed: its identity, the error's class name, its sentence."""

    id: str
    kind: str
    message: str

    @classmethod
    def of(cls, identity: str, error: BaseException) -> "Failure":
        """The failure of a piece that raised."""
        name = type(error).__name__
        return cls(identity, name, str(error) or name)

    @property
    def infrastructure(self) -> bool:
        """Whether the infrastructure failed, not the data."""
        return self.kind == EngineError.__name__

    @property
    def cause(self) -> str:
        """Kind and sentence."""
        return f"{self.kind}: {self.message}"


def attempt(identity: str, work: Callable[[int], T], retries: int) -> T | Failure:
    """What `work(trial)` gives, or why each of `retries` + 1 trials failed: the last failure.

    Any exception, `sys.exit` included, is the piece's own failure; one that this project does not explain is logged with its
    traceback.
    """
    failure = Failure.of(identity, DataError("it was never tried"))
    for trial in range(retries + 1):
        try:
            return work(trial)
        except (Exception, SystemExit) as error:
            if not isinstance(error, MtrlError):
                logger.exception("%s failed", identity)
            failure = Failure.of(identity, error)
    return failure


def stop_at_too_many(left_out: Sequence[Failure], asked: int, allowed: float, work: str, tries: int) -> None:
    """Raises DataError or EngineError if too many of the `asked` pieces were left out.

    allowed: the share that may be; work: what the pieces are, in the plural; tries: of each.
    """

    def too_many(found: Sequence[Failure]) -> bool:
        return len(found) > allowed * asked or 0 < len(found) == asked

    wrong = [failure for failure in left_out if not failure.infrastructure]
    if too_many(wrong):
        raise DataError(
            f"{len(wrong)} of {asked} {work} failed {tries} times each because of wrong data; the first, {wrong[0].id}: "
            f"{wrong[0].cause}"
        )
    if too_many(left_out):
        lost = [failure for failure in left_out if failure.infrastructure]
        raise EngineError(
            f"{len(left_out)} of {asked} {work} failed {tries} times each, {len(lost)} because of the infrastructure; the "
            f"first of these, {lost[0].id}: {lost[0].cause}"
        )


def causes(failures: Iterable[Failure]) -> str:
    """The most frequent causes, as the end of a sentence; empty if nothing failed."""
    counted = Counter(failure.cause[:300] for failure in failures)
    return "; ".join(f"{count} x {cause}" for cause, count in counted.most_common(SHOWN))


def root_cause(error: BaseException) -> BaseException:
    """What an actor or task raised, without Ray's wrappers; Ray's own error if it was lost."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    while isinstance(error, MtrlError) and isinstance(inner := getattr(error, "cause", None), MtrlError):
        error = inner
    return error


def explained(error: BaseException) -> MtrlError | None:
    """The error of this project behind `error`; None for a defect, which has to be seen with its traceback."""
    cause = root_cause(error)
    if isinstance(cause, MtrlError):
        return cause
    if isinstance(cause, RayError) and not isinstance(cause, RayTaskError):
        what = "an actor was lost" if isinstance(cause, RayActorError) else "Ray lost something"
        return EngineError(f"{what} ({type(cause).__name__}: {' '.join(str(cause).split())[:SENTENCE]})")
    return None


def sentence(error: BaseException) -> str:
    """The cause of an error in one line, found in the remote traceback that its text may carry."""
    lines = [line.rstrip() for line in str(error).splitlines() if line.strip() and _ADVERT not in line]
    if not lines:
        return type(error).__name__
    headers = [place for place, line in enumerate(lines) if _HEADER.match(line)]
    said = lines[-1]
    if headers:
        said = " ".join([_MODULE.sub("", lines[headers[-1]]), *lines[headers[-1] + 1 :]])
    return " ".join(_INPUT.sub("", said).split())[:500]
