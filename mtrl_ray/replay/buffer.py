"""The replay buffer: recent conversations in the object store, found by id, iteration, weight version and outcome.

The journal is the truth, the object store a cache. `append` first writes new conversations into the journal, then puts them
into the object store. What is lost there is read from the journal again, and what only the journal has is read when it is
needed. A new buffer begins with what the journal holds.

- A conversation counts once, by id, whether it is still in memory or not. Rows that are not valid conversations are refused
  with a sentence and never enter a batch.
- Memory is bounded by conversations, bytes, and staleness (versions behind the latest that `advance` told). The oldest by
  (iteration, id) goes first, whatever the order of arrival. What is dropped is counted by cause; the journal keeps it.
- Every answer is in the order (iteration, id), or drawn from it under a seed: the same conversations give the same answer in
  whatever order they arrived.
- It is a plain class; `ray.remote(ReplayBuffer)` makes the actor. Tables go in as refs inside a list and come out as return
  values, so the driver passes them on without reading them.

Every call may be repeated. So an actor that has a folder for notes (`replay.lines`: the calls since the last `state`, and what
the journal's files hold) may be lost: Ray restarts it and repeats the calls that were under way (`max_restarts`,
`max_task_retries`), and the callers do not notice. The new actor counts all that the journal has of an iteration if the lost
one counted any of it, so `recall` an iteration before the first `append` to it. Counts of duplicates and refusals since the
last `state` are lost.
"""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.replay.catalogue import Catalogue
from mtrl_ray.replay.columns import agent_turn, histories
from mtrl_ray.replay.intake import receive
from mtrl_ray.replay.journal import Journal
from mtrl_ray.replay.lines import Lines
from mtrl_ray.replay.memory import Memory

LOG = logging.getLogger(__name__)

CAUSES = ("conversations", "bytes", "staleness")
"""Bounds by which conversations fall out of memory."""
MAX_CONVERSATIONS = 100_000
"""In memory. Of long conversations the bound on bytes lets fewer in."""
CALLS, HELD = "calls.jsonl", "catalogue.jsonl"
"""In the folder of notes."""
STATES = pa.schema(
    [pa.field("conversation_id", pa.string()), pa.field("turn", pa.int32()), pa.field("tokens", pa.list_(pa.int32()))]
)
"""Logged states: `tokens` is the history before turn `turn` (an index into the conversation's turns, an agent's)."""


@dataclass(frozen=True)
class Appended:
    """The result of an `append`.

    `added` and `duplicates` count conversations; `refused` has a sentence per invalid one; `lost` gives the cause for
    each position in `refs` whose table could not be fetched: nothing of it was kept, its lease has to be issued again.
    """

    added: int
    duplicates: int
    refused: tuple[str, ...] = ()
    lost: dict[int, str] = field(default_factory=dict)


