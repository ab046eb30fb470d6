"""Logs of other systems, read as conversations: what `mtrl import` does.

- A record and a mapping give one conversation (`reading`), or two with `participants: both`.
- A record that is not a valid conversation is quarantined: it is written, whole and with its cause, to a JSON lines file
  beside the journal's files, and counted by cause. The rest is imported; nothing is lost, guessed or zero-filled.
- Ids are `ENVIRONMENT/ID` (`/SIDE` with both sides), from the record's own id or else from its content, so importing the same
  log again adds nothing. If two different records of one import have the same id, the second is quarantined.
- Everything that is imported can be used by whatever reads journals: nothing is left to be refused later.
"""

import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtrl_ray.dialogue.conversation import Conversation, to_table
from mtrl_ray.errors import DataError
from mtrl_ray.replay.joining import joined_records
from mtrl_ray.replay.journal import Journal
from mtrl_ray.replay.mapping import Mapping
from mtrl_ray.replay.paths import Fault
from mtrl_ray.replay.reading import as_json, digest, read_conversation
from mtrl_ray.replay.records import Record

BATCH = 1024
"""Conversations per journal file."""
EXCERPT = 300
"""Characters of a quarantined record that are shown."""


@dataclass
class Imported:
    """Result of an import: records read, conversations added, doubles passed over, and what was quarantined.

    `causes` counts conversations by cause, without the particulars; `sentences` has one per quarantined conversation;
    `examples` is the first of each cause: its sentence, and how its record begins. `quarantine` is the path of the file that
    holds them, None if there are none.
    """

    records: int = 0
    added: int = 0
    duplicates: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    sentences: list[str] = field(default_factory=list)
    examples: dict[str, str] = field(default_factory=dict)
    quarantine: str | None = None

    @property
    def quarantined(self) -> int:
        """How many conversations are in quarantine."""
        return len(self.sentences)

    @property
    def conversations(self) -> int:
        """All that were read: added, known already, or in quarantine."""
        return self.added + self.duplicates + self.quarantined

    @property
    def share(self) -> float:
        """The share of the conversations that is in quarantine; 1 if there are none at all."""
        return self.quarantined / self.conversations if self.conversations else 1.0

    @property
    def main_cause(self) -> str:
        """The most frequent cause, with an example; a sentence without its full stop."""
        if not self.causes:
            return f"{self.records} records were found"
        cause, count = self.causes.most_common(1)[0]
        return f"most often ({count} x): {cause}; for example {self.examples[cause]}"


def import_conversations(
    sources: str | Sequence[str], mapping: Mapping, journal: Journal, iteration: int = 0, split: str | None = None
) -> Imported:
    """Read a log file or several (paths or URIs) into `journal`.

    `split` overrides the mapping's. Raises DataError if a file as a whole cannot be read, EngineError if the
    journal cannot be written; what was imported before stays, and importing again adds only what is missing.
    """
    report = Imported()
    rejected: list[dict[str, Any]] = []
    known = set(journal.ids())
    digests: dict[str, str] = {}
    batch: list[Conversation] = []
    try:
        paths = [sources] if isinstance(sources, str) else sources
        for place, value, conversation in _views(paths, mapping, report, rejected):
            content = digest(value)
            if digests.setdefault(conversation.id, content) != content:
                _reject(report, rejected, place, value, Fault("two different records have one id", conversation.id))
            elif conversation.id in known:
                report.duplicates += 1
            else:
                known.add(conversation.id)
                conversation.iteration, conversation.split = iteration, split or conversation.split
                batch.append(conversation)
            if len(batch) == BATCH:
                _flush(batch, journal, report)
    finally:
        _flush(batch, journal, report)
        _write_quarantine(rejected, journal, report)
    return report


def _views(
    sources: Sequence[str], mapping: Mapping, report: Imported, rejected: list[dict[str, Any]]
) -> Iterator[tuple[str, Any, Conversation]]:
    """The conversations of all records; faults go to `rejected`."""
    sides = (False, True) if mapping.participants == "both" else (False,)
    for source in sources:
        for record in joined_records(source, mapping):
            report.records += 1
            for swapped in sides:
                try:
                    yield record.place, record.value, _view(record, mapping, swapped)
                except DataError as error:
                    _reject(report, rejected, record.place, record.value, error)


def _view(record: Record, mapping: Mapping, swapped: bool) -> Conversation:
    if record.fault is not None:
        raise Fault(record.cause, record.fault)
    return read_conversation(record.value, mapping, swapped)


def _reject(report: Imported, rejected: list[dict[str, Any]], place: str, value: Any, error: DataError) -> None:
    cause = error.cause if isinstance(error, Fault) else "not a valid conversation"
    report.causes[cause] += 1
    report.sentences.append(f"{place}: {error}")
    report.examples.setdefault(cause, f"{place}: {error}: {as_json(value)[:EXCERPT]}")
    rejected.append({"place": place, "cause": str(error), "record": value})


def _flush(batch: list[Conversation], journal: Journal, report: Imported) -> None:
    if batch:
        journal.append(to_table(batch))
        report.added += len(batch)
        batch.clear()


def _write_quarantine(rejected: list[dict[str, Any]], journal: Journal, report: Imported) -> None:
    if rejected:
        name = f"_quarantine-{uuid.uuid4().hex[:8]}.jsonl"
        journal.folder.put(name, "".join(f"{as_json(row)}\n" for row in rejected).encode())
        report.quarantine = journal.folder.at(name)
