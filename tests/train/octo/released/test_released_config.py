import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import pytest
from flax import traverse_util

from pipeline.errors import UserError
from train.octo.functional import init_params
from train.octo.octo_config import (
    BinsConfig,
    LanguageConfig,
    LowdimTokenizerConfig,
    OctoConfig,
    RegressionConfig,
    octo_small,
)
from train.octo.released.released_config import original_config, translate

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


PRIMARY = "observation_tokenizers__primary__kwargs"
STEM = f"{PRIMARY}__encoder__kwargs"
LANGUAGE = "task_tokenizers__language__kwargs"
HEAD = "heads__action__kwargs"


@pytest.mark.parametrize(
    ("place", "value", "found"),
    [
        (
            "heads__action__name",
            "DiscreteActionHead",
            "heads.action: DiscreteActionHead: only Diff",
        ),
        (
            "heads",
            {"value": {}},
            r"heads.action: {'value': {}}: only one called action is supported",
        ),
        ("readouts", {"action": 1, "value": 2}, "readouts: .*'value': 2.*: only one called action"),
        (
            f"{PRIMARY}__encoder__name",
            "ViT",
            r"primary.encoder: ViT: only SmallStem16 is supported",
        ),
        (f"{PRIMARY}__encoder__args", [16], r"primary.encoder.args \[16\]: only named options"),
        (
            f"{PRIMARY}__task_film_keys",
            ["text"],
            r"primary.task_film_keys \['text'\]: only \(\) is",
        ),
        (f"{PRIMARY}__use_token_learner", True, "use_token_learner True: only False is supported"),
        (
            f"{PRIMARY}__conditioning_type",
            "film",
            "conditioning_type 'film': only 'none' is supported",
        ),
        (f"{PRIMARY}__proper_pad_mask", False, "proper_pad_mask False: only True is supported"),
        (
            f"{PRIMARY}__obs_stack_keys",
            ["image_.*"],
            "obs_stack_keys .*: only one plain name is supported",
        ),
        (
            f"{PRIMARY}__obs_stack_keys",
            ["a", "b"],
            r"\['a', 'b'\]: only one plain name is supported",
        ),
        (
            f"{PRIMARY}__task_stack_keys",
            [],
            r"task_stack_keys \[\]: only \['image_primary'\] is supported",
        ),
        (f"{STEM}__use_film", True, "primary.encoder.use_film True: only False is supported"),
        (
            f"{STEM}__img_norm_type",
            "imagenet",
            "img_norm_type 'imagenet': only 'default' is supported",
        ),
        (f"{STEM}__patch_size", 32, "primary.encoder.patch_size 32: only 16 is supported"),
        (
            f"{STEM}__strides",
            [2, 2, 2, 1],
            r"strides \[2, 2, 2, 1\]: only \(2, 2, 2, 2\) is supported",
        ),
        (
            f"{STEM}__kernel_sizes",
            [5, 5, 5, 5],
            r"kernel_sizes .*: only \(3, 3, 3, 3\) is supported",
        ),
        (f"{STEM}__padding", "SAME", r"padding 'SAME': only \(1, 1, 1, 1\) is supported"),
        (
            f"{STEM}__dtype",
            "bfloat16",
            "primary.encoder.dtype 'bfloat16': this option is not supported",
        ),
        (
            "transformer_kwargs__dropout_rate",
            0.1,
            "transformer_kwargs.dropout_rate 0.1: only 0.0 is",
        ),
        ("transformer_kwargs__rotary", True, "transformer_kwargs.rotary True: this option"),
        ("transformer_kwargs", {}, "transformer_kwargs: 'num_layers' is missing"),
        ("transformer_kwargs", None, "transformer_kwargs: a value of another kind than expected"),
        (
            f"{LANGUAGE}__encoder",
            "distilbert",
            "language: encoder distilbert: only a T5 is supported",
        ),
        (
            f"{LANGUAGE}__proper_pad_mask",
            False,
            "language.proper_pad_mask False: only True is supported",
        ),
        ("task_tokenizers__goal", {}, "task_tokenizers.goal: only language is supported"),
        ("task_tokenizers__language", "t5", "language: a module with name and kwargs is expected"),
        (
            f"{HEAD}__readout_key",
            "obs",
            "action.readout_key 'obs': only 'readout_action' is supported",
        ),
        (f"{HEAD}__loss_type", "l1", "heads.action.loss_type 'l1': only 'mse' is supported"),
        (
            f"{HEAD}__use_layer_norm",
            False,
            "heads.action.use_layer_norm False: only True is supported",
        ),
        (f"{HEAD}__dropout_rate", 0.1, "heads.action.dropout_rate 0.1: only 0.0 is supported"),
        (
            f"{HEAD}__diffusion_steps",
            0,
            r"heads.action.diffusion_steps: expected at least 1, not 0",
        ),
        ("max_horizon", 0, r"model.max_horizon: expected at least 1, not 0"),
        ("moe", 8, "model.moe 8: this option is not supported"),
    ],
)
def test_what_has_no_counterpart_is_named(small: dict, place: str, value: Any, found: str) -> None:
    with pytest.raises(UserError, match=found) as caught:
        translate(changed(**{place: value}), small, "config.json")
    assert "Error" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (f"{PRIMARY}__conditioning_type", "none"),
        (f"{PRIMARY}__num_tokens", 8),
        (f"{PRIMARY}__task_film_keys", []),
        (f"{PRIMARY}__proper_pad_mask", True),
        (f"{PRIMARY}__encoder__args", []),
        (f"{STEM}__strides", [2, 2, 2, 2]),
        (f"{STEM}__patch_size", 16),
        (f"{LANGUAGE}__proper_pad_mask", True),
        (f"{HEAD}__loss_type", "mse"),
        (f"{HEAD}__use_layer_norm", True),
        ("transformer_kwargs__add_position_embedding", None),
    ],
)
def test_options_that_are_written_out_with_the_values_known_here_are_harmless(
    small: dict, place: str, value: Any
) -> None:
    assert translate(changed(**{place: value}), small, "config.json") == octo_small()


