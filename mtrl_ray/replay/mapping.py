"""How to read a log of another system: the mapping file of `mtrl import`.

A mapping is YAML. A JMESPath expression (jmespath.org) says where something lies in a record; `{agent}` and `{user}` in it
stand for the role values of the two sides, so that one mapping reads a dialogue from either side. The system message, and
messages whose whole text is a key of `actions`, are templates: `{name}` is replaced by what the path `fields.name` finds. Who
speaks is a fixed value of the message's `role`, or differs from record to record (`Roles`).

A misspelt key, a wrong type or a path that cannot be parsed is one sentence that names it, before any row is read.
"""

from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.replay.paths import PLACE, compiled, placed

Format = Literal["auto", "json", "jsonl", "parquet", "csv"]
Side = Literal["agent", "user", "system", "ignore"]


class Part(BaseModel):
    """A part of a mapping: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Roles(Part):
    """Values of a message's `role` for each side. Messages of a role in `ignore` are left out.

    For values that differ from record to record: `paths` says where in the record a side's value, or list of values, is;
    `first` whose the first message is; `others` the side that has all values that nothing else claims.
    """

    agent: tuple[str, ...] = ("assistant", "agent")
    user: tuple[str, ...] = ("user", "customer")
    system: tuple[str, ...] = ("system",)
    ignore: tuple[str, ...] = ()
    paths: dict[Side, str] = Field(default_factory=dict)
    first: Literal["agent", "user"] | None = None
    others: Side | None = None

    @property
    def vary(self) -> bool:
        """Whether they differ from record to record."""
        return bool(self.paths or self.first or self.others)


class Message(Part):
    """Paths inside one message.

    `reward` is a number that arrived with the message (on a user's message it belongs to the agent's turn before);
    `sent` is what reached the user in place of an agent's suggestion. `actions` maps a message's exact text to the text
    it shall have, with `fields` for its placeholders.
    """

    role: str = "role"
    text: str = "content"
    reward: str | None = None
    sent: str | None = None
    actions: dict[str, str] = Field(default_factory=dict)
    fields: dict[str, str] = Field(default_factory=dict)


class Score(Part):
    """The outcome: the number at `path`, with `minimum` read as 0 and `maximum` as 1. A text alone is the path.

    `clip`: numbers outside are moved to the nearer end; otherwise their records are quarantined.
    """

    path: str = "score"
    minimum: float = 0.0
    maximum: float = 1.0
    clip: bool = False

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, given: Any) -> Any:
        return {"path": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _ordered(self) -> "Score":
        if not self.minimum < self.maximum:
            raise ValueError(f"minimum ({self.minimum}) has to be less than maximum ({self.maximum})")
        return self


class Join(Part):
    """A second file: its record whose `key` equals what `equals` finds in a record of the log is put into that record.

    `file`: a path or URI, relative to the log's folder. `key`, `equals`: paths.
    """

    file: str
    key: str
    equals: str
    format: Format = "auto"
    records: str | None = None


class Mapping(Part):
    """How records become conversations. Paths are relative to a record.

    `records`: where the list of records is in a JSON document (None: the document is the list). `group`: the column
    that names the conversation, for logs with one row per message; such a record has the first non-empty value of each
    column and all rows under `messages`, sorted by the column `order` if given. `participants: both` reads each
    dialogue twice, once from either side. `join`: files whose records are put into the log's, by the name they have there.
    `source`: what several contexts have in common (a customer): they are no independent evidence, and of one split.
    `split`: a path; without it, a share `held_out` of the sources (of the contexts) is "test".
    """

    environment: str = Field(min_length=1)
    format: Format = "auto"
    records: str | None = None
    join: dict[str, Join] = Field(default_factory=dict)
    group: str | None = None
    order: str | None = None
    id: str | None = None
    context_id: str | None = None
    source: str | None = None
    messages: str = "messages"
    message: Message = Message()
    roles: Roles = Roles()
    participants: Literal["one", "both"] = "one"
    system: str | None = None
    fields: dict[str, str] = Field(default_factory=dict)
    score: Score = Score()
    metrics: dict[str, str] = Field(default_factory=dict)
    context: dict[str, str] = Field(default_factory=dict)
    split: str | None = None
    held_out: float = Field(default=0.1, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _consistent(self) -> "Mapping":
        claimed = [*self.roles.agent, *self.roles.user, *self.roles.system, *self.roles.ignore]
        twice = sorted({value for value in claimed if claimed.count(value) > 1})
        if twice:
            raise ValueError(f"roles names {twice} more than once; a role value belongs to one side")
        if not self.roles.vary and not (self.roles.agent and self.roles.user):
            raise ValueError("roles needs at least one value for agent and one for user")
        for name, path in self.paths().items():
            compiled(name, placed(path, "agent", "user"))
        _check_template("system", self.system or "", self.fields)
        for text, template in self.message.actions.items():
            _check_template(f"message.actions.{text}", template, self.message.fields)
        return self

    def paths(self) -> dict[str, str]:
        """Every path of the mapping, by its key."""
        single = {name: getattr(self, name) for name in ("records", "id", "context_id", "source", "messages", "split")}
        single |= {f"message.{name}": getattr(self.message, name) for name in ("role", "text", "reward", "sent")}
        single["score.path"] = self.score.path
        many = {"fields": self.fields, "metrics": self.metrics, "context": self.context}
        many |= {
            "message.fields": self.message.fields,
            "roles.paths": {str(side): path for side, path in self.roles.paths.items()},
        }
        for name, join in self.join.items():
            many[f"join.{name}"] = {"key": join.key, "equals": join.equals}
            many[f"join.{name}"] |= {} if join.records is None else {"records": join.records}
        found = {name: path for name, path in single.items() if path is not None}
        return found | {f"{group}.{name}": path for group, paths in many.items() for name, path in paths.items()}


def load_mapping(source: str | Path) -> Mapping:
    """A mapping file, or one that comes with the project by its name (`bundled_mappings`).

    Raises ConfigurationError naming the file, the key, what was given and what would work.
    """
    bundled = resources.files("mtrl_ray.replay") / "mappings" / f"{source}.yaml"
    try:
        text = bundled.read_text() if str(source) in bundled_mappings() else Path(source).read_text(encoding="utf-8")
        settings = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        cause = " ".join(str(error).split())
        raise ConfigurationError(
            f"the mapping {str(source)!r} cannot be read: {cause}; give a YAML file or one of {bundled_mappings()}"
        ) from error
    if not isinstance(settings, dict):
        raise ConfigurationError(f"the mapping {str(source)!r} has to be a YAML mapping of keys to values")
    try:
        return Mapping.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "string_type" and not isinstance(first["input"], dict | list):
            message += f"; quote it ('{first['input']}') to have YAML read it as text"
        where = f"{key} (given: {first['input']!r})" if key else "the mapping"
        raise ConfigurationError(f"the mapping {str(source)!r}: {where}: {message}") from error


def bundled_mappings() -> list[str]:
    """Names of the mappings that come with the project."""
    folder = resources.files("mtrl_ray.replay") / "mappings"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def _check_template(name: str, template: str, fields: dict[str, str]) -> None:
    unknown = sorted(set(PLACE.findall(template)) - set(fields))
    if unknown:
        raise ValueError(f"{name} has the placeholders {unknown}, which are not among its fields {sorted(fields)}")
