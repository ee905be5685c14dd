import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from pipeline.errors import UserError
from train.octo.config import (
    DiffusionConfig,
    LowdimTokenizerConfig,
    OctoConfig,
    RegressionConfig,
    VGGTTokenizerConfig,
)
from train.octo.policy import init_params
from train.octo.pretrained import (
    Allowed,
    account,
    check_config,
    merge,
    read_octo,
    read_octo_checkpoint,
    resize_positions,
)

SCORE = "heads_action/diffusion_model/reverse_network"


@pytest.fixture
def checkpoint(tmp_path: Path, golden_dir: Path) -> Path:
    """A copy of the genuine checkpoint that a test may spoil."""
    return Path(shutil.copytree(golden_dir / "ckpt_tiny", tmp_path / "ckpt"))


def tree(**shapes: tuple[int, ...]) -> dict[str, Any]:
    """Returns parameters of ones; a double underscore stands for a level."""
    nested: dict[str, Any] = {}
    for path, shape in shapes.items():
        *parents, leaf = path.split("__")
        node = nested
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = np.ones(shape, dtype=np.float32)
    return nested


def test_a_genuine_checkpoint_is_read_whole(golden_dir: Path) -> None:
    params = read_octo_checkpoint(golden_dir / "ckpt_tiny", 100)
    assert set(params) == {"octo_transformer", "heads_action"}
    kernel = params["octo_transformer"]["obs_primary_projection"]["kernel"]
    assert isinstance(kernel, np.ndarray)
    assert (kernel.shape, kernel.dtype) == ((64, 64), np.float32)


def test_equal_trees_load_whole_and_keep_the_models_dtype() -> None:
    target = {"a": {"kernel": jnp.zeros((2, 3), jnp.bfloat16)}}
    merged, report = merge(target, tree(a__kernel=(2, 3)))
    assert merged["a"]["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(merged["a"]["kernel"], np.ones((2, 3)))
    np.testing.assert_array_equal(target["a"]["kernel"], np.zeros((2, 3)))
    assert [dataclasses.astuple(row) for row in report.rows] == [
        ("a/kernel", "loaded", (2, 3), (2, 3), "")
    ]
    assert report.summary() == "1 loaded (6 numbers)"


def test_what_is_expected_to_differ_keeps_its_fresh_values_and_is_reported() -> None:
    target = tree(obs_vggt=(4,), head=(2,), kept=(3,))
    merged, report = merge(
        {name: leaf * 7 for name, leaf in target.items()},
        tree(obs_wrist=(5,), head=(9,), kept=(3,)),
        Allowed(differing=["obs_*", "head"]),
    )
    assert {row.path: row.status for row in report.rows} == {
        "head": "mismatched shape",
        "kept": "loaded",
        "obs_vggt": "new",
        "obs_wrist": "unused",
    }
    assert {name: float(leaf[0]) for name, leaf in merged.items()} == {
        "head": 7.0,
        "kept": 1.0,
        "obs_vggt": 7.0,
    }


def test_all_surprises_are_named_in_one_error() -> None:
    with pytest.raises(UserError, match="3 others") as caught:
        merge(tree(new=(4,), changed=(2,)), tree(unused=(5,), changed=(3,)), Allowed(["other/*"]))
    message = str(caught.value)
    assert "new: new, (4,) here, none in the checkpoint" in message
    assert "unused: unused, none here, (5,) in the checkpoint" in message
    assert "changed: mismatched shape, (2,) here, (3,) in the checkpoint" in message
    assert "['other/*']" in message


@pytest.mark.parametrize(
    ("path", "ours", "theirs", "cause"),
    [
        ("obs_a_pos_embedding", (1, 12, 4, 8), (1, 10, 4, 8), "max_horizon is 12, .* has 10"),
        ("obs_a_pos_embedding", (1, 10, 16, 8), (1, 10, 4, 8), "16 tokens, .* has 4"),
        ("task_a_pos_embedding", (1, 20, 8), (1, 16, 8), "20 tokens, .* has 16.*max_length"),
        ("obs_a_pos_embedding", (1, 10, 4, 9), (1, 10, 4, 8), "embedding_dim is 9, .* has 8"),
    ],
)
def test_position_embeddings_that_do_not_fit_say_why(
    path: str, ours: tuple[int, ...], theirs: tuple[int, ...], cause: str
) -> None:
    with pytest.raises(UserError, match=cause):
        merge(tree(**{path: ours}), tree(**{path: theirs}))


def test_another_action_horizon_is_told_by_the_inputs_of_the_score_network() -> None:
    def head(flat_dim: int) -> dict[str, Any]:
        path = SCORE.replace("/", "__")
        return tree(
            **{
                f"{path}__Dense_0__kernel": (416 + flat_dim, 256),
                f"{path}__Dense_1__bias": (flat_dim,),
            }
        )

    with pytest.raises(UserError, match="action_horizon or action_dim differs") as caught:
        merge(head(14), head(28))
    assert "14 here, the checkpoint has 28: 430 against 444 inputs" in str(caught.value)


def _no_config(path: Path) -> None:
    (path / "config.json").unlink()


def _no_directory(path: Path) -> None:
    shutil.rmtree(path)


def _no_step(path: Path) -> None:
    (path / "100").rename(path / "300")


def _no_file(path: Path) -> None:
    (path / "100" / "default" / "checkpoint").unlink()


def _foreign_config(path: Path) -> None:
    (path / "config.json").write_text('{"architectures": ["T5EncoderModel"]}')


def _broken_config(path: Path) -> None:
    (path / "config.json").write_text('{"model": ')


def _foreign_params(path: Path) -> None:
    params = serialization.msgpack_serialize({"encoder": np.ones(3)})
    (path / "100" / "default" / "checkpoint").write_bytes(params)


def _garbage(path: Path) -> None:
    (path / "100" / "default" / "checkpoint").write_bytes(b"not msgpack at all")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_config, "config.json: expected .* found no such file"),
        (_no_directory, "found no such directory"),
        (_no_step, r"expected step 100; found the steps \[300\]"),
        (_no_file, "default/checkpoint: .* found no such file"),
        (_foreign_config, "expected the key 'model'"),
        (_broken_config, "config.json: expected JSON"),
        (_foreign_params, "keys .'heads_action', 'octo_transformer'.; found encoder"),
        (_garbage, "default/checkpoint: expected"),
    ],
)
def test_a_checkpoint_that_is_none_is_an_error(
    checkpoint: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(checkpoint)
    with pytest.raises(UserError, match=message):
        read_octo_checkpoint(checkpoint, 100)


@pytest.mark.parametrize("keep", [0, 1, 100, 40_000, 1_600_000, -1])
def test_a_truncated_checkpoint_is_an_error(checkpoint: Path, keep: int) -> None:
    path = checkpoint / "100" / "default" / "checkpoint"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="bytes that end early or are damaged"):
        read_octo_checkpoint(checkpoint, 100)