@pytest.mark.parametrize(
    ("name", "option", "value", "found"),
    [
        (
            "L1ActionHead",
            "loss_type",
            "mse",
            "heads.action.loss_type 'mse': only 'l1' is supported",
        ),
        ("MSEActionHead", "hidden_dim", 256, "heads.action.hidden_dim 256: this option"),
    ],
)
def test_each_head_has_its_own_options(
    small: dict, name: str, option: str, value: Any, found: str
) -> None:
    model = changed(heads__action={"name": name, "kwargs": {option: value}})
    with pytest.raises(UserError, match=found):
        translate(model, small, "config.json")


@pytest.mark.parametrize(
    ("option", "value", "found"),
    [
        (
            "obs_keys",
            ["proprio", "gripper"],
            r"obs_keys \['proprio', 'gripper'\]: only one plain name",
        ),
        ("bin_type", "log", "proprio: bin_type 'log': only 'uniform' and 'normal' are supported"),
        ("low", 3.0, "proprio.low: expected less than high, which is 2.0, not 3.0"),
        ("scale", 2, "observation_tokenizers.proprio.scale 2: this option is not supported"),
    ],
)
def test_what_a_vector_has_no_counterpart_for_is_named(
    golden_dir: Path, golden_nest, option: str, value: Any, found: str
) -> None:
    model = json.loads((golden_dir / "b" / "config.json").read_text())["model"]
    kwargs = model["observation_tokenizers"]["proprio"]["kwargs"]
    kwargs |= {"discretize": True, "bin_type": "uniform"} | {option: value}
    params = traverse_util.flatten_dict(golden_nest("b/params"), sep="/")
    with pytest.raises(UserError, match=found):
        translate(model, {p: leaf.shape for p, leaf in params.items()}, "config.json")


