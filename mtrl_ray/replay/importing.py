"""Logs of other systems, read as conversations: what `mtrl import` does.

1. A record and a mapping give one conversation, or two with `participants: both`: text only, no token ids, no
   log-probabilities, `StopReason.LOGGED`. Consecutive messages of one side become one turn.
2. Without rewards per message, the score is the reward of the last agent turn, as an outcome's reward always is.
3. A record that is not a valid conversation is quarantined: it is written, whole and with its cause, to a JSON lines
   file beside the journal's files, and counted by cause. The rest is imported; nothing is lost, guessed or zero-filled.
4. Ids are `ENVIRONMENT/ID` (`/SIDE` with both sides), from the record's own id or else from its content: importing the
   same log again adds nothing. Two different records of one import under one id: the second is quarantined.
5. What is not Unicode text (lone surrogates) is replaced by U+FFFD; everything else a user wrote stays as it was.
"""

import hashlib
import json
import math
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, to_table, validate
from mtrl_ray.errors import DataError
from mtrl_ray.replay.journal import Journal
from mtrl_ray.replay.mapping import Mapping, fill, find
from mtrl_ray.replay.records import Record, read_records
from mtrl_ray.replay.split import held_out

BATCH = 1024
"""Conversations per journal file."""


@dataclass
class Imported:
    """What an import did: records read, conversations added, doubles passed over, and what was quarantined.

    `causes` counts conversations by cause, without the particulars; `sentences` has one per quarantined conversation;
    `quarantine` is the path of the file that holds them, None where there are none.
    """

    records: int = 0
    added: int = 0
    duplicates: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    sentences: list[str] = field(default_factory=list)
    quarantine: str | None = None

    @property
    def quarantined(self) -> int:
        """How many conversations are in quarantine."""
        return len(self.sentences)


class Fault(DataError):
    """Why a record is not a conversation: `cause` groups like faults, the message has the particulars."""

    def __init__(self, cause: str, particulars: str = "") -> None:
        self.cause = cause
        super().__init__(f"{cause}: {particulars}" if particulars else cause)


def import_conversations(
    sources: str | Sequence[str], mapping: Mapping, journal: Journal, iteration: int = 0, split: str | None = None
) -> Imported:
    """Read a log file or several (paths or URIs) into `journal`.

    `split` overrides the mapping's. Raises DataError where a file as a whole cannot be read, EngineError where the
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
            digest = _digest(value)
            if digests.setdefault(conversation.id, digest) != digest:
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


def read_conversation(value: dict[str, Any], mapping: Mapping, swapped: bool = False) -> Conversation:
    """One record as a conversation; `swapped`: with the user's side as the agent. Raises Fault."""
    agents, users = (mapping.roles.user, mapping.roles.agent) if swapped else (mapping.roles.agent, mapping.roles.user)
    sides = (agents[0], users[0])
    turns = _turns(value, mapping, agents, users)
    score = _score(value, mapping, sides)
    if mapping.message.reward is None:
        next(turn for turn in reversed(turns) if turn.role == Role.AGENT).reward = score
    identity = _identity(value, mapping.id, sides)
    context_id = _identity(value, mapping.context_id, sides) if mapping.context_id else identity
    conversation = Conversation(
        id=f"{mapping.environment}/{identity}" + (f"/{sides[0]}" if mapping.participants == "both" else ""),
        environment=mapping.environment,
        split=_split(value, mapping, context_id, sides),
        context_id=context_id,
        turns=turns,
        score=score,
        stop=StopReason.LOGGED,
        metrics=_metrics(value, mapping, sides),
        context={name: _plain(find(path, value, *sides)) for name, path in mapping.context.items()},
        sample=int(swapped),
    )
    validate(conversation)
    return conversation


def _views(
    sources: Sequence[str], mapping: Mapping, report: Imported, rejected: list[dict[str, Any]]
) -> Iterator[tuple[str, Any, Conversation]]:
    """The conversations of all records; faults go to `rejected`."""
    sides = (False, True) if mapping.participants == "both" else (False,)
    for source in sources:
        for record in read_records(source, mapping):
            report.records += 1
            for swapped in sides:
                try:
                    yield record.place, record.value, _view(record, mapping, swapped)
                except DataError as error:
                    _reject(report, rejected, record.place, record.value, error)


def _view(record: Record, mapping: Mapping, swapped: bool) -> Conversation:
    if record.fault is not None:
        raise Fault("not a record", record.fault)
    return read_conversation(record.value, mapping, swapped)


def _turns(value: dict[str, Any], mapping: Mapping, agents: Sequence[str], users: Sequence[str]) -> list[Turn]:
    messages = find(mapping.messages, value, agents[0], users[0])
    if not isinstance(messages, list) or not messages:
        raise Fault("no messages", f"at {mapping.messages!r} is {type(messages).__name__}, not a list with messages")
    owners = dict.fromkeys(agents, Role.AGENT) | dict.fromkeys(users, Role.USER)
    owners |= dict.fromkeys(mapping.roles.system, Role.SYSTEM)
    turns: list[Turn] = []
    if mapping.system is not None:
        turns.append(Turn(Role.SYSTEM, _clean(fill(mapping.system, mapping.fields, value, agents[0], users[0]))))
    for number, message in enumerate(messages):
        role = find(mapping.message.role, message)
        if str(role) in mapping.roles.ignore:
            continue
        if role is None or str(role) not in owners:
            raise Fault("unknown role", f"message {number} has {role!r}, the mapping knows {sorted(owners)}")
        _add(turns, _turn(owners[str(role)], message, number, mapping), number, _reward(message, number, mapping))
    if not any(turn.role == Role.AGENT for turn in turns):
        raise Fault("no agent turn", f"none of the messages has a role in {list(agents)}")
    return turns


