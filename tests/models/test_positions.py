"""How many positions models have, and settings that ask for more."""

import json
from pathlib import Path

import pytest

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.models.positions import positions
from mtrl_ray.rollout.fleet import Fleet
from mtrl_ray.run.recipes import load


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 4096}}, 4096),
        ({"max_position_embeddings": 2048, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 8192),
        ({"max_position_embeddings": 131072, "rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        (
            {
                "max_position_embeddings": 40960,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        ({"hidden_size": 8}, None),
    ],
)
def test_positions_of_a_configuration(tmp_path: Path, config: dict, expected: int | None):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert positions(str(tmp_path)) == expected


@pytest.mark.parametrize("engine", ["vllm", "huggingface"])
def test_a_context_longer_than_the_model_is_refused_before_anything_starts(engine: str, blank_sales: Path):
    settings = ["model.context_length=4096", f"rollout.engine={engine}"]
    wrong = f"model.context_length is 4096, but the model '{blank_sales}' has 1024 positions; use at most 1024"
    with pytest.raises(ConfigurationError, match=wrong):
        load("sales", [*settings, f"model.path={blank_sales}"])
    with pytest.raises(ConfigurationError, match=wrong):
        Fleet(load("sales", settings), str(blank_sales), store=None)