def test_settings_that_no_shape_shows_are_compared(golden_dir: Path, config: OctoConfig) -> None:
    theirs = read_octo(golden_dir / "ckpt_tiny", 100).config
    check_config(theirs, config, "here")
    other = dataclasses.replace(
        config,
        repeat_task_tokens=False,
        legacy_attention=True,
        head=dataclasses.replace(config.head, diffusion_steps=10),
    )
    message = r"repeat_task_tokens False, legacy_attention True, head\.diffusion_steps 10; found"
    with pytest.raises(UserError, match=message):
        check_config(theirs, other, "here")


def test_config_of_a_genuine_checkpoint_is_translated_and_every_weight_placed(
    golden_dir: Path, config: OctoConfig
) -> None:
    pretrained = read_octo(golden_dir / "ckpt_tiny", 100)
    assert pretrained.config == config
    fresh = init_params(pretrained.config, jax.random.key(0))
    _, report = merge(fresh, pretrained.params)
    assert {row.status for row in report.rows} == {"loaded"}
    assert len(report.rows) == 126


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (
            {"images": slice(0, 1)},
            "unused, none here.*the checkpoint has the input 'wrist'",
        ),
        (
            {"lowdims": (LowdimTokenizerConfig("proprio", "proprio", 8),)},
            "obs_proprio_pos_embedding: new.*the model has the input 'proprio', the checkpoint has",
        ),
        ({"head": RegressionConfig()}, "the checkpoint has a diffusion head, the model has none"),
        ({"head": RegressionConfig()}, "the model has an L1 or MSE head, the checkpoint has none"),
        ({"max_horizon": 12}, r"max_horizon is 12, the checkpoint has 5"),
        ({"head": DiffusionConfig(2, hidden_dim=64)}, "product is 14 here, the checkpoint has 28"),
        ({"embedding_dim": 32}, "embedding_dim is 32, the checkpoint has 64"),
    ],
)
def test_mismatch_is_told_with_its_likely_cause(
    golden_dir: Path, config: OctoConfig, change: dict, cause: str
) -> None:
    pretrained = read_octo(golden_dir / "ckpt_tiny", 100)
    if "images" in change:
        change = {"images": config.images[change["images"]]}
    changed = dataclasses.replace(config, **change)
    shapes = jax.eval_shape(lambda: init_params(changed, jax.random.key(0)))
    with pytest.raises(UserError, match=cause):
        account(shapes, pretrained.params)


