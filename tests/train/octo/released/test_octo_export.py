import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import serialization, traverse_util

from pipeline.errors import UserError
from train.octo.functional import init_params
from train.octo.octo_config import (
    BinsConfig,
    LanguageConfig,
    LowdimTokenizerConfig,
    OctoConfig,
    RegressionConfig,
    T5Config,
    VGGTTokenizerConfig,
)
from train.octo.released.octo_checkpoint import OctoCheckpoint
from train.octo.released.octo_export import OctoExport, export_octo, octo_model
from train.octo.released.released_config import translate
from train.octo.released.weight_loading import Pretrained


def flat(tree: Any) -> dict[str, Any]:
    return dict(traverse_util.flatten_dict(tree, sep="/"))


@pytest.fixture(scope="module")
def pretrained(golden_dir: Path) -> Pretrained:
    return OctoCheckpoint(str(golden_dir / "ckpt_tiny"), 100).load()


@pytest.fixture
def exported(pretrained: Pretrained, tmp_path: Path) -> Path:
    export = OctoExport(pretrained.config, pretrained.params, {"action": {}}, window_size=2)
    export_octo(export, tmp_path / "out", 100, language_encoder="t5_tiny")
    return tmp_path / "out"


@pytest.mark.parametrize(("finetune", "frozen"), [(True, []), (False, ["*hf_model*"])])
def test_frozen_keys_name_t5_unless_it_was_trained(
    pretrained: Pretrained, tmp_path: Path, *, finetune: bool, frozen: list[str]
) -> None:
    assert pretrained.config.language is not None
    language = dataclasses.replace(pretrained.config.language, finetune=finetune)
    config = dataclasses.replace(pretrained.config, language=language)
    export = OctoExport(config, {"octo_transformer": {}}, {"action": {}}, window_size=2)
    export_octo(export, tmp_path / "out", 100, language_encoder="t5_tiny")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["optimizer"]["frozen_keys"] == frozen


def test_genuine_checkpoint_comes_back_bitwise_identically(
    pretrained: Pretrained, exported: Path
) -> None:
    again = OctoCheckpoint(str(exported), 100).load()
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
    # The settings beyond it are the defaults of the original's code.
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


def test_all_that_is_in_the_way_of_the_demo_is_reported_at_once(
    config: OctoConfig, pretrained: Pretrained, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").touch()
    small = T5Config(vocab_size=200, d_model=64, d_kv=32, d_ff=128, num_layers=2, num_heads=2)
    changed = dataclasses.replace(
        config,
        vggt=VGGTTokenizerConfig(21, 64),
        head=RegressionConfig("l1"),  # which the original has
        language=LanguageConfig(small),
    )
    with pytest.raises(UserError, match=r"expected a model .*; found 3 obstacles") as caught:
        export_octo(OctoExport(changed, pretrained.params, {}, 2), tmp_path, 100)
    lines = str(caught.value).splitlines()[1:]
    assert [line.partition(": expected")[0] for line in lines] == [
        "  - model.vggt",
        "  - model.language.t5",
        f"  - {tmp_path}",
    ]
    assert "geometry tokens, for which it has no tokenizer" in lines[0]
    assert "--language_encoder NAME" in lines[1]
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_model_that_was_aligned_is_written_as_the_octo_that_it_acts_as(
    pretrained: Pretrained, tmp_path: Path
) -> None:
    vggt = VGGTTokenizerConfig(21, 8, fusion="align")
    config = dataclasses.replace(pretrained.config, vggt=vggt)
    aligned = {"alignments_vggt": {"Dense_0": {"bias": np.zeros(64, np.float32)}}}
    transformer = pretrained.params["octo_transformer"] | aligned
    params = pretrained.params | {"octo_transformer": transformer}
    export_octo(OctoExport(config, params, {}, 2), tmp_path / "out", 100, "t5_tiny")
    again = OctoCheckpoint(str(tmp_path / "out"), 100).load()
    assert again.config == pretrained.config
    assert flat(again.params).keys() == flat(pretrained.params).keys()
    example = serialization.msgpack_restore((tmp_path / "out/example_batch.msgpack").read_bytes())
    assert "vggt_tokens" not in example["observation"]
    assert "vggt_tokens" not in example["observation"]["pad_mask_dict"]


def test_directory_in_use_is_left_alone(exported: Path, pretrained: Pretrained) -> None:
    export = OctoExport(pretrained.config, pretrained.params, {}, 2)
    before = np.fromfile(exported / "config.json", np.uint8)
    with pytest.raises(UserError, match="expected a new or empty directory; found files"):
        export_octo(export, exported, 100, "t5_tiny")
    np.testing.assert_array_equal(np.fromfile(exported / "config.json", np.uint8), before)


def test_destination_that_is_a_file_is_reported(pretrained: Pretrained, tmp_path: Path) -> None:
    export = OctoExport(pretrained.config, pretrained.params, {}, 2)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="file: expected a new or empty directory; found a file"):
        export_octo(export, tmp_path / "file", 100, "t5_tiny")
    with pytest.raises(UserError, match=r"expected a directory that can be written; found .*Not a"):
        export_octo(export, tmp_path / "file" / "out", 100, "t5_tiny")
    assert (tmp_path / "file").read_text() == "kept"


def test_destination_that_cannot_be_written_is_reported(
    pretrained: Pretrained, tmp_path: Path, as_nobody: Callable
) -> None:
    export = OctoExport(pretrained.config, pretrained.params, {}, 2)
    tmp_path.chmod(0o555)
    message = r"out: expected a directory that can be written; found .*Permission denied"
    with as_nobody(), pytest.raises(UserError, match=message):
        export_octo(export, tmp_path / "out", 100, "t5_tiny")


def test_encoder_of_other_sizes_than_t5_base_must_be_named(
    pretrained: Pretrained, tmp_path: Path
) -> None:
    export = OctoExport(pretrained.config, pretrained.params, {}, 2)
    message = r"t5: expected the sizes of t5-base, .*vocab_size=200.*--language_encoder NAME"
    with pytest.raises(UserError, match=message):
        export_octo(export, tmp_path / "out", 100)
    with pytest.raises(UserError, match="language_encoder bert: expected a name with 't5' in it"):
        export_octo(export, tmp_path / "out", 100, "bert")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("language", [None, LanguageConfig(T5Config())])
def test_without_another_encoder_none_need_be_named(
    pretrained: Pretrained, tmp_path: Path, language: LanguageConfig | None
) -> None:
    config = dataclasses.replace(pretrained.config, language=language)
    export_octo(OctoExport(config, pretrained.params, {}, 2), tmp_path / "out", 100)
    model = json.loads((tmp_path / "out" / "config.json").read_text())["model"]
    names = [spec["kwargs"]["encoder"] for spec in model["task_tokenizers"].values()]
    assert names == ["t5-base"] * (language is not None)


def test_the_exported_config_of_a_deeper_stem_lists_every_stride(config: OctoConfig) -> None:
    deep = dataclasses.replace(config.images[0], image_size=64, stem_features=(32,) * 5)
    changed = dataclasses.replace(config, images=(deep,))
    params = jax.eval_shape(lambda: init_params(changed, jax.random.key(0)))
    model = octo_model(changed)
    stem = model["observation_tokenizers"]["primary"]["kwargs"]["encoder"]["kwargs"]
    assert (stem["strides"], stem["kernel_sizes"], stem["padding"]) == ([2] * 5, [3] * 5, [1] * 5)
    shapes = {path: leaf.shape for path, leaf in flat(params).items()}
    assert translate(model, shapes, "here") == changed