def test_tensors_that_tell_a_size_are_named_where_they_are_missing(small: dict) -> None:
    camera, t5 = "octo_transformer/obs_wrist_pos_embedding", "DenseReluDense/wi/kernel"
    shapes = {path: s for path, s in small.items() if path != camera and t5 not in path}
    with pytest.raises(UserError) as caught:
        translate(SMALL, shapes, "config.json")
    assert f"observation_tokenizers.wrist: the checkpoint has no tensor {camera}" in str(
        caught.value
    )
    assert re.search(rf"language: the checkpoint has no tensor \S+{t5}", str(caught.value))


def test_tokens_of_no_square_image_are_named(small: dict) -> None:
    shapes = small | {"octo_transformer/obs_wrist_pos_embedding": (1, 10, 60, 384)}
    with pytest.raises(UserError, match="wrist: 60 tokens: only square images are supported"):
        translate(SMALL, shapes, "config.json")


def test_all_that_has_no_counterpart_is_named_at_once(small: dict) -> None:
    model = changed(
        heads__action__name="Other",
        transformer_kwargs__dropout_rate=0.5,
        observation_tokenizers__wrist__kwargs={},
        readouts={},
        **{f"{PRIMARY}__obs_stack_keys": [], f"{PRIMARY}__encoder__name": "ViT"},
    )
    del model["max_horizon"]
    with pytest.raises(UserError) as caught:
        translate(model, small, "config.json")
    assert caught.value.found.split("; ") == [
        "observation_tokenizers.primary.obs_stack_keys []: only one plain name is supported",
        "observation_tokenizers.primary.task_stack_keys ['image_primary']: only [''] is supported",
        "observation_tokenizers.primary.encoder: ViT: only SmallStem16 is supported",
        "observation_tokenizers.wrist: 'obs_stack_keys' is missing",
        "model: 'max_horizon' is missing",
        "transformer_kwargs.dropout_rate 0.5: only 0.0 is supported",
        "heads.action: Other: only DiffusionActionHead or L1ActionHead or MSEActionHead is "
        "supported",
        "readouts: {}: only one called action is supported",
    ]
    assert caught.value.remedy.startswith("Use another checkpoint")


def test_the_config_of_the_released_octo_small_is_translated(shared: Path, small: dict) -> None:
    config = json.loads((shared / "golden/octo/octo_small_config.json").read_text())
    assert translate(config["model"], small, "config.json") == octo_small()


@pytest.mark.parametrize(
    "change",
    [
        {"head": RegressionConfig("mse", pooling="mean")},
        {"lowdims": (LowdimTokenizerConfig("p", "proprio", 8, BinsConfig(16, "normal")),)},
        {"lowdims": (LowdimTokenizerConfig("p", "proprio", 8),), "num_readouts": 3},
        {"language": None},
        {"legacy_attention": True, "repeat_task_tokens": False},
    ],
)
def test_translation_is_the_inverse(config: OctoConfig, change: dict) -> None:
    changed = dataclasses.replace(config, **change)
    model = original_config(changed, 2, "t5-base")["model"]
    assert translate(model, shapes_of(changed), "here") == changed


def test_the_exported_config_of_a_deeper_stem_lists_every_stride(config: OctoConfig) -> None:
    deep = dataclasses.replace(config.images[0], image_size=64, stem_features=(32,) * 5)
    changed = dataclasses.replace(config, images=(deep,))
    model = original_config(changed, 2, "t5-base")["model"]
    stem = model["observation_tokenizers"]["primary"]["kwargs"]["encoder"]["kwargs"]
    assert (stem["strides"], stem["kernel_sizes"], stem["padding"]) == (
        (2,) * 5,
        (3,) * 5,
        (1,) * 5,
    )
    assert translate(model, shapes_of(changed), "here") == changed


@pytest.mark.parametrize(("finetune", "frozen"), [(True, []), (False, ["*hf_model*"])])
def test_frozen_keys_name_t5_unless_it_was_trained(*, finetune: bool, frozen: list[str]) -> None:
    model = dataclasses.replace(octo_small(), language=LanguageConfig(finetune=finetune))
    assert original_config(model, 2, "t5-base")["optimizer"]["frozen_keys"] == frozen