@pytest.mark.parametrize(
    ("change", "differing", "new", "unused"),
    [
        ({"vggt": VGGTTokenizerConfig(6, 16)}, "octo_transformer/*vggt*", 5, 0),
        ({"lowdims": (LowdimTokenizerConfig("proprio", "proprio", 8),)}, "*/obs_proprio_*", 3, 0),
        ({"head": RegressionConfig()}, "heads_action/*", 17, 27),
        ({"images": 1}, "octo_transformer/*wrist*", 0, 21),
    ],
)
def test_a_model_is_adapted_by_naming_what_may_differ(
    golden_dir: Path, config: OctoConfig, change: dict, differing: str, new: int, unused: int
) -> None:
    pretrained = read_octo(golden_dir / "ckpt_tiny", 100)
    if "images" in change:
        change = {"images": config.images[: change["images"]]}
    changed = dataclasses.replace(config, **change)
    shapes = jax.eval_shape(lambda: init_params(changed, jax.random.key(0)))
    report = account(shapes, pretrained.params, Allowed((differing,)))
    statuses = [row.status for row in report.rows]
    assert (statuses.count("new"), statuses.count("unused")) == (new, unused)
    assert statuses.count("loaded") == 126 - unused


def test_another_image_size_is_told_and_fitted_on_request(
    golden_dir: Path, config: OctoConfig
) -> None:
    pretrained = read_octo(golden_dir / "ckpt_tiny", 100)
    larger = dataclasses.replace(config.images[0], image_size=96)
    changed = dataclasses.replace(config, images=(larger, config.images[1]), max_horizon=3)
    fresh = init_params(changed, jax.random.key(0))
    with pytest.raises(UserError, match=r"36 tokens, the checkpoint has 16: another image_size"):
        merge(fresh, pretrained.params)
    merged, report = merge(fresh, pretrained.params, Allowed(resized=("*_pos_embedding",)))
    how = {row.path: row.how for row in report.rows if row.status == "resized"}
    assert how == {
        "octo_transformer/obs_primary_pos_embedding": "the first 3 of 5 steps, "
        "4x4 tokens to 6x6, bilinear",
        "octo_transformer/obs_wrist_pos_embedding": "the first 3 of 5 steps",
        "octo_transformer/readout_action_pos_embedding": "the first 3 of 5 steps",
    }
    wrist = merged["octo_transformer"]["obs_wrist_pos_embedding"]
    kept = pretrained.params["octo_transformer"]["obs_wrist_pos_embedding"][:, :3]
    np.testing.assert_array_equal(wrist, kept)


def test_smooth_positions_stay_what_they_were_on_another_grid() -> None:
    # A plane over the grid is reproduced inside it.
    def plane(side: int) -> np.ndarray:
        center = (np.arange(side) + 0.5) / side
        x, y = np.meshgrid(center, center)
        return np.stack([x, y, x + y], axis=-1).reshape(1, 1, side**2, 3).astype(np.float32)

    resized, how = resize_positions(plane(8), (1, 1, 256, 3))
    inside = np.asarray(resized).reshape(16, 16, 3)[1:-1, 1:-1]
    np.testing.assert_allclose(inside, plane(16).reshape(16, 16, 3)[1:-1, 1:-1], atol=1e-5)
    assert how == "8x8 tokens to 16x16, bilinear"


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ((1, 12, 4, 8), (1, 10, 4, 8), "12 steps are wanted, 10 were trained"),
        ((1, 10, 5, 8), (1, 10, 4, 8), "4 and 5 tokens are no square grids"),
        ((1, 10, 4, 9), (1, 10, 4, 8), "differ in more than steps and tokens"),
    ],
)
def test_positions_that_cannot_be_fitted_say_why(ours: tuple, theirs: tuple, message: str) -> None:
    pairs = {"x_pos_embedding": ours}, {"x_pos_embedding": theirs}
    with pytest.raises(UserError, match=f"cannot be resized: {message}|{message}"):
        account(tree(**pairs[0]), tree(**pairs[1]), Allowed(resized=("*",)))
