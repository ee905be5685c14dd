import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pipeline.errors import DataError, UserError
from pipeline.loading.device import make_mesh, replicated
from pipeline.vggt import weight_sources
from pipeline.vggt.aggregator_weights import load_weights, save_weights
from pipeline.vggt.encoder_spec import VggtConfig, tiny, vggt_1b

LICENCE = "a licence"


@pytest.fixture(scope="module")
def config(golden_model: Callable) -> Any:
    return golden_model("dino70").config


def changed(file: pathlib.Path, to: pathlib.Path, change: Callable) -> str:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, to)
    return str(to)


def test_every_number_of_a_file_is_in_its_place(
    golden_model: Callable, weights_file: pathlib.Path
) -> None:
    model = golden_model("dino70")
    weights = load_weights(str(weights_file), config=model.config, licence=LICENCE)
    jax.tree.map(np.testing.assert_array_equal, weights.params, model.params)
    assert weights.num_layers == 2
    assert weights.licence == LICENCE
    assert {leaf.dtype for leaf in jax.tree.leaves(weights.params)} == {jnp.dtype("float32")}


def test_a_directory_stands_for_the_file_in_it(weights_file: pathlib.Path, config: Any) -> None:
    weights = load_weights(str(weights_file.parent), config=config, licence=LICENCE)
    assert weights.digest == "13d4e1ec7d9d2eb18fbb84a34d2702d5"


def test_blocks_after_the_last_layer_are_left_out_but_counted_in_the_digest(
    weights_file: pathlib.Path, config: Any
) -> None:
    whole = load_weights(str(weights_file), config=config, licence=LICENCE)
    some = load_weights(str(weights_file), config=config, licence=LICENCE, layers=(0,))
    assert some.num_layers == 1
    assert some.digest == whole.digest
    for of_some, of_whole in zip(
        jax.tree.leaves(some.params["blocks"]), jax.tree.leaves(whole.params["blocks"]), strict=True
    ):
        np.testing.assert_array_equal(of_some, of_whole[:1])
    with pytest.raises(ValueError, match=r"layers must be from 0 to 1, not \(2,\)"):
        load_weights(str(weights_file), config=config, licence=LICENCE, layers=(2,))


def test_matrices_take_the_dtype_and_vectors_stay(weights_file: pathlib.Path, config: Any) -> None:
    weights = load_weights(str(weights_file), config=config, licence=LICENCE, dtype="bfloat16")
    flat = jax.tree_util.tree_leaves_with_path(weights.params)
    dtypes = {jax.tree_util.keystr(path): str(leaf.dtype) for path, leaf in flat}
    assert {dtype for path, dtype in dtypes.items() if "kernel" in path} == {"bfloat16"}
    assert {dtype for path, dtype in dtypes.items() if "kernel" not in path} == {"float32"}


def test_the_digest_knows_the_tensors_and_not_the_file(
    weights_file: pathlib.Path, config: Any, tmp_path: pathlib.Path
) -> None:
    def digest(change: Callable[[dict[str, np.ndarray]], Any]) -> str:
        path = changed(weights_file, tmp_path / "changed.safetensors", change)
        return load_weights(path, config=config, licence=LICENCE).digest

    def shrink(tensors: dict[str, np.ndarray]) -> None:
        tensors.update({key: t.astype(ml_dtypes.bfloat16) for key, t in tensors.items()})

    def swap(tensors: dict[str, np.ndarray]) -> None:
        one, other = (
            f"aggregator.{kind}_blocks.1.attn.proj.weight" for kind in ("frame", "global")
        )
        tensors[one], tensors[other] = tensors[other], tensors[one]

    original = digest(lambda _: None)
    assert digest(lambda tensors: tensors.pop("camera_head.poses.weight")) == original
    other = digest(lambda tensors: tensors["aggregator.camera_token"].__setitem__((0, 0, 0, 0), 9))
    assert len({original, other, digest(swap), digest(shrink)}) == 4


def test_all_that_does_not_fit_is_reported_at_once(
    weights_file: pathlib.Path, config: Any, tmp_path: pathlib.Path
) -> None:
    def corrupt(tensors: dict[str, np.ndarray]) -> None:
        del tensors["aggregator.frame_blocks.1.ls1.gamma"]
        tensors["aggregator.global_blocks.2.ls1.gamma"] = np.ones(64, np.float32)
        tensors["aggregator.camera_token"] = np.ones((1, 2, 1, 32), np.float32)
        tensors["aggregator.patch_embed.norm.bias"] = np.ones(64, np.int32)

    path = changed(weights_file, tmp_path / "corrupt.safetensors", corrupt)
    with pytest.raises(UserError) as caught:
        load_weights(path, config=config, licence=LICENCE)
    assert str(caught.value) == (
        f"{path}: expected the 96 tensors aggregator.* of the model; found 96 of them, 4 not as "
        "expected: aggregator.frame_blocks.1.ls1.gamma is missing; "
        "aggregator.global_blocks.2.ls1.gamma has no place; "
        "aggregator.camera_token is F32[1, 2, 1, 32], not F32/BF16/F16[1, 2, 1, 64]; "
        "aggregator.patch_embed.norm.bias is I32[64], not F32/BF16/F16[64]. "
        "Name the weights of this model, or the model of these weights."
    )


