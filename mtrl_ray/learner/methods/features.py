"""What the policy itself knows of a response in its state, as a row of numbers: the features of a linear Q.

1. The last hidden state where the response's first token is predicted (the state), and where its last token is (the state and
   the response); tokens are predicted from there by one linear map, so what words mean is in them.
2. How likely the policy finds the response: its log-probability, summed, per token and at its least likely token; the entropy,
   summed and per token; the number of tokens. What a policy that imitates people says seldom is often worse.
3. The number of the agent's turn, one of `TURNS`.

All of it comes out of one pass, without gradients.
"""

import numpy as np

from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.rows.packing import Rows, response_tokens, turn_tokens
from mtrl_ray.learner.rows.tables import Dialogues, Responses, starts_of
from mtrl_ray.models.policy import ForwardOptions

TURNS = 16
"""Turns that are told apart; later ones count as the last."""
STATISTICS = 6
"""Of the log-probabilities: see rule 2."""


class Features:
    """Of responses, float32. `state`: what is known before the response, [responses, width + TURNS]; `full`: all of it,
    [responses, 2 width + STATISTICS + TURNS]. `likeliness`, nats [responses]: log-probability plus entropy, summed over the
    response's tokens: how much likelier it is than the policy's answers in its state are on average."""

    def __init__(self, first: np.ndarray, last: np.ndarray, statistics: np.ndarray, turn: np.ndarray) -> None:
        position = np.eye(TURNS, dtype=np.float32)[np.minimum(turn, TURNS - 1)]
        self.state = np.concatenate([first, position], axis=1)
        self.full = np.concatenate([first, last, statistics, position], axis=1)
        self.likeliness = statistics[:, 0] + statistics[:, 3]

    @classmethod
    def of_turns(cls, core: Core, dialogues: Dialogues) -> "Features":
        """Of all agent turns."""
        return cls._read(
            core, turn_tokens(dialogues), dialogues.turn_lengths[dialogues.agent_turns], turn_ranks(dialogues)
        )

    @classmethod
    def of_responses(cls, core: Core, dialogues: Dialogues, responses: Responses) -> "Features":
        """Of responses in logged states."""
        rank = np.zeros(len(dialogues.agent), dtype=np.int64)
        rank[dialogues.agent_turns] = turn_ranks(dialogues)
        rows = response_tokens(dialogues, responses, core.branch_tokens)
        return cls._read(core, rows, responses.lengths, rank[responses.turn])

    @classmethod
    def _read(cls, core: Core, rows: Rows, lengths: np.ndarray, turn: np.ndarray) -> "Features":
        """`lengths`: tokens of each response, whose items follow each other."""
        starts = starts_of(lengths)
        tokens, states = core.read_policy(
            rows, ForwardOptions(core.temperature), np.concatenate([starts[:-1], starts[1:] - 1])
        )
        logprobs, entropies = (np.add.reduceat(tokens[name], starts[:-1]) for name in ("logprobs", "entropies"))
        least = np.minimum.reduceat(tokens["logprobs"], starts[:-1])
        statistics = [logprobs, logprobs / lengths, least, entropies, entropies / lengths, lengths]
        first, last = np.split(states, 2)
        return cls(first, last, np.stack(statistics, axis=1).astype(np.float32), turn)


def turn_ranks(dialogues: Dialogues) -> np.ndarray:
    """How many agent turns its conversation has before each agent turn, int64 [agent turns]."""
    conversation = dialogues.turn_conversation[dialogues.agent_turns]
    first = np.searchsorted(conversation, conversation, side="left")
    return np.arange(len(conversation), dtype=np.int64) - first
