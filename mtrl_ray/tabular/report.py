"""The report of `mtrl theory`: every statement with its error and its bound, and the figure."""

from collections.abc import Sequence
from pathlib import Path

from mtrl_ray.tabular.checks import CHECKS, Check, Suite, statement
from mtrl_ray.tabular.figures import draw

PAGE, FIGURE = "theory.md", "theory.svg"


def write_report(folder: Path, suite: Suite, results: Sequence[Check], command: str) -> Path:
    """Write page and figure into a folder; `results` are in the order of `CHECKS`. Returns the path of the page."""
    draw(suite, folder / FIGURE)
    (folder / PAGE).write_text(page(suite, results, command), encoding="utf-8")
    return folder / PAGE


def page(suite: Suite, results: Sequence[Check], command: str) -> str:
    """The report as Markdown."""
    holding = sum(check.holds for check in results)
    errors = {check.name: check.error for check in results}
    rows = "\n".join(_row(check, statement(code)) for check, code in zip(results, CHECKS, strict=True))
    return f"""# The theorems, checked

Command:

```
{command}
```

{holding} of {len(results)} statements hold on random games (float64, exact values): {suite.games} preference games in four
shapes with five kinds of preference, including cyclic ones, {suite.steps} iterations of each algorithm. A statement holds
if its error, the largest over all games, is at most its bound. The mathematics is in [theory.md](../theory.md).

| check | statement | error | bound | games | holds |
|---|---|---|---|---|---|
{rows}

![Divergence of MTPO and MTPO-τ from the equilibrium under the theorems' bounds, duality gaps on cyclic preferences,
distance of Iterative PPO from the optimum]({FIGURE})

Lines are medians over games, bands show the range. The theorems guarantee that the divergence falls like 1/t. In the
slowest game it falls like t^{errors["mtpo_rate"]:.2f} for MTPO and t^{errors["mtpo_tau_rate"]:.2f} for MTPO-τ, and its
largest ratio to the bound at any t is {errors["mtpo_bound"]:.1e} and {errors["mtpo_tau_bound"]:.1e}. No reward represents
cyclic preferences: RLHF stops at a duality gap that no temperature closes.
"""


def _row(check: Check, text: str) -> str:
    cells = (
        check.name,
        text,
        f"{check.error:.1e}",
        f"{check.bound:.1e}",
        str(check.games),
        "yes" if check.holds else "NO",
    )
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