def test_numbers_that_are_not_finite_are_refused(
    weights_file: pathlib.Path, config: Any, tmp_path: pathlib.Path
) -> None:
    def corrupt(tensors: dict[str, np.ndarray]) -> None:
        tensors["aggregator.frame_blocks.0.mlp.fc1.weight"][0, :2] = np.nan, np.inf

    path = changed(weights_file, tmp_path / "corrupt.safetensors", corrupt)
    with pytest.raises(DataError, match=r"frame_blocks\.0\.mlp\.fc1\.weight: .* found 2 that are"):
        load_weights(path, config=config, licence=LICENCE)


def test_a_file_that_is_cut_or_missing_is_reported(
    weights_file: pathlib.Path, config: Any, tmp_path: pathlib.Path
) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights_file.read_bytes()[:100_000])
    with pytest.raises(DataError, match=r"cut\.safetensors: expected a file of safetensors that"):
        load_weights(str(cut), config=config, licence=LICENCE)
    with pytest.raises(DataError, match=r"none\.safetensors: expected a file; found none"):
        load_weights(str(tmp_path / "none.safetensors"), config=config, licence=LICENCE)
    with pytest.raises(DataError, match=r"model\.safetensors: expected a file; found none"):
        load_weights(str(tmp_path), config=config, licence=LICENCE)


def test_random_weights_say_that_they_are_untrained(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        weights = load_weights("random:tiny")
    assert "random:tiny: UNTRAINED weights" in caplog.text
    assert weights.config == tiny()
    assert weights.licence == "none: random numbers"
    assert weights.digest == "377f37868d1ad21e7ac25fa548935f74"
    with pytest.raises(UserError, match="expected random:tiny or random:vggt_1b; found big"):
        load_weights("random:big")
    with pytest.raises(UserError, match="with VggtConfig"):
        load_weights("random:tiny", config=vggt_1b())


@pytest.mark.parametrize(
    ("source", "licence"),
    [
        ("hf://facebook/VGGT-1B/model.safetensors", "CC-BY-NC-4.0"),
        ("hf://facebook/VGGT-1B", "CC-BY-NC-4.0"),
        ("hf://facebook/VGGT-1B@v1", "CC-BY-NC-4.0"),
        ("hf://facebook/VGGT-1B-Commercial", "vggt-aup-license"),
    ],
)
def test_licences_on_the_hub_are_known(source: str, licence: str) -> None:
    assert weight_sources.licence_of(source) == licence
    assert weight_sources.licence_of(source, LICENCE) == LICENCE


def test_a_licence_that_is_not_known_must_be_named(weights_file: pathlib.Path) -> None:
    with pytest.raises(UserError, match="expected the licence of the weights"):
        load_weights(str(weights_file))


def test_the_hub_is_asked_for_the_one_file(
    weights_file: pathlib.Path, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(path: str) -> pathlib.Path:
        asked.append(path)
        return weights_file

    monkeypatch.setattr(weight_sources, "fetch", fetch)
    for source in ("hf://facebook/VGGT-1B", "hf://facebook/VGGT-1B/model.safetensors"):
        assert load_weights(source, config=config).licence == "CC-BY-NC-4.0"
    assert asked == ["hf://facebook/VGGT-1B/model.safetensors"] * 2


def test_every_device_holds_the_weights(weights_file: pathlib.Path, config: Any) -> None:
    sharding = replicated(make_mesh())
    weights = load_weights(str(weights_file), config=config, licence=LICENCE, sharding=sharding)
    for leaf in jax.tree.leaves(weights.params):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        assert leaf.is_fully_replicated
        assert leaf.sharding.num_devices == 2


@pytest.fixture
def written(golden_model: Callable, tmp_path: pathlib.Path) -> pathlib.Path:
    """The parameters of `dino70`, written by this project."""
    model, path = golden_model("dino70"), tmp_path / "written.safetensors"
    provenance = {"trained_on": "scenes"}
    save_weights(path, model.params, model.config, licence=LICENCE, provenance=provenance)
    return path


def test_written_weights_are_the_tensors_they_were_read_from(
    golden_model: Callable, weights_file: pathlib.Path, config: VggtConfig, written: pathlib.Path
) -> None:
    tensors = load_file(written)
    assert tensors.keys() == golden_model("dino70").tensors.keys()
    for key, tensor in golden_model("dino70").tensors.items():
        np.testing.assert_array_equal(tensors[key], tensor)
    original = load_weights(str(weights_file), config=config, licence=LICENCE)
    assert load_weights(str(written)).digest == original.digest
    assert [path.name for path in written.parent.iterdir()] == ["written.safetensors"]


def test_written_weights_state_their_sizes_licence_and_provenance(
    config: VggtConfig, written: pathlib.Path
) -> None:
    weights = load_weights(str(written))
    assert weights.config == config
    assert weights.licence == LICENCE
    assert load_weights(str(written), licence="another").licence == "another"
    with safe_open(written, framework="numpy") as file:
        assert file.metadata()["trained_on"] == "scenes"
    with pytest.raises(
        UserError, match=r"written\.safetensors: expected weights of VggtConfig\(dim"
    ):
        load_weights(str(written), config=tiny())


def test_a_header_with_other_sizes_is_reported(
    written: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path = str(tmp_path / "other.safetensors")
    save_file(load_file(written), path, {"vggt_config": '{"dim": "64"}'})
    with pytest.raises(
        DataError, match=r"other\.safetensors, vggt_config: expected a valid VggtCon"
    ):
        load_weights(path)
