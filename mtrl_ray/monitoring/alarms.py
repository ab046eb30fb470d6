"""Alarms: sentences about an iteration's metrics that somebody has to hear of, said when they begin to be true.

1. `Alarms.hear` is told one iteration after another, in order, and gives the sentences of alarms that have begun. One that
   goes on is not said again until it has ended. A run that is resumed hears its recorded iterations first.
2. The same metrics give the same alarms: the trainer notes them, the report lists those of all recorded iterations.
"""

import math
from collections.abc import Iterable, Mapping

CUT = 0.2
"""Share of the agent's answers that may end at the token limit."""
RISE = 2.0
"""Factor above the first iteration's share, for answers may be long from the start."""
OPTIMISM = 0.1
"""Difference of mean Q and mean return, in units of the return."""
RELATIVE_OPTIMISM = 0.25
"""The same as a share of the return; both have to be exceeded."""
ALIKE = 0.9
"""Share of states whose answers are all alike."""

Metrics = Mapping[str, float | None]


class Alarms:
    """The alarms of one run. `iterations`: (number from 1, metrics) that have been recorded, in order."""

    def __init__(self, iterations: Iterable[tuple[int, Metrics]] = ()) -> None:
        self._first_cut: float | None = None
        self._on: set[str] = set()
        self.said: list[tuple[int, str]] = []
        """Iteration and sentence of all alarms so far."""
        for number, metrics in iterations:
            self.hear(number, metrics)

    def hear(self, iteration: int, metrics: Metrics) -> list[str]:
        """Sentences of the alarms that begin with this iteration."""
        known = {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}
        states = {
            "truncated": self._truncated(known),
            "optimism": _optimism(known),
            "alike": _alike(known),
            "ranking": _ranking(known),
        }
        begun = [said for name, said in states.items() if said and name not in self._on]
        for name, said in states.items():
            if said is not None:
                self._on = self._on | {name} if said else self._on - {name}
        self.said += [(iteration, sentence) for sentence in begun]
        return begun

    def _truncated(self, metrics: dict[str, float]) -> str | None:
        """A sentence; empty if all is well, None if the metrics do not say."""
        cut = metrics.get("collect/truncated")
        if cut is None:
            return None
        if self._first_cut is None:
            self._first_cut = cut
        if cut <= CUT or cut <= RISE * self._first_cut:
            return ""
        return (
            f"{cut:.0%} of the agent's answers are cut at the token limit, {self._first_cut:.0%} in the first iteration: "
            "answers grow, or rollout.response_tokens is too small"
        )


def _optimism(metrics: dict[str, float]) -> str | None:
    score, mean = metrics.get("improve/score"), metrics.get("q/return")
    if score is None or mean is None:
        return None
    difference = score - mean
    if abs(difference) <= max(OPTIMISM, RELATIVE_OPTIMISM * abs(mean)):
        return ""
    direction = "above" if difference > 0 else "below"
    return (
        f"Q's mean over the sampled answers, {score:.3f}, is {abs(difference):.3f} {direction} the mean return, {mean:.3f}: "
        "Q does not know these answers"
    )


def _alike(metrics: dict[str, float]) -> str | None:
    alike = metrics.get("respond/alike")
    if alike is None:
        return None
    if alike <= ALIKE:
        return ""
    return f"in {alike:.0%} of the states all sampled answers are alike: there is nothing to choose from (raise the entropy)"


def _ranking(metrics: dict[str, float]) -> str | None:
    high, gain = metrics.get("ranking/gain_high"), metrics.get("ranking/gain")
    if high is None or gain is None:
        return None
    if high >= 0:
        return ""
    return f"the answer that Q likes best scores {-gain:.3f} less than the mean of its state: Q ranks answers the wrong way"
