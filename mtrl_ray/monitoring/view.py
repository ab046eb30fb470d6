"""What a run tells whoever watches it: which part does what, and notes. `live.LiveView` shows it; `Silent` does not."""

from collections.abc import Mapping
from typing import Protocol


class View(Protocol):
    """A place where progress is shown."""

    def part(self, name: str, doing: str) -> None:
        """What a part of the system (rollout, replay, learner, weights) does now."""

    def begin(self) -> None:
        """The first iteration begins: the run's budget of minutes counts from here."""

    def iteration(self, number: int, metrics: Mapping[str, float]) -> None:
        """An iteration (counted from 1) has ended with these metrics."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""


class Silent:
    """Shows nothing."""

    def part(self, name: str, doing: str) -> None:
        """See `View.part`."""

    def begin(self) -> None:
        """See `View.begin`."""

    def iteration(self, number: int, metrics: Mapping[str, float]) -> None:
        """See `View.iteration`."""

    def note(self, text: str) -> None:
        """See `View.note`."""
