import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipeline.errors import UserError
from tests.parameters import random_params
from train.octo.functional import init_params
from train.octo.octo_config import (
    BinsConfig,
    DiffusionConfig,
    LowdimTokenizerConfig,
    OctoConfig,
    RegressionConfig,
    VGGTTokenizerConfig,
)
from train.octo.released.octo_checkpoint import OctoCheckpoint
from train.octo.released.weight_loading import (
    Allowed,
    Layout,
    Pretrained,
    account,
    check_config,
    layout_of,
    merge,
    resize_positions,
)


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


def test_equal_trees_load_whole_and_keep_the_models_dtype(config: OctoConfig) -> None:
    target = {"a": {"kernel": jnp.zeros((2, 3), jnp.bfloat16)}}
    merged, report = merge(config, target, Pretrained(config, tree(a__kernel=(2, 3))))
    assert merged["a"]["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(merged["a"]["kernel"], np.ones((2, 3)))
    np.testing.assert_array_equal(target["a"]["kernel"], np.zeros((2, 3)))
    assert [dataclasses.astuple(row) for row in report.rows] == [
        ("a/kernel", "loaded", (2, 3), (2, 3), "")
    ]
    assert report.summary() == "1 loaded (6 parameters)"


def test_what_is_expected_to_differ_keeps_its_fresh_values_and_is_reported(
    config: OctoConfig,
) -> None:
    target = tree(obs_vggt=(4,), head=(2,), kept=(3,))
    merged, report = merge(
        config,
        {name: leaf * 7 for name, leaf in target.items()},
        Pretrained(config, tree(obs_wrist=(5,), head=(9,), kept=(3,))),
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


def test_all_surprises_are_named_in_one_error(config: OctoConfig) -> None:
    checkpoint = Pretrained(config, tree(unused=(5,), changed=(3,)))
    with pytest.raises(UserError, match="3 others") as caught:
        merge(config, tree(new=(4,), changed=(2,)), checkpoint, Allowed(["other/*"]))
    message = str(caught.value)
    assert "new: new, (4,) here, none in the checkpoint" in message
    assert "unused: unused, none here, (5,) in the checkpoint" in message
    assert "changed: mismatched shape, (2,) here, (3,) in the checkpoint" in message
    assert "['other/*']" in message


PROPRIO = LowdimTokenizerConfig("proprio", "proprio", 8, BinsConfig(16, "uniform", -2.0, 2.0))


@pytest.mark.parametrize(
    ("field", "value", "expected", "found"),
    [
        ("repeat_task_tokens", False, "repeat_task_tokens False", "repeat_task_tokens True"),
        ("legacy_attention", True, "legacy_attention True", "legacy_attention False"),
        ("head.diffusion_steps", 10, "head.diffusion_steps 10", "head.diffusion_steps 20"),
        ("head.max_action", 1.0, "head.max_action 1.0", "head.max_action 5.0"),
        ("head.prediction", "action", "head.prediction action", "head.prediction noise"),
        (
            "head",
            DiffusionConfig(7, 4, hidden_dim=64),
            "head.(action_horizon, action_dim) of 28 numbers (7, 4)",
            "head.(action_horizon, action_dim) of 28 numbers (4, 7)",
        ),
        (
            "images.observation_key",
            "image_front",
            "images.primary.observation_key image_front",
            "images.primary.observation_key image_primary",
        ),
        (
            "lowdims.observation_key",
            "joints",
            "lowdims.proprio.observation_key joints",
            "lowdims.proprio.observation_key proprio",
        ),
        (
            "lowdims.bins",
            BinsConfig(16, "normal"),
            "lowdims.proprio.bins.spacing normal",
            "lowdims.proprio.bins.spacing uniform",
        ),
        (
            "lowdims.bins",
            BinsConfig(16, "uniform", -1.0, 3.0),
            "lowdims.proprio.bins.(low, high) (-1.0, 3.0)",
            "lowdims.proprio.bins.(low, high) (-2.0, 2.0)",
        ),
        (
            "language.t5.max_distance",
            64,
            "language.t5.max_distance 64",
            "language.t5.max_distance 128",
        ),
    ],
)
def test_a_setting_that_no_shape_shows_is_compared(
    config: OctoConfig, field: str, value: Any, expected: str, found: str
) -> None:
    theirs = dataclasses.replace(config, lowdims=(PROPRIO,))
    check_config(theirs, theirs, "here")
    with pytest.raises(UserError) as caught:
        check_config(theirs, replaced(theirs, field, value), "here")
    assert (caught.value.expected, caught.value.found) == (expected, found)


def replaced(config: Any, field: str, value: Any) -> Any:
    """Returns a config with another value at a dotted path; of a tuple the first is meant."""
    name, _, rest = field.partition(".")
    part = getattr(config, name)
    if rest and isinstance(part, tuple):
        value = (replaced(part[0], rest, value), *part[1:])
    elif rest:
        value = replaced(part, rest, value)
    return dataclasses.replace(config, **{name: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("head", DiffusionConfig(8, max_action=2.0, diffusion_steps=20, hidden_dim=64)),
        ("head", RegressionConfig(max_action=2.0)),
        ("lowdims", ()),
        ("lowdims.bins", None),
        ("lowdims.bins.num_bins", 8),
        ("language", None),
        ("vggt", VGGTTokenizerConfig(6, 16)),
        ("remat", True),
        ("compute_dtype", "bfloat16"),
    ],
)
def test_what_changes_no_meaning_or_is_seen_in_the_shapes_is_not_compared(
    config: OctoConfig, field: str, value: Any
) -> None:
    theirs = dataclasses.replace(config, lowdims=(PROPRIO,))
    if isinstance(value, DiffusionConfig):
        value = dataclasses.replace(value, max_action=config.head.max_action)
    check_config(theirs, replaced(theirs, field, value), "here")


def test_bounds_that_normal_bins_do_not_use_are_not_compared(config: OctoConfig) -> None:
    theirs, ours = (
        replaced(config, "lowdims", (dataclasses.replace(PROPRIO, bins=bins),))
        for bins in (BinsConfig(16, "normal"), BinsConfig(16, "normal", low=-3.0))
    )
    check_config(theirs, ours, "here")


def test_all_settings_that_differ_are_named_at_once(golden_dir: Path, config: OctoConfig) -> None:
    theirs = OctoCheckpoint(str(golden_dir / "ckpt_tiny"), 100).load().config
    check_config(theirs, config, "here")
    head = dataclasses.replace(config.head, diffusion_steps=10)
    other = dataclasses.replace(config, repeat_task_tokens=False, legacy_attention=True, head=head)
    message = r"head\.diffusion_steps 10, repeat_task_tokens False, legacy_attention True; found"
    with pytest.raises(UserError, match=message):
        check_config(theirs, other, "here")


def test_config_of_a_genuine_checkpoint_is_translated_and_every_weight_placed(
    golden_dir: Path, config: OctoConfig
) -> None:
    pretrained = OctoCheckpoint(str(golden_dir / "ckpt_tiny"), 100).load()
    assert pretrained.config == config
    fresh = random_params(pretrained.config)
    _, report = merge(config, fresh, pretrained)
    assert {row.status for row in report.rows} == {"loaded"}
    assert len(report.rows) == 126


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
    pretrained = OctoCheckpoint(str(golden_dir / "ckpt_tiny"), 100).load()
    if "images" in change:
        change = {"images": config.images[: change["images"]]}
    changed = dataclasses.replace(config, **change)
    shapes = jax.eval_shape(lambda: init_params(changed, jax.random.key(0)))
    report = account(changed, shapes, pretrained, Allowed((differing,)))
    statuses = [row.status for row in report.rows]
    assert (statuses.count("new"), statuses.count("unused")) == (new, unused)
    assert statuses.count("loaded") == 126 - unused


def test_another_image_size_is_reported_and_fitted_on_request(
    golden_dir: Path, config: OctoConfig
) -> None:
    pretrained = OctoCheckpoint(str(golden_dir / "ckpt_tiny"), 100).load()
    larger = dataclasses.replace(config.images[0], image_size=96)
    changed = dataclasses.replace(config, images=(larger, config.images[1]), max_horizon=3)
    fresh = random_params(changed)
    with pytest.raises(UserError, match=r"images.primary.image_size is 96, the checkpoint has 64"):
        merge(changed, fresh, pretrained)
    merged, report = merge(changed, fresh, pretrained, Allowed(resized=("*_pos_embedding",)))
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


def test_a_model_takes_the_weights_of_an_old_release(
    golden_dir: Path, config: OctoConfig, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(golden_dir / "ckpt_tiny", tmp_path / "octo-1.0"))
    whole = json.loads((checkpoint / "config.json").read_text())
    model = whole["model"]
    del model["repeat_task_tokens"], model["use_correct_attention"]
    head = model["heads"]["action"]["kwargs"]
    head["pred_horizon"] = head.pop("action_horizon")
    (checkpoint / "config.json").write_text(json.dumps(whole))

    old = dataclasses.replace(config, repeat_task_tokens=False, legacy_attention=True)
    pretrained = OctoCheckpoint(str(checkpoint), None).load()
    assert pretrained.config == old
    check_config(pretrained.config, old, "here")
    params, report = merge(old, random_params(old), pretrained)
    assert report.summary() == "126 loaded (421,644 parameters)"
    jax.tree.map(np.testing.assert_array_equal, params, pretrained.params)
    message = "repeat_task_tokens True, legacy_attention False; found repeat_task_tokens False"
    with pytest.raises(UserError, match=message):
        check_config(pretrained.config, config, "here")


def test_only_what_can_be_fitted_is_resized(golden_dir: Path, config: OctoConfig) -> None:
    pretrained = OctoCheckpoint(str(golden_dir / "ckpt_tiny"), 100).load()
    shorter = dataclasses.replace(config, language=replaced(config.language, "max_length", 9))
    fresh = random_params(shorter)
    merged, report = merge(shorter, fresh, pretrained, Allowed(resized=("*_pos_embedding",)))
    how = {row.path: row.how for row in report.rows if row.status == "resized"}
    assert how == {"octo_transformer/task_language_pos_embedding": "the first 9 of 16 tokens"}
    kept = pretrained.params["octo_transformer"]["task_language_pos_embedding"][:, :9]
    np.testing.assert_array_equal(merged["octo_transformer"]["task_language_pos_embedding"], kept)
    longer = replaced(config, "language.max_length", 25)
    message = (
        r"task_language_pos_embedding: mismatched shape, \(1, 25, 64\) here, .*"
        r"cannot be resized: 25 tokens are wanted, 16 were trained"
    )
    for changed, expected in (
        (longer, message),
        (replaced(config, "num_readouts", 4), "1 were tra"),
    ):
        shapes = jax.eval_shape(lambda c=changed: init_params(c, jax.random.key(0)))
        with pytest.raises(UserError, match=expected):
            account(changed, shapes, pretrained, Allowed(resized=("*",)))


@pytest.mark.parametrize(
    ("group", "layout"),
    [
        ("obs_wrist", "grid"),
        ("obs_wris", "fixed"),
        ("obs_vggt", "fixed"),
        ("obs_proprio", "fixed"),
        ("readout_action", "fixed"),
        ("task_language", "sequence"),
    ],
)
def test_only_a_cameras_tokens_are_a_grid(config: OctoConfig, group: str, layout: Layout) -> None:
    assert layout_of(f"octo_transformer/{group}_pos_embedding", config) == layout


def test_smooth_positions_stay_what_they_were_on_another_grid() -> None:
    # A plane over the grid is reproduced inside it.
    def plane(side: int) -> np.ndarray:
        center = (np.arange(side) + 0.5) / side
        x, y = np.meshgrid(center, center)
        return np.stack([x, y, x + y], axis=-1).reshape(1, 1, side**2, 3).astype(np.float32)

    resized, how = resize_positions(plane(8), (1, 1, 256, 3), "grid")
    inside = np.asarray(resized).reshape(16, 16, 3)[1:-1, 1:-1]
    np.testing.assert_allclose(inside, plane(16).reshape(16, 16, 3)[1:-1, 1:-1], atol=1e-5)
    assert how == "8x8 tokens to 16x16, bilinear"


def test_of_a_shorter_text_the_first_positions_are_kept() -> None:
    values = np.arange(16, dtype=np.float32).reshape(1, 16, 1)
    resized, how = resize_positions(values, (1, 9, 1), "sequence")
    np.testing.assert_array_equal(resized[0, :, 0], np.arange(9))
    assert how == "the first 9 of 16 tokens"


def test_of_a_shorter_window_the_first_steps_are_kept_whatever_the_tokens_are() -> None:
    values = np.arange(10, dtype=np.float32).reshape(1, 10, 1, 1)
    resized, how = resize_positions(values, (1, 4, 1, 1), "fixed")
    np.testing.assert_array_equal(resized.ravel(), np.arange(4))
    assert how == "the first 4 of 10 steps"


@pytest.mark.parametrize(
    ("layout", "ours", "theirs", "message"),
    [
        ("grid", (1, 12, 4, 8), (1, 10, 4, 8), "12 steps are wanted, 10 were trained"),
        ("grid", (1, 10, 5, 8), (1, 10, 4, 8), "4 and 5 tokens are not square grids"),
        ("grid", (1, 10, 4, 9), (1, 10, 4, 8), "differ in more than steps and tokens"),
        ("sequence", (1, 25, 8), (1, 16, 8), "25 tokens are wanted, 16 were trained"),
        ("fixed", (1, 10, 9, 8), (1, 10, 4, 8), "9 tokens are wanted, 4 were trained, and only"),
        ("fixed", (1, 10, 1, 8), (1, 10, 4, 8), "only those of a camera or an instruction"),
    ],
)
def test_positions_that_cannot_be_fitted_say_why(
    layout: Layout, ours: tuple, theirs: tuple, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        resize_positions(np.ones(theirs, np.float32), ours, layout)
