"""Speakers of a record: the side of each value of a message's role."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mtrl_ray.replay.mapping import Mapping, Roles, Side
from mtrl_ray.replay.paths import Fault, find, nothing


@dataclass(frozen=True)
class Speakers:
    """`owners`: the side of each role value; `others`: the side of all other values (None: they are unknown).

    `agent`, `user`: the names of the two sides, which stand for `{agent}` and `{user}` in paths.
    """

    owners: dict[str, Side]
    others: Side | None
    agent: str
    user: str

    def side(self, role: Any) -> Side | None:
        """The side that a message belongs to; None for a value that no side claims."""
        return self.owners.get(str(role), self.others)

    def swapped(self) -> "Speakers":
        """The same dialogue from the other side."""
        turned: dict[Side, Side] = {"agent": "user", "user": "agent"}
        owners = {value: turned.get(side, side) for value, side in self.owners.items()}
        others = None if self.others is None else turned.get(self.others, self.others)
        return Speakers(owners, others, self.user, self.agent)


def speakers(value: dict[str, Any], mapping: Mapping, messages: Sequence[Any]) -> Speakers:
    """The speakers of a record and its messages. Raises Fault if a path finds nobody, or a value belongs to two sides."""
    roles = mapping.roles
    owners = _fixed(roles)
    for side, path in roles.paths.items():
        found = find(path, value)
        named = [entry for entry in (found if isinstance(found, list) else [found]) if entry not in (None, "")]
        if not named:
            raise nothing(f"roles.paths.{side}", path)
        for entry in named:
            _claim(owners, str(entry), side)
    if not roles.vary:
        return Speakers(owners, None, roles.agent[0], roles.user[0])
    spoken = [str(role) for message in messages if (role := find(mapping.message.role, message)) is not None]
    if roles.first is not None:
        first = next((role for role in spoken if owners.get(role) not in ("system", "ignore")), None)
        if first is not None:
            _claim(owners, first, roles.first)
    names = {side: _name(side, owners, roles, spoken) for side in ("agent", "user")}
    return Speakers(owners, roles.others, names["agent"], names["user"])


def _fixed(roles: Roles) -> dict[str, Side]:
    sides: tuple[Side, ...] = ("agent", "user", "system", "ignore")
    return {value: side for side in sides for value in getattr(roles, side)}


def _claim(owners: dict[str, Side], role: str, side: Side) -> None:
    if owners.setdefault(role, side) != side:
        raise Fault("a sender on two sides", f"{role!r} is {owners[role]} and {side}")


def _name(side: str, owners: dict[str, Side], roles: Roles, spoken: Sequence[str]) -> str:
    """The first value of the side that speaks, or else any that it has."""
    speaking = (role for role in spoken if owners.get(role, roles.others) == side)
    return next(speaking, next((role for role, owner in owners.items() if owner == side), side))
