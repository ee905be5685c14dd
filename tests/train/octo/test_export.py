import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import serialization, traverse_util

from pipeline.errors import UserError
from train.octo.config import (
    BinsConfig,
    LowdimTokenizerConfig,
    OctoConfig,
    RegressionConfig,
    VGGTTokenizerConfig,
)
from train.octo.export import OctoExport, export_octo, octo_model
from train.octo.policy import init_params
from train.octo.pretrained import Pretrained, read_octo
from train.octo.translate import translate


def flat(tree: Any) -> dict[str, Any]:
    return dict(traverse_util.flatten_dict(tree, sep="/"))


@pytest.fixture(scope="module")
def pretrained(golden_dir: Path) -> Pretrained:
    return read_octo(golden_dir / "ckpt_tiny", 100)


@pytest.fixture
def exported(pretrained: Pretrained, tmp_path: Path) -> Path:
    export = OctoExport(pretrained.config, pretrained.params, {"action": {}}, window_size=2)
    export_octo(export, tmp_path / "out", 100, language_encoder="t5_tiny")
    return tmp_path / "out"


def test_genuine_checkpoint_comes_back_bit_for_bit(pretrained: Pretrained, exported: Path) -> None:
    again = read_octo(exported, 100)
    assert again.config == pretrained.config
    ours, theirs = flat(again.params), flat(pretrained.params)
    assert ours.keys() == theirs.keys()
    for path, array in theirs.items():
        assert (ours[path].dtype, ours[path].tobytes()) == (array.dtype, array.tobytes()), path


def test_config_is_that_of_the_original(golden_dir: Path, exported: Path) -> None:
    genuine = json.loads((golden_dir / "ckpt_tiny" / "config.json").read_text())
    ours = json.loads((exported / "config.json").read_text())
    assert ours["text_processor"] == genuine["text_processor"]
    assert ours["window_size"] == genuine["window_size"]
    ours, genuine = flat(ours["model"]), flat(genuine["model"])
    assert {key: ours.get(key) for key in genuine} == genuine
    # What is told beyond it are the defaults of the original's code.
    defaults = {"max_action": 5.0, "diffusion_steps": 20}
    beyond = {key.rpartition("/")[2]: value for key, value in ours.items() if key not in genuine}
    assert beyond == defaults


def test_example_batch_has_the_leaves_of_the_original(golden_dir: Path, exported: Path) -> None:
    genuine, ours = (
        flat(serialization.msgpack_restore((path / "example_batch.msgpack").read_bytes()))
        for path in (golden_dir / "ckpt_tiny", exported)
    )
    for key, array in ours.items():
        assert (array.dtype, array.shape) == (genuine[key].dtype, genuine[key].shape), key
    # Proprioception and the goal's step are there too, but the model reads neither.
    unread = {key for key in genuine.keys() - ours.keys() if "proprio" not in key}
    assert unread == {
        "observation/task_completed",
        "task/timestep",
        "task/pad_mask_dict/timestep",
    }


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
    params = jax.eval_shape(lambda: init_params(changed, jax.random.key(0)))
    shapes = {path: leaf.shape for path, leaf in flat(params).items()}
    found = translate(octo_model(changed), shapes, "here")
    assert found == changed


def test_geometry_tokens_have_no_counterpart(config: OctoConfig) -> None:
    changed = dataclasses.replace(config, vggt=VGGTTokenizerConfig(5, 8))
    with pytest.raises(UserError, match=r"model.vggt: .* no tokenizer. Load the run's own"):
        octo_model(changed)


def test_directory_in_use_is_left_alone(exported: Path, pretrained: Pretrained) -> None:
    export = OctoExport(pretrained.config, pretrained.params, {}, 2)
    before = np.fromfile(exported / "config.json", np.uint8)
    with pytest.raises(UserError, match="expected a new or empty directory; found files"):
        export_octo(export, exported, 100)
    np.testing.assert_array_equal(np.fromfile(exported / "config.json", np.uint8), before)
