"""A section of settings, and a failed validation as one sentence."""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from mtrl_ray.errors import ConfigurationError


class Section(BaseModel):
    """A node of the tree: unknown keys are refused, values are fixed once validated.

    A subclass may give inherited settings other defaults: `class PRMFit(Fit, minibatch_conversations=32)`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    def __init_subclass__(cls, **defaults: Any) -> None:
        super().__init_subclass__()

    @classmethod
    def __pydantic_init_subclass__(cls, **defaults: Any) -> None:
        for name, value in defaults.items():
            cls.model_fields[name].default = value
        if defaults:
            cls.model_rebuild(force=True)


def validated(section: type[Section], tree: dict[str, Any], where: str) -> Any:
    """A section from a plain tree, its errors as one sentence that begins with `where`."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise ConfigurationError(f"{where}.{sentence(error, section)}") from None


def sentence(error: ValidationError, section: type[BaseModel]) -> str:
    """The first of a validation's errors as one sentence that names key, value and what would work."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"] if not str(part).startswith(("<", "[key]"))]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        known = _keys(section, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"{key} is not a setting; {hint}"
    if first["type"] == "missing":
        return f"{key} is missing"
    message = first["msg"].removeprefix("Value error, ")
    if not location:
        return message
    return f"{key} is {first['input']!r}: {message[0].lower()}{message[1:]}"


def _keys(section: type[BaseModel], path: Sequence[str]) -> list[str]:
    for name in path:
        field = section.model_fields.get(name)
        if field is None:
            return []
        candidates = [field.annotation, *get_args(field.annotation)]
        plain = [get_args(c)[0] if get_origin(c) is Annotated else c for c in candidates]
        nested = [c for c in plain if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            return []
        section = nested[0]
    return list(section.model_fields)
