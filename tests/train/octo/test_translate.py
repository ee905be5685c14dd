import copy
import json
from pathlib import Path
from typing import Any

import jax
import pytest
from flax import traverse_util

from pipeline.errors import UserError
from train.octo.config import (
    BinsConfig,
    LowdimTokenizerConfig,
    OctoConfig,
    RegressionConfig,
    octo_small,
)
from train.octo.policy import init_params
from train.octo.translate import translate

SMALL: dict[str, Any] = {
    "observation_tokenizers": {
        name: {
            "name": "ImageTokenizer",
            "kwargs": {
                "obs_stack_keys": [f"image_{name}"],
                "task_stack_keys": [f"image_{name}"],
                "encoder": {"name": "SmallStem16", "kwargs": {}},
            },
        }
        for name in ("primary", "wrist")
    },
    "task_tokenizers": {
        "language": {
            "name": "LanguageTokenizer",
            "kwargs": {"encoder": "t5-base", "finetune_encoder": False},
        }
    },
    "heads": {
        "action": {
            "name": "DiffusionActionHead",
            "kwargs": {"readout_key": "readout_action", "use_map": False, "action_horizon": 4},
        }
    },
    "readouts": {"action": 1},
    "token_embedding_size": 384,
    "transformer_kwargs": {"num_layers": 12, "mlp_dim": 1536, "num_attention_heads": 6},
    "max_horizon": 10,
    "repeat_task_tokens": True,
    "use_correct_attention": True,
}
"""The model of octo-small-1.5's config.json, less what is no setting."""


def shapes_of(config: OctoConfig) -> dict[str, tuple[int, ...]]:
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(params, sep="/").items()}


@pytest.fixture(scope="module")
def small() -> dict[str, tuple[int, ...]]:
    return shapes_of(octo_small())


def changed(**places: Any) -> dict[str, Any]:
    """The config with other values; a double underscore stands for a level."""
    model = copy.deepcopy(SMALL)
    for path, value in places.items():
        *parents, leaf = path.split("__")
        node = model
        for name in parents:
            node = node[name]
        node[leaf] = value
    return model


def test_octo_small_is_translated_into_its_preset(small: dict) -> None:
    assert translate(SMALL, small, "config.json") == octo_small()


def test_what_an_old_config_leaves_out_has_the_default_of_its_code(small: dict) -> None:
    model = changed(heads__action__kwargs={"pred_horizon": 4, "use_map": False})
    del model["repeat_task_tokens"], model["use_correct_attention"]
    config = translate(model, small, "config.json")
    assert (config.repeat_task_tokens, config.legacy_attention) == (False, True)
    assert config.head.action_horizon == 4


def test_regression_head_and_proprioception_are_translated(golden_dir: Path, golden_nest) -> None:
    model = json.loads((golden_dir / "b" / "config.json").read_text())["model"]
    params = traverse_util.flatten_dict(golden_nest("b/params"), sep="/")
    shapes = {path: leaf.shape for path, leaf in params.items()}
    config = translate(model, shapes, "config.json")
    assert config.head == RegressionConfig()
    assert config.lowdims == (LowdimTokenizerConfig("proprio", "proprio", 8),)
    assert shapes_of(config) == shapes


def test_binned_proprioception_is_translated(golden_dir: Path, golden_nest) -> None:
    model = json.loads((golden_dir / "b" / "config.json").read_text())["model"]
    model["observation_tokenizers"]["proprio"]["kwargs"]["discretize"] = True
    params = traverse_util.flatten_dict(golden_nest("b/params"), sep="/")
    config = translate(model, {p: leaf.shape for p, leaf in params.items()}, "config.json")
    assert config.lowdims[0].bins == BinsConfig(256, "normal", -2.0, 2.0)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"heads__action__name": "DiscreteActionHead"}, "heads.action: DiscreteActionHead"),
        ({"readouts": {"action": 1, "value": 2}}, "readouts .*'value': 2.*: one called action"),
        (
            {"observation_tokenizers__primary__kwargs__encoder__name": "ResNet26FILM"},
            "observation_tokenizers.primary.encoder ResNet26FILM: SmallStem16 is known",
        ),
        (
            {"observation_tokenizers__primary__kwargs__task_film_keys": ["language_instruction"]},
            "observation_tokenizers.primary.task_film_keys .'language_instruction'.",
        ),
        (
            {"observation_tokenizers__primary__kwargs__use_token_learner": True},
            "observation_tokenizers.primary.use_token_learner True",
        ),
        (
            {"observation_tokenizers__primary__kwargs__obs_stack_keys": ["image_.*"]},
            "stack key 'image_.*': plain names are known",
        ),
        ({"transformer_kwargs__dropout_rate": 0.1}, "transformer_kwargs.dropout_rate 0.1"),
        (
            {"task_tokenizers__language__kwargs__encoder": "distilbert"},
            "task_tokenizers.language: LanguageTokenizer of distilbert",
        ),
        ({"transformer_kwargs": {}}, "KeyError: 'num_layers'"),
    ],
)
def test_what_has_no_counterpart_is_named(small: dict, change: dict, found: str) -> None:
    with pytest.raises(UserError, match=found):
        translate(changed(**change), small, "config.json")


def test_all_that_has_no_counterpart_is_named_at_once(small: dict) -> None:
    model = changed(heads__action__name="Other", transformer_kwargs__dropout_rate=0.5)
    with pytest.raises(UserError, match=r"dropout_rate 0.5; .*heads.action: Other"):
        translate(model, small, "config.json")