class ReplayBuffer:
    """See the module's docstring. Every table of conversations it returns has the columns of `SCHEMA`."""

    _version: int

    def __init__(
        self,
        journal: str | os.PathLike[str],
        *,
        max_conversations: int = MAX_CONVERSATIONS,
        max_bytes: int = 2**30,
        max_staleness: int | None = None,
        fetch_seconds: float = 60.0,
        notes: str | os.PathLike[str] | None = None,
    ) -> None:
        """Start with the newest conversations of `journal` (path or URI) that the bounds allow.

        `max_staleness`: weight versions behind the latest (None: any); conversations without versions (imported ones)
        are never stale. `fetch_seconds`: how long to wait for a table of the object store. `notes`: a folder; if a buffer
        that was lost left its calls there, this one begins as that one was.
        """
        _check_bounds(max_conversations=max_conversations, max_bytes=max_bytes, max_staleness=max_staleness)
        self._journal = Journal(journal)
        self._max_conversations, self._max_bytes, self._max_staleness = max_conversations, max_bytes, max_staleness
        self._fetch_seconds = fetch_seconds
        self._log, self._events = Lines(None), Counter[str]()  # what is done again is not noted again
        log, held = (Lines(None if notes is None else Path(notes) / name) for name in (CALLS, HELD))
        earlier = log.read()
        if not earlier:
            held.begin()
        self._catalogue = Catalogue(self._journal, held)
        for name, arguments in earlier or [("rebuild", [])]:
            getattr(self, name)(*arguments)
        self._events["restarts"] += bool(earlier)
        self._log = log
        self.state()

    def append(self, refs: Sequence[ray.ObjectRef]) -> Appended:
        """Take the conversations of these tables. Safe to repeat.

        Raises EngineError if the journal cannot keep them; then none of them was taken.
        """
        received = receive(refs, self._fetch_seconds)
        ids = received.table["id"].to_pylist()
        first = {name: row for row, name in reversed(list(enumerate(ids))) if name not in self._counted}
        for iteration in sorted(set(received.table["iteration"].to_pylist()) - self._recalled):
            self._log.add("recall", iteration)
            self._recalled.add(iteration)
        self._admit(received.table.take(pa.array(sorted(first.values()), pa.int64())))
        appended = Appended(len(first), len(ids) - len(first), tuple(received.refused), received.lost)
        self._events.update(duplicates=appended.duplicates, refused=len(appended.refused), lost=len(appended.lost))
        for sentence in (*appended.refused, *(f"table {position}: {why}" for position, why in appended.lost.items())):
            LOG.warning("not taken into the replay buffer: %s", sentence)
        return appended

    def window(self, iterations: int) -> pa.Table:
        """All conversations in memory of the newest `iterations` iterations."""
        index = self._memory.index
        return self._memory.gather(index.filter(_recent(index, iterations)))

    def earlier(self, iterations: int) -> pa.Table | None:
        """What `window` would return, without the newest iteration; None if there is nothing."""
        index = self._memory.index
        index = index.filter(pc.and_(_recent(index, iterations), pc.invert(_recent(index, 1))))
        return self._memory.gather(index) if index.num_rows else None

    def take(self, ids: Sequence[str]) -> pa.Table:
        """The conversations with these ids, in their order, from memory or else from the journal.

        Raises DataError naming ids that neither has.
        """
        wanted = pa.array(list(ids), pa.string())
        index = self._memory.index
        held = self._memory.gather(index.filter(pc.is_in(index["id"], wanted)))
        absent = [name for name in ids if name not in self._memory.ids]
        if absent:
            held = pa.concat_tables([held, self._catalogue.rows(absent)]).combine_chunks()
        rows = pc.index_in(wanted, held["id"].combine_chunks())
        if rows.null_count:
            unknown = wanted.filter(pc.is_null(rows)).to_pylist()
            raise DataError(f"{len(unknown)} of the conversations asked for were never kept, {unknown[0]!r} first")
        return held.take(rows)

    def states(
        self, n: int | None, seed: int, ids: Sequence[str] | None = None, iterations: int | None = None
    ) -> pa.Table:
        """`n` logged states (None: all), uniform over the agent turns without replacement; rows of `STATES`.

        Of the conversations with these `ids`, or of the newest `iterations` iterations, or of all in memory. Raises
        DataError if there are fewer than `n`, or if a conversation has no token ids yet.
        """
        index = self._memory.index
        if iterations is not None:
            index = index.filter(_recent(index, iterations))
        if ids is not None:
            index = index.filter(pc.is_in(index["id"], pa.array(list(ids), pa.string())))
        ends = np.cumsum(index["turns"].to_numpy(), dtype=np.int64)
        total = int(ends[-1]) if len(ends) else 0
        if n is not None and n > total:
            raise DataError(f"{n} logged states were asked of {index.num_rows} conversations, which have {total}")
        picks = np.random.default_rng(seed).choice(total, total if n is None else n, replace=False)
        return self._states(index, ends, picks)

    def advance(self, version: int) -> int:
        """Tell the latest weight version; returns how many conversations became too stale and were dropped."""
        self._version = max(self._version, version)
        before = len(self._memory.ids)
        self._bound()
        self._log.add("advance", version)
        return before - len(self._memory.ids)

    def ids(self, iteration: int) -> list[str]:
        """Ids of the conversations counted in one iteration, those no longer in memory included."""
        return sorted(name for name in self._catalogue.of(iteration) if name in self._counted)

    def outcomes(self, iteration: int) -> dict[str, list[Any]]:
        """Of one iteration's conversations in memory, by id, each [conversations].

        `id`, `score`, `agent_turns`, `agent_tokens`, and `source`: conversations of one source are not independent.
        `counted`: the ids of all that were counted (`ids`).
        """
        index = self._memory.index
        index = index.filter(pc.equal(index["iteration"], iteration))
        columns = {"id": "id", "score": "score", "agent_turns": "turns"}
        columns |= {"agent_tokens": "agent_tokens", "source": "source"}
        held = {name: index[column].to_pylist() for name, column in columns.items()}
        return {"counted": self.ids(iteration), **held}

    def recall(self, iteration: int) -> list[str]:
        """Count conversations of one iteration that the journal got after the checkpoint `rebuild` went back to.

        Returns the iteration's `ids`, which need not be rolled out again.
        """
        fresh = [name for name in self._catalogue.of(iteration) if name not in self._counted]
        self._hold(fresh)
        self._bound()
        self._log.add("recall", iteration)
        self._recalled.add(iteration)
        return self.ids(iteration)

    def problems(self) -> list[str]:
        """One message per unreadable file of the journal."""
        return self._journal.problems

    def statistics(self) -> dict[str, float]:
        """What is held (counts, bytes, staleness in versions), and what was dropped, doubled, refused, lost, restored.

        `journaled` counts conversations the journal has, `journal_problems` the files of it that could not be read,
        `restarts` how often the buffer was made again after its calls.
        """
        index = self._memory.index
        staleness = np.maximum(self._version - index["version"].drop_null().to_numpy(), 0)
        return {
            "conversations": index.num_rows,
            "agent_turns": int(index["turns"].to_numpy().sum()),
            "tokens": int(index["tokens"].to_numpy().sum()),
            "bytes": self._memory.bytes,
            "objects": self._memory.objects,
            "version": self._version,
            "staleness_mean": float(staleness.mean()) if len(staleness) else 0.0,
            "staleness_max": int(staleness.max()) if len(staleness) else 0,
            **{f"dropped_{cause}": self._dropped[cause] for cause in CAUSES},
            **{name: self._events[name] for name in ("duplicates", "refused", "lost", "restarts")},
            "restored": self._memory.restored,
            "journaled": len(self._catalogue.ids),
            "journal_problems": len(self._journal.problems),
        }

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps (JSON values), for `rebuild`."""
        state = {
            "ids": self._memory.index["id"].to_pylist(),
            "position": self._catalogue.position,
            "uncounted": sorted(self._catalogue.ids.keys() - self._counted),
            "version": self._version,
            "dropped": dict(self._dropped),
            "events": dict(self._events),
        }
        self._begin_log(state)
        return state

    def rebuild(self, state: dict[str, Any] | None = None) -> int:
        """Fill the memory from the journal; returns how many conversations it then holds.

        Without a `state`, the newest that the bounds allow. With a checkpoint's, exactly what was held at that moment:
        what the journal got since is not counted, and when `append` brings it again it is not written twice.
        """
        known = state or {}
        self._catalogue.refresh()
        self._memory = Memory(self._catalogue.rows, self._fetch_seconds)
        self._version = known.get("version", 0)
        self._dropped: Counter[str] = Counter(known.get("dropped", {}))
        restarts = self._events["restarts"]  # they are no part of what is gone back to
        self._events = Counter(known.get("events", {}))
        self._events["restarts"] = max(self._events["restarts"], restarts)
        self._counted = self._catalogue.until(known.get("position")) - set(known.get("uncounted", ()))
        if state is None:
            self._memory.hold(self._catalogue.entries())
            self._version = max(self._version, pc.max(self._memory.index["version"]).as_py() or 0)
            self._bound(count=False)
        else:
            self._hold(state["ids"])
        self._begin_log(state)
        return len(self._memory.ids)

    def _begin_log(self, state: dict[str, Any] | None) -> None:
        self._recalled: set[int] = set()  # iterations, since the log was begun
        self._log.begin(("rebuild", state))

    def _hold(self, ids: list[str]) -> None:
        """Count and hold conversations that the journal has."""
        missing = sum(name not in self._catalogue.ids for name in set(ids))
        if missing:
            aside = self._journal.set_aside
            way = f"put back whole copies of what was set aside there ({', '.join(aside)})" if aside else ""
            raise DataError(
                f"the replay buffer's checkpoint names {missing} conversations that the journal "
                f"{self._journal.folder.uri} does not have; {way or 'give the run its own journal'}, or start a new run"
            )
        if ids:
            self._memory.hold(self._catalogue.entries(ids))
        self._counted.update(ids)

    def _admit(self, table: pa.Table) -> None:
        """Journal and hold conversations not counted so far; what the journal has already is taken from there."""
        if table.num_rows == 0:
            return
        ids = table["id"].to_pylist()
        known = [name for name in ids if name in self._catalogue.ids]
        new = table.filter(pa.array([name not in self._catalogue.ids for name in ids], pa.bool_()))
        if new.num_rows:
            self._catalogue.append(new)
        self._hold(known)
        self._memory.add(new)
        self._counted.update(ids)
        self._bound()

    def _states(self, index: pa.Table, ends: np.ndarray, picks: np.ndarray) -> pa.Table:
        owner = np.searchsorted(ends, picks, side="right")
        nth = picks - np.concatenate([[0], ends])[owner]
        chosen, row = np.unique(owner, return_inverse=True)
        table = self._memory.gather(index.take(pa.array(chosen)))
        turn = agent_turn(table, row, nth)
        tokens = histories(table, row, turn)
        ids = table["id"].combine_chunks().take(pa.array(row))
        without = ids.filter(pc.equal(pc.list_value_length(tokens), 0))
        if len(without):
            raise DataError(
                f"{len(without)} logged states have no token ids, conversation {without[0].as_py()!r} first; encode "
                "imported conversations with the policy's tokenizer before they serve as states"
            )
        return pa.table([ids, pa.array(turn, pa.int32()), tokens], schema=STATES)

    def _bound(self, count: bool = True) -> None:
        """Drop what the bounds do not allow, oldest first, and count it by cause."""
        if self._max_staleness is not None:
            stale = pc.less(self._memory.index["version"], self._version - self._max_staleness)
            self._drop(pc.fill_null(stale, False).to_numpy(), "staleness", count)
        excess = len(self._memory.ids) - self._max_conversations
        if excess > 0:
            self._drop(np.arange(len(self._memory.ids)) < excess, "conversations", count)
        while self._memory.bytes > self._max_bytes:
            kept_bytes = np.cumsum(self._memory.conversation_bytes()[::-1])[::-1]
            over = kept_bytes > self._max_bytes
            over[0] = True
            self._drop(over, "bytes", count)

    def _drop(self, marked: np.ndarray, cause: str, count: bool) -> None:
        if not marked.any():
            return
        gone = self._memory.keep(~marked)
        if count:
            self._dropped[cause] += gone.num_rows


def _recent(index: pa.Table, iterations: int) -> pa.ChunkedArray:
    newest = pc.max(index["iteration"]).as_py() or 0
    return pc.greater(index["iteration"], newest - iterations)


def _check_bounds(**bounds: int | None) -> None:
    for name, value in bounds.items():
        least = 0 if name == "max_staleness" else 1
        if value is not None and value < least:
            raise ConfigurationError(f"the replay buffer's {name} is {value}; it has to be at least {least}")
