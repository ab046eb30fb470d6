"""The interface for progress of a run: activity of its parts, iterations and notes. `live.LiveView` shows it."""

from collections.abc import Mapping
from typing import Protocol


class View(Protocol):
    """Receives the progress of a run."""

    def part(self, name: str, doing: str) -> None:
        """Set the current activity of a part of the system (rollout, replay, learner, weights)."""

    def begin(self) -> None:
        """The first iteration begins; the run's budget of minutes counts from here."""

    def iteration(self, number: int, metrics: Mapping[str, float]) -> None:
        """An iteration (counted from 1) has ended with these metrics."""

    def note(self, text: str) -> None:
        """Show a message on a separate line."""


class Silent:
    """A view that shows nothing."""

    def part(self, name: str, doing: str) -> None:
        """See `View.part`."""

    def begin(self) -> None:
        """See `View.begin`."""

    def iteration(self, number: int, metrics: Mapping[str, float]) -> None:
        """See `View.iteration`."""

    def note(self, text: str) -> None:
        """See `View.note`."""
