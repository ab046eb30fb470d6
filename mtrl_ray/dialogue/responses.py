"""Single responses sampled in logged states, which rollouts pass to the learner in addition to conversations.

- A state is a reference, not a copy: `conversation_id` and `turn`, the index into that conversation's turns of the agent turn
  whose history is the state (`Conversation.history(turn)`). The logged turn itself need not be among the responses.
- `sample` counts the responses in one state from 0. They are alternatives: no later turn was generated after any of them.
- `tokens` are exactly the sampled ids, including the end-of-turn token if it was sampled. `logprobs` and `versions` are the
  sampler's log-probability of each and the version of the weights that sampled it. `finish` is a `conversation.Finish` value.
"""

import pyarrow as pa

from mtrl_ray.errors import DataError

RESPONSES = pa.schema(
    [
        pa.field("conversation_id", pa.string(), nullable=False),
        pa.field("turn", pa.int32(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("tokens", pa.list_(pa.int32()), nullable=False),
        pa.field("logprobs", pa.list_(pa.float32()), nullable=False),
        pa.field("versions", pa.list_(pa.int32()), nullable=False),
        pa.field("finish", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ],
    metadata={"mtrl.responses": "1"},
)
"""One row per response; responses in one state need not be adjacent."""


def require_columns(table: pa.Table, schema: pa.Schema, what: str) -> None:
    """Raises DataError naming the columns of `schema` that a table of `what` lacks."""
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise DataError(f"a table of {what} needs the columns {schema.names}; this one lacks {missing}")
