"""Secrets are no settings: settings are written into the run's folder, into reports and into a job's files.

1. A setting whose name says that it is a secret (`api_key`, `hf_token`, `passwd`, …) is refused; `api_key_env`, the name of an
   environment variable, is the way to give one, and has to look like such a name.
2. So is a setting that contains what an environment variable with such a name holds.
3. So is a URI with a key or password before its host, as `s3://key:secret@bucket`, or with a query of which anything is not
   known to be harmless.
4. The refusal names the setting and repeats nothing of it.
"""

import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from mtrl_ray.errors import ConfigurationError

NAMED = re.compile(
    r"(?:^|[_-]|(?<=[a-z0-9])(?=[A-Z]))(?i:token|key|secrets?|passwords?|passwd|passphrases?|credentials?|authorization|"
    r"(?:api|access|account|private|secret)_?keys?|(?:access|api|auth|bearer)_?tokens?)$"
)
"""Names of settings that hold secrets; numbers of tokens are in the plural."""
VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|AUTHORIZATION|CREDENTIALS?)$", re.I)
"""Names of environment variables that do."""
POINTER, NAME = "_env", re.compile(r"[A-Z_][A-Z0-9_]*")
"""The end of a setting's name that says that it names a variable, and what such a name looks like."""
BEFORE_HOST = re.compile(r"(?P<scheme>\w+)://(?:[^/\s@]*:[^\s@]*|(?P<user>[^/\s@]+))@")
"""What stands before a URI's host: a user and a password, which may have slashes in it, or a user alone."""
USERS = ("abfs", "abfss", "hdfs", "viewfs")
"""Schemes in which a container, or a user without a password, stands there."""
QUERY = re.compile(r"\w://[^\s?]*\?([^\s#]*)")
HARMLESS = frozenset(
    {
        "allow_bucket_creation",
        "allow_bucket_deletion",
        "allow_delayed_open",
        "background_writes",
        "blob_storage_authority",
        "blob_storage_scheme",
        "buffer_size",
        "check_directory_existence_before_creation",
        "client_id",
        "connect_timeout",
        "credential_kind",
        "default_block_size",
        "dfs_storage_authority",
        "dfs_storage_scheme",
        "enable_tls",
        "endpoint_override",
        "force_virtual_addressing",
        "project_id",
        "region",
        "replication",
        "request_timeout",
        "retry_limit_seconds",
        "scheme",
        "smart_defaults",
        "tenant_id",
        "tls_ca_dir_path",
        "tls_ca_file_path",
        "tls_verify_certificates",
        "use_mmap",
        "user",
    }
)
"""Keys that a URI's query may have: those of pyarrow's filesystems that hold no secret."""
SHORTEST = 12
"""Characters of the shortest value of an environment variable that is looked for: shorter ones are found by chance."""


def refuse_secrets(tree: dict[str, Any]) -> None:
    """Raises ConfigurationError for the first setting of a plain tree that holds a secret."""
    held = {name: value for name, value in os.environ.items() if VARIABLE.search(name) and len(value) >= SHORTEST}
    for path, value in _leaves(tree, ()):
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            continue
        key, text = ".".join(path), str(value)
        if any(NAMED.search(name) for name in path):
            raise ConfigurationError(
                f"{key} holds a secret, and settings are written into the run's folder; put it into an environment variable "
                "and give that one's name (an LLM user's llm.api_key_env)"
            )
        if path and NAMED.search(path[-1].removesuffix(POINTER)) and not NAME.fullmatch(text):
            raise ConfigurationError(
                f"{key} has to be the name of an environment variable, such as OPENAI_API_KEY; what is given is none, and is "
                "not repeated here, for it may be the secret itself"
            )
        if _before_host(text) or _before_host(unquote(text)):
            raise ConfigurationError(
                f"{key} is a URI with a password or key in it, and settings are written into the run's folder; leave it out: "
                "keys of an object store come from the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, for example)"
            )
        if _unknown_query(text):
            raise ConfigurationError(
                f"{key} is a URI with something in its query that may be a secret, and settings are written into the run's "
                f"folder; known to be none are {', '.join(sorted(HARMLESS))}"
            )
        for name, secret in held.items():
            if secret in text:
                raise ConfigurationError(
                    f"{key} contains what the environment variable {name} holds, and settings are written into the run's "
                    "folder; give the variable's name (an LLM user's llm.api_key_env)"
                )


def _before_host(text: str) -> bool:
    """Whether a URI in the text has a key, or a user and a password, before its host."""
    return any(
        found["user"] is None or (found["scheme"] not in USERS and found["user"] != "anonymous")
        for found in BEFORE_HOST.finditer(text)
    )


def _unknown_query(text: str) -> bool:
    """Whether a URI in the text has a query with a key that is not known to be harmless."""
    parts = [part for query in QUERY.findall(text) for part in re.split("[&;]", query) if part]
    return any(unquote(part).partition("=")[0] not in HARMLESS for part in parts)


def _leaves(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, (*path, str(key)))
    elif isinstance(node, list | tuple):
        for place, value in enumerate(node):
            yield from _leaves(value, (*path, str(place)))
    else:
        yield path, node
