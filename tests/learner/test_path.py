"""What an improvement of the policy calls up to its first gradient is on the path in docs/architecture.md."""

import numpy as np
import pyarrow as pa

from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods.single_turn import SingleTurnImprovement
from mtrl_ray.learner.methods.updates import PolicyUpdate
from tests.learner.test_linear_q import scores_of, turns_of
from tests.support.path import counted, named, watched


def test_the_path_shows_what_is_called_up_to_the_gradient(
    learner: Learner, conversations: pa.Table, responses: pa.Table
) -> None:
    scores = scores_of(np.linspace(0, 1, responses.num_rows), np.ones(turns_of(conversations)))
    with watched(until="backward") as called:
        SingleTurnImprovement(PolicyUpdate(kl_limit=0.02)).run(learner.core, conversations, responses, scores)
    path = counted()
    assert set(path[path.index("mtrl_ray/learner/methods/single_turn.py") :]) <= set(called) <= named()
