"""A scorer of responses that knows what `tests.support.letters` pays for, or its opposite."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mtrl_ray.learner.operation import Numbers, Operation
from tests.support.letters import ENOUGH


@dataclass(frozen=True)
class LetterScores(Operation[np.ndarray]):
    sign: float = 1.0

    def run(self, core: Any, conversations: pa.Table, responses: pa.Table) -> tuple[np.ndarray, Numbers]:
        texts = responses["text"].to_pylist()
        return self.sign * np.array([min(text.count("e"), ENOUGH) / ENOUGH for text in texts], np.float32), {}
