"""Locations in a record: JMESPath expressions, templates, and why a record is no conversation.

`{agent}` and `{user}` in a path stand for the names of the two sides. What a path does not find, or does not fit, is a
`Fault` whose cause names the path, so that like faults are counted together.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import jmespath  # type: ignore[import-untyped]
from jmespath.exceptions import JMESPathError  # type: ignore[import-untyped]

from mtrl_ray.errors import DataError

PLACE = re.compile(r"\{(\w+)\}")


class Fault(DataError):
    """Why a record is not a conversation: `cause` groups like faults, the message has the particulars."""

    def __init__(self, cause: str, particulars: str = "") -> None:
        self.cause = cause
        super().__init__(f"{cause}: {particulars}" if particulars else cause)


def find(path: str, value: Any, agent: str = "", user: str = "") -> Any:
    """What a path finds in a record or message, None if nothing. Raises Fault if the path does not fit it."""
    try:
        return compiled("", placed(path, agent, user)).search(value)
    except JMESPathError as error:
        raise Fault(f"the path {path!r} does not fit", " ".join(str(error).split())) from error


def nothing(key: str, path: str, particulars: str = "") -> Fault:
    """The fault of a path, the mapping's `key`, that finds nothing."""
    return Fault(f"the path {path!r} ({key}) finds nothing", particulars)


def fill(template: str, fields: Mapping[str, str], value: Any, agent: str = "", user: str = "") -> str:
    """A template with its placeholders replaced. Raises Fault naming a placeholder whose path finds nothing."""

    def replaced(match: re.Match[str]) -> str:
        path = fields[match[1]]
        found = find(path, value, agent, user)
        if found is None:
            raise nothing("fields", path, f"the placeholder {match[0]} needs it")
        return found if isinstance(found, str) else json.dumps(found, default=str)

    return PLACE.sub(replaced, template)


def placed(path: str, agent: str, user: str) -> str:
    """The path with the names of the sides in it."""
    return path.replace("{agent}", json.dumps(agent)).replace("{user}", json.dumps(user))


@cache
def compiled(name: str, path: str) -> Any:
    """The parsed expression. Raises ValueError, which calls it `name`, if it is no JMESPath."""
    try:
        return jmespath.compile(path)
    except JMESPathError as error:
        raise ValueError(f"{name}: {path!r} is not a JMESPath: {' '.join(str(error).split())}") from error
