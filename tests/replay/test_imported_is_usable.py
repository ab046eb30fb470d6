"""Whatever an import accepts, the consumers of a journal accept: the chat templates, the buffer, the journal itself."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrl_ray.dialogue.conversation import from_table
from mtrl_ray.dialogue.tokens import ChatFormat
from mtrl_ray.evaluation.logged import LeftOut, encoded
from mtrl_ray.models.tiny_tokenizer import train_tokenizer
from mtrl_ray.replay.columns import faults
from mtrl_ray.replay.importing import import_conversations
from mtrl_ray.replay.journal import Journal
from mtrl_ray.replay.mapping import Mapping
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.templates import QWEN2_5, QWEN_ADDED, QWEN_SPECIAL

ROLES = {"agent": ["agent"], "user": ["user"], "system": ["system"], "ignore": ["log"]}
MAPPING = Mapping.model_validate(
    {
        "environment": "any",
        "id": "id",
        "roles": ROLES,
        "message": {"reward": "r", "sent": "sent"},
        "metrics": {"m": "m"},
    }
)
TEXT = st.text(max_size=8) | st.sampled_from(["", " ", "<|im_end|>", "\ud800", "\n"])
NUMBER = st.floats() | st.integers() | st.sampled_from([1e39, -1e39, 10**400, "", "3", "nan", None, True])
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["agent", "user", "agent", "user", "system", "log", "boss"]), "content": TEXT | st.none()},
    optional={"r": NUMBER, "sent": TEXT},
)
RECORD = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE, max_size=6), "score": st.sampled_from([0, 0.5, 1]) | NUMBER},
    optional={"m": NUMBER},
)


@pytest.fixture(scope="module")
def formats() -> list[ChatFormat]:
    """The tiny model's own template, and ChatML, which demands no user to speak first either."""
    tiny = train_tokenizer(["Sell bikes. Hi, I want a bike."] * 2, vocabulary=300)
    chatml = byte_tokenizer(QWEN2_5, QWEN_SPECIAL, QWEN_ADDED, eos="<|im_end|>")
    return [ChatFormat.from_tokenizer(tokenizer) for tokenizer in (tiny, chatml)]


@given(st.lists(RECORD, min_size=1, max_size=5))
@settings(max_examples=80, deadline=None)
def test_what_is_imported_can_be_used(
    tmp_path_factory: pytest.TempPathFactory, formats: list[ChatFormat], records: list[dict[str, Any]]
) -> None:
    folder: Path = tmp_path_factory.mktemp("any")
    lines = [json.dumps({"id": str(number), **record}) for number, record in enumerate(records)]
    (folder / "log.jsonl").write_text("\n".join(lines))
    report = import_conversations(str(folder / "log.jsonl"), MAPPING, Journal(folder / "journal"))
    assert report.added + report.quarantined == len(records)
    journal = Journal(folder / "journal")
    table = journal.read()
    assert (journal.problems, table.num_rows, faults(table)) == ([], report.added, {})
    for chat in formats:
        left_out = LeftOut()
        kept = encoded(from_table(table), chat, 10_000, False, left_out)
        assert (len(kept), left_out.count) == (report.added, 0)
        assert all(one.tokens for one in kept)