def _turn(role: Role, message: Any, number: int, mapping: Mapping) -> Turn:
    text = find(mapping.message.text, message)
    if text is None or isinstance(text, dict | list):
        raise Fault("no text", f"message {number} has {type(text).__name__} at {mapping.message.text!r}")
    text = str(text)
    if text in mapping.message.actions:
        text = fill(mapping.message.actions[text], mapping.message.fields, message)
    sent = find(mapping.message.sent, message) if mapping.message.sent and role == Role.AGENT else None
    sent = None if sent is None or str(sent) == text else _clean(str(sent))
    return Turn(role, _clean(text), sent=sent)


def _add(turns: list[Turn], turn: Turn, number: int, reward: float) -> None:
    """Append a turn, or join it to the last one of the same side; a reward goes to the latest agent turn."""
    if turns and turns[-1].role == turn.role:
        last = turns[-1]
        if last.sent is not None or turn.sent is not None:
            last.sent = "\n".join(part.text if part.sent is None else part.sent for part in (last, turn))
        last.text = f"{last.text}\n{turn.text}"
    else:
        turns.append(turn)
    if reward:
        agent = next((turn for turn in reversed(turns) if turn.role == Role.AGENT), None)
        if agent is None:
            raise Fault("reward before the first agent turn", f"message {number} has {reward}")
        agent.reward += reward


def _reward(message: Any, number: int, mapping: Mapping) -> float:
    found = find(mapping.message.reward, message) if mapping.message.reward else None
    return 0.0 if found is None or found == "" else _number(found, f"the reward of message {number}")


def _score(value: dict[str, Any], mapping: Mapping, sides: tuple[str, str]) -> float:
    setting = mapping.score
    raw = _number(find(setting.path, value, *sides), f"the score at {setting.path!r}")
    if not setting.minimum <= raw <= setting.maximum:
        raise Fault("score out of range", f"{raw} does not lie in [{setting.minimum}, {setting.maximum}]")
    return (raw - setting.minimum) / (setting.maximum - setting.minimum)


def _metrics(value: dict[str, Any], mapping: Mapping, sides: tuple[str, str]) -> dict[str, float]:
    found = {name: find(path, value, *sides) for name, path in mapping.metrics.items()}
    return {name: _number(metric, f"the metric {name!r}") for name, metric in found.items() if metric not in (None, "")}


def _split(value: dict[str, Any], mapping: Mapping, context_id: str, sides: tuple[str, str]) -> str:
    if mapping.split is None:
        return "test" if held_out(context_id, mapping.held_out) else "train"
    found = find(mapping.split, value, *sides)
    if found not in ("train", "test"):
        raise Fault("unknown split", f"{found!r} at {mapping.split!r}; it has to be train or test")
    return found


def _identity(value: dict[str, Any], path: str | None, sides: tuple[str, str]) -> str:
    if path is None:
        return _digest(value)
    found = find(path, value, *sides)
    if found is None or found == "" or isinstance(found, dict | list):
        raise Fault("no id", f"nothing that identifies it at {path!r}")
    return _clean(str(found))


def _number(found: Any, what: str) -> float:
    try:
        number = float(found)
    except (TypeError, ValueError):
        raise Fault("not a number", f"{what} is {found!r}") from None
    if not math.isfinite(number):
        raise Fault("not a number", f"{what} is {number}")
    return number


def _clean(text: str) -> str:
    """Valid Unicode: surrogate pairs are joined, lone surrogates replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _plain(value: Any) -> Any:
    """A JSON value; what JSON has no type for (times, decimals, bytes) as its text."""
    return json.loads(_json(value))


def _json(value: Any) -> str:
    return _clean(json.dumps(value, sort_keys=True, default=str, ensure_ascii=False))


def _digest(value: Any) -> str:
    return hashlib.blake2b(_json(value).encode(), digest_size=12).hexdigest()


def _reject(report: Imported, rejected: list[dict[str, Any]], place: str, value: Any, error: DataError) -> None:
    cause = error.cause if isinstance(error, Fault) else "not a valid conversation"
    report.causes[cause] += 1
    report.sentences.append(f"{place}: {error}")
    rejected.append({"place": place, "cause": str(error), "record": value})


def _flush(batch: list[Conversation], journal: Journal, report: Imported) -> None:
    if batch:
        journal.append(to_table(batch))
        report.added += len(batch)
        batch.clear()


def _write_quarantine(rejected: list[dict[str, Any]], journal: Journal, report: Imported) -> None:
    if rejected:
        name = f"_quarantine-{uuid.uuid4().hex[:8]}.jsonl"
        journal.folder.put(name, "".join(f"{_json(row)}\n" for row in rejected).encode())
        report.quarantine = journal.folder.at(name)
