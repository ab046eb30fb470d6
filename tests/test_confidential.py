"""Secrets among the settings are refused, by name and by value, and never repeated."""

import pytest

from mtrl_ray.confidential import refuse_secrets
from mtrl_ray.config import load
from mtrl_ray.errors import ConfigurationError

KEY = "sk-0123456789abcdef"


@pytest.mark.parametrize("name", ["api_key", "apikey", "password", "client_secret", "auth_token", "OPENAI_API_KEY"])
def test_a_setting_that_is_called_a_secret(name: str):
    with pytest.raises(ConfigurationError, match=rf"environment.options.{name} holds a secret") as caught:
        load("sales", [f"environment.options={{{name}: {KEY}}}"])
    assert KEY not in str(caught.value)


def test_a_setting_that_contains_what_a_variable_holds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_SERVICE_KEY", KEY)
    with pytest.raises(ConfigurationError, match=r"run\.folder contains what .* MY_SERVICE_KEY holds") as caught:
        load("sales", [f"run.folder=/tmp/{KEY}"])
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("uri", ["s3://name:{}@bucket/runs", "s3://name:{}@bucket?region=x", "gs://me:{}@bucket"])
def test_a_password_in_a_uri(uri: str):
    with pytest.raises(
        ConfigurationError, match=r"run\.checkpoints is a URI with a password .*AWS_ACCESS_KEY_ID"
    ) as caught:
        load("sales", [f"run.checkpoints={uri.format(KEY)}"])
    assert KEY not in str(caught.value)
    load("sales", ["run.checkpoints=s3://bucket/runs@1?endpoint_override=http://127.0.0.1:9000"])


def test_names_of_variables_numbers_of_tokens_and_short_values_are_no_secrets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SHORT_TOKEN", "runs")
    refuse_secrets({"llm": {"api_key_env": "OPENAI_API_KEY"}, "tokens": 5, "response_tokens": "12", "folder": "runs"})
    load("sales", ["rollout.response_tokens=12"])
