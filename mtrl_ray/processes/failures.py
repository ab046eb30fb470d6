"""Pieces of work that may fail each by itself (a conversation, a judge's answer about one): what is said, and how many may.

1. A piece that failed in each of its tries is left out and counted; it never enters a batch as a zero or a ½.
2. Where more than a share of the pieces (`rollout.data_errors`) is left out, or all of them, nothing is learned from the rest.
   It is a DataError where wrong data alone are too many, for they would be wrong again; else an EngineError, which
   `recovery` mends.
3. Either names the first piece of its kind with its cause.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mtrl_ray.errors import DataError, EngineError

SHOWN = 3
"""Causes of failures that are shown."""


@dataclass(frozen=True)
class Failure:
    """A piece of work that did not succeed: its identity, the error's class name, its sentence."""

    id: str
    kind: str
    message: str

    @classmethod
    def of(cls, identity: str, error: Exception) -> "Failure":
        """The failure of a piece that raised."""
        name = type(error).__name__
        return cls(identity, name, str(error) or name)

    @property
    def infrastructure(self) -> bool:
        """Whether it says nothing about the data."""
        return self.kind == EngineError.__name__

    @property
    def cause(self) -> str:
        """Kind and sentence."""
        return f"{self.kind}: {self.message}"


def stop_at_too_many(left_out: Sequence[Failure], asked: int, allowed: float, work: str, tries: int) -> None:
    """Raises DataError or EngineError where too many of the `asked` pieces were left out (rule 2).

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
    """The most frequent causes, as the end of a sentence; empty where nothing failed."""
    counted = Counter(failure.cause[:300] for failure in failures)
    return "; ".join(f"{count} x {cause}" for cause, count in counted.most_common(SHOWN))
