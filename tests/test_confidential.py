"""Secrets among the settings are refused, by name and by value, and never repeated."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from mtrl_envs.llm.user import LLMSettings
from mtrl_envs.registry import ENVIRONMENTS, environment_class
from mtrl_ray.algorithms.registry import ALGORITHMS, algorithm_class
from mtrl_ray.commands.train import train
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.run.recipes import dump, load
from mtrl_ray.settings.secrets import NAMED, refuse_secrets
from mtrl_ray.settings.tree import Settings

KEY = "sk-0123456789abcdef"


NAMES = (
    "api_key",
    "apikey",
    "apiKey",
    "password",
    "client_secret",
    "auth_token",
    "OPENAI_API_KEY",
    "token",
    "hf_token",
    "api_token",
    "access_key",
    "secret_key",
    "aws_secret_access_key",
    "private_key",
    "passwd",
    "authorization",
    "credentials",
    "accessToken",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_that_is_called_a_secret(name: str):
    with pytest.raises(ConfigurationError, match=rf"environment.options.{name} holds a secret") as caught:
        load("sales", [f"environment.options={{{name}: {KEY}}}"])
    assert KEY not in str(caught.value)


def test_a_setting_that_contains_what_a_variable_holds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_SERVICE_KEY", KEY)
    with pytest.raises(ConfigurationError, match=r"run\.folder contains what .* MY_SERVICE_KEY holds") as caught:
        load("sales", [f"run.folder=/tmp/{KEY}"])
    assert KEY not in str(caught.value)


def test_a_secret_that_a_number_is_or_that_a_later_override_hides():
    with pytest.raises(ConfigurationError, match=r"environment.options.password holds a secret"):
        load("sales", ["environment.options={password: 12345678}"])
    with pytest.raises(ConfigurationError, match=r"environment.options.api_key holds a secret"):
        load("sales", [f"environment.options.api_key={KEY}", "environment.options={}"])
    with pytest.raises(ConfigurationError, match=r"run.name.api_key holds a secret"):
        load("sales", [f"run.name={{api_key: {KEY}}}"])


def test_a_variables_name_that_is_none():
    with pytest.raises(ConfigurationError, match=r"options.hf_token_env has to be the name of an env") as caught:
        load("sales", [f"environment.options={{hf_token_env: {KEY}}}"])
    assert KEY not in str(caught.value)


def names_of(section: type[BaseModel]) -> Iterator[str]:
    """Of a section's settings, and of the sections in it."""
    for name, field in section.model_fields.items():
        yield name
        for kind in (field.annotation, *get_args(field.annotation)):
            if inspect.isclass(kind) and issubclass(kind, BaseModel):
                yield from names_of(kind)


def test_no_setting_of_the_project_is_called_a_secret():
    names = {*names_of(Settings), *LLMSettings.__dataclass_fields__}
    for name in ALGORITHMS:
        names |= {*names_of(algorithm_class(name).settings_class)}
    for name in ENVIRONMENTS:
        names |= {*inspect.signature(environment_class(name)).parameters}
    assert {"response_tokens", "max_tokens", "tokens_per_microbatch", "api_key_env", "preference_noise"} <= names
    assert not [name for name in names if NAMED.search(name)]


TORN = ("environment.options={{api_key: {}", "environment.options.api_key:{}", "{}", "run.name.api_key={}")


@pytest.mark.parametrize("override", TORN)
def test_a_torn_override_is_not_repeated(override: str):
    with pytest.raises(ConfigurationError) as caught:
        load("sales", [override.format(KEY)])
    assert KEY not in str(caught.value) and override.split("=")[0].split("{")[0].split(":")[0] in str(caught.value)


def test_a_torn_recipe_is_not_repeated(tmp_path: Path):
    (tmp_path / "torn.yaml").write_text(f"run:\n  api_key: [{KEY}\n")
    with pytest.raises(ConfigurationError, match=r"torn.yaml' is not YAML: line 3, column 1: expected") as caught:
        load(str(tmp_path / "torn.yaml"))
    assert KEY not in str(caught.value)


def test_a_place_that_cannot_be_opened_does_not_become_a_runs(tmp_path: Path):
    (run := tmp_path / "run").mkdir()
    (run / "config.yaml").write_text(dump(load("sales")))
    before = (run / "config.yaml").read_text()
    for place in ("nosuch://bucket/runs", f"abfs://:{KEY}@acc.blob.core.windows.net/c"):
        with pytest.raises(ConfigurationError):
            train(f"run.checkpoints={place}", resume=run)
    assert (run / "config.yaml").read_text() == before


URIS = (
    "s3://name:{}@bucket/runs",
    "s3://name:{}@bucket?region=x",
    "gs://me:{}@bucket",
    "s3://{}@bucket/runs",
    "abfs://:{}@acc.blob.core.windows.net/c",
    "abfs://container:{}@acc.dfs.core.windows.net/c",
    "s3://AKIA:ab/{}@b",
    "s3://AKIA:ab?{}@b",
    "s3://AKIA%3Aab%2F{}@b",
    "s3://b?endpoint_override=http%3A%2F%2Fme%3A{}%40host",
)


@pytest.mark.parametrize("uri", URIS)
def test_a_password_in_a_uri(uri: str):
    with pytest.raises(
        ConfigurationError, match=r"run\.checkpoints is a URI with a password .*AWS_ACCESS_KEY_ID"
    ) as caught:
        load("sales", [f"run.checkpoints={uri.format(KEY)}"])
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("query", ["client_secret={}", "region=x&sig={}", "sv=1;sig={}", "%73ig={}", "{}"])
def test_a_secret_in_a_uris_query(query: str):
    with pytest.raises(ConfigurationError, match=r"run\.checkpoints is a URI with something in its query") as caught:
        load("sales", [f"run.checkpoints=abfs://c@acc.dfs.core.windows.net/c?{query.format(KEY)}"])
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/runs@1?endpoint_override=http://127.0.0.1:9000",
        "s3://bucket/runs?region=eu-west-1&scheme=https",
        "abfs://container@acc.dfs.core.windows.net/runs?enable_tls=false",
        "gs://anonymous@bucket/runs",
        "hdfs://me@host:9000/runs?replication=3",
        "file:///runs",
    ],
)
def test_uris_without_a_secret(uri: str):
    assert load("sales", [f"run.checkpoints={uri}"]).run.checkpoints == uri


def test_recipes_and_plain_values_pass():
    tree: dict[str, Any] = {
        "url": "http://127.0.0.1:8000/v1",
        "said": "How? me@home: yes",
        "monkey": "x",
        "keys": ["a"],
    }
    refuse_secrets(tree)


def test_names_of_variables_numbers_of_tokens_and_short_values_are_no_secrets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SHORT_TOKEN", "runs")
    refuse_secrets({"llm": {"api_key_env": "OPENAI_API_KEY"}, "tokens": 5, "response_tokens": "12", "folder": "runs"})
    load("sales", ["rollout.response_tokens=12"])
