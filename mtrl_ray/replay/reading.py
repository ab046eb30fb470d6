"""One record of a log, read as a conversation by a mapping.

- It is text only: no token ids, no log-probabilities, `StopReason.LOGGED`. Consecutive messages of one side become one turn.
- Without rewards per message, the score is the reward of the last agent turn, as an outcome's reward always is.
- A system message stands before all others. Chat templates have no place for it anywhere else, so there it is a fault.
- Text that is not Unicode (lone surrogates) is replaced by U+FFFD; everything else a user wrote stays as it was.
- Whatever keeps a record from being a conversation that can be learned from is a `Fault`.
"""

import hashlib
import json
from typing import Any

import numpy as np

from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, validate
from mtrl_ray.replay.mapping import Mapping
from mtrl_ray.replay.paths import Fault, fill, find, nothing
from mtrl_ray.replay.speakers import Speakers, speakers
from mtrl_ray.replay.split import held_out

LARGEST = float(np.finfo(np.float32).max)
"""Rewards are kept as float32."""


def read_conversation(value: dict[str, Any], mapping: Mapping, swapped: bool = False) -> Conversation:
    """One record as a conversation; `swapped`: with the user's side as the agent. Raises Fault."""
    messages = _messages(value, mapping, swapped)
    here = speakers(value, mapping, messages)
    here = here.swapped() if swapped else here
    turns = _turns(value, messages, mapping, here)
    score = _score(value, mapping, here)
    if mapping.message.reward is None:
        next(turn for turn in reversed(turns) if turn.role == Role.AGENT).reward = score
    identity = digest(value) if mapping.id is None else _identity("id", mapping.id, value, here)
    named = {key: path for key in ("context_id", "source") if (path := getattr(mapping, key)) is not None}
    names = {key: _identity(key, path, value, here) for key, path in named.items()}
    context_id, source = names.get("context_id", identity), names.get("source")
    conversation = Conversation(
        id=f"{mapping.environment}/{identity}" + (f"/{_clean(here.agent)}" if mapping.participants == "both" else ""),
        environment=mapping.environment,
        split=_split(value, mapping, source or context_id, here),
        context_id=context_id,
        turns=turns,
        score=score,
        stop=StopReason.LOGGED,
        metrics=_metrics(value, mapping, here),
        context={name: _plain(_found(path, value, here)) for name, path in mapping.context.items()},
        sample=int(swapped),
        source=source,
    )
    validate(conversation)
    return conversation


def _messages(value: dict[str, Any], mapping: Mapping, swapped: bool) -> list[Any]:
    names = [side[0] if side else "" for side in (mapping.roles.agent, mapping.roles.user)]
    messages = find(mapping.messages, value, *(reversed(names) if swapped else names))
    if messages is None:
        raise nothing("messages", mapping.messages)
    if not isinstance(messages, list) or not messages:
        raise Fault("no messages", f"at {mapping.messages!r} is {type(messages).__name__}, not a list with messages")
    return messages


def _turns(value: dict[str, Any], messages: list[Any], mapping: Mapping, here: Speakers) -> list[Turn]:
    turns: list[Turn] = []
    if mapping.system is not None:
        system = fill(mapping.system, mapping.fields, value, here.agent, here.user)
        turns.append(Turn(Role.SYSTEM, _clean(system)))
    for number, message in enumerate(messages):
        role = find(mapping.message.role, message)
        if role is None:
            raise nothing("message.role", mapping.message.role, f"message {number}")
        side = here.side(role)
        if side is None:
            raise Fault("unknown role", f"message {number} has {role!r}, the mapping knows {sorted(here.owners)}")
        if side == "ignore":
            continue
        if side == "system" and any(turn.role != Role.SYSTEM for turn in turns):
            raise Fault(
                "a system message after the first turn",
                f"message {number}; list its role under roles.ignore to leave such messages out, or under roles.user",
            )
        _add(turns, _turn(Role(side), message, number, mapping), number, _reward(message, number, mapping))
    if not any(turn.role == Role.AGENT for turn in turns):
        agents = sorted(value for value, side in here.owners.items() if side == "agent")
        raise Fault("no agent turn", f"none of the messages has a role in {agents}")
    return turns


def _turn(role: Role, message: Any, number: int, mapping: Mapping) -> Turn:
    text = find(mapping.message.text, message)
    if text is None:
        raise nothing("message.text", mapping.message.text, f"message {number}")
    if isinstance(text, dict | list):
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
        agent.reward = _number(agent.reward + reward, f"the reward up to message {number}")


def _reward(message: Any, number: int, mapping: Mapping) -> float:
    found = find(mapping.message.reward, message) if mapping.message.reward else None
    return 0.0 if found is None or found == "" else _number(found, f"the reward of message {number}")


def _score(value: dict[str, Any], mapping: Mapping, here: Speakers) -> float:
    setting = mapping.score
    found = _found(setting.path, value, here)
    if found is None:
        raise nothing("score.path", setting.path)
    raw = _number(found, f"the score at {setting.path!r}")
    if setting.clip:
        raw = min(max(raw, setting.minimum), setting.maximum)
    if not setting.minimum <= raw <= setting.maximum:
        raise Fault("score out of range", f"{raw} does not lie in [{setting.minimum}, {setting.maximum}]")
    return (raw - setting.minimum) / (setting.maximum - setting.minimum)


def _metrics(value: dict[str, Any], mapping: Mapping, here: Speakers) -> dict[str, float]:
    found = {name: _found(path, value, here) for name, path in mapping.metrics.items()}
    return {name: _number(metric, f"the metric {name!r}") for name, metric in found.items() if metric not in (None, "")}


def _split(value: dict[str, Any], mapping: Mapping, name: str, here: Speakers) -> str:
    if mapping.split is None:
        return "test" if held_out(name, mapping.held_out) else "train"
    found = _found(mapping.split, value, here)
    if found is None:
        raise nothing("split", mapping.split)
    if found not in ("train", "test"):
        raise Fault("unknown split", f"{found!r} at {mapping.split!r}; it has to be train or test")
    return str(found)


def _identity(key: str, path: str, value: dict[str, Any], here: Speakers) -> str:
    found = _found(path, value, here)
    if found is None or found == "":
        raise nothing(key, path)
    if isinstance(found, dict | list):
        raise Fault("no id", f"{type(found).__name__} at {path!r} ({key}) identifies nothing")
    return _clean(str(found))


def _found(path: str, value: dict[str, Any], here: Speakers) -> Any:
    return find(path, value, here.agent, here.user)


def _number(found: Any, what: str) -> float:
    try:
        number = float(found)
    except (TypeError, ValueError, OverflowError):
        raise Fault("not a number", f"{what} is {str(found)[:80]!r}") from None
    if not abs(number) <= LARGEST:
        raise Fault("not a number", f"{what} is {number}; it has to be finite, and not beyond {LARGEST:.2g}")
    return number


def _clean(text: str) -> str:
    """Valid Unicode: surrogate pairs are joined, lone surrogates replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _plain(value: Any) -> Any:
    """A JSON value; what JSON has no type for (times, decimals, bytes) as its text."""
    return json.loads(as_json(value))


def as_json(value: Any) -> str:
    """As JSON with sorted keys; what JSON has no type for as its text."""
    return _clean(json.dumps(value, sort_keys=True, default=str, ensure_ascii=False))


def digest(value: Any) -> str:
    """A hash of a record's content."""
    return hashlib.blake2b(as_json(value).encode(), digest_size=12).hexdigest()
