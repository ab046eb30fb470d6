"""Secrets are no settings: settings are written into the run's folder, into reports and into a job's files.

1. A setting whose name says that it is a secret (`api_key`, `password`, …) is refused; `api_key_env`, the name of an
   environment variable, is the way to give one.
2. So is a setting that contains what an environment variable with such a name holds.
3. So is a URI with a password in it, as `s3://key:secret@bucket`.
4. The refusal names the setting and repeats nothing of it.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

from mtrl_ray.errors import ConfigurationError

NAMED = re.compile(
    r"(^|[_-])(api_?keys?|passwords?|passphrases?|secrets?|credentials?|(access|auth|bearer)_?tokens?)$", re.I
)
"""Names of settings, and of environment variables, that hold secrets."""
VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)$", re.I)
IN_URI = re.compile(r"\w://[^/\s:@]+:[^/\s@]+@")
"""A user's name and password before a URI's host."""
SHORTEST = 12
"""Characters of the shortest value of an environment variable that is looked for: shorter ones are found by chance."""


def refuse_secrets(tree: dict[str, Any]) -> None:
    """Raises ConfigurationError for the first setting of a plain tree that holds a secret."""
    held = {name: value for name, value in os.environ.items() if VARIABLE.search(name) and len(value) >= SHORTEST}
    for path, value in _leaves(tree, ()):
        key = ".".join(path)
        if isinstance(value, str) and value and any(NAMED.search(name) for name in path):
            raise ConfigurationError(
                f"{key} holds a secret, and settings are written into the run's folder; put it into an environment variable "
                "and give that one's name (an LLM user's llm.api_key_env)"
            )
        if isinstance(value, str) and IN_URI.search(value):
            raise ConfigurationError(
                f"{key} is a URI with a password in it, and settings are written into the run's folder; leave it out: keys of "
                "an object store come from the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, for example)"
            )
        for name, secret in held.items():
            if isinstance(value, str) and secret in value:
                raise ConfigurationError(
                    f"{key} contains what the environment variable {name} holds, and settings are written into the run's "
                    "folder; give the variable's name (an LLM user's llm.api_key_env)"
                )


def _leaves(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, (*path, str(key)))
    elif isinstance(node, list | tuple):
        for place, value in enumerate(node):
            yield from _leaves(value, (*path, str(place)))
    else:
        yield path, node
