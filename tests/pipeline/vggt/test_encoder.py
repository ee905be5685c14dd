"""The one way from images to tokens, with the recorded models and a tiny one."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.errors import UserError
from pipeline.loading.device import batch_sharding, make_mesh, replicated
from pipeline.vggt.aggregator_weights import VggtWeights, load_for, load_weights
from pipeline.vggt.encoder import VggtEncoder, resize_bicubic
from pipeline.vggt.encoder_spec import EncoderSpec
from tests.rounding import assert_equal_but_for_rounding

random_weights = functools.cache(load_weights)


@pytest.fixture(scope="module")
def weights() -> VggtWeights:
    return random_weights("random:tiny")


@pytest.fixture(scope="module")
def spec(weights: VggtWeights) -> EncoderSpec:
    return EncoderSpec(
        weights.source,
        weights.digest,
        weights.licence,
        cameras=("image_primary", "image_wrist"),
        model=weights.config,
        layers=(0, 1),
        image_size=(56, 56),
    )


@pytest.fixture(scope="module")
def encoder(spec: EncoderSpec, weights: VggtWeights) -> Callable[..., VggtEncoder]:
    """An encoder with other settings than `spec`, made once."""

    @functools.cache
    def make(**settings: Any) -> VggtEncoder:
        return VggtEncoder(dataclasses.replace(spec, **settings), weights)

    return make


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 2, 64, 48, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("model", "case", "size", "views"),
    [
        ("dino518", "dino518_s2_70", 70, "joint"),
        ("dino518", "dino518_s1_56", 56, "single"),
    ],
)
def test_from_a_file_to_the_recorded_tokens(
    model: str,
    case: str,
    size: int,
    views: str,
    golden_model: Callable,
    golden_case: Callable,
    tmp_path: pathlib.Path,
) -> None:
    golden, recorded = golden_model(model), golden_case(case)
    path = tmp_path / "model.safetensors"
    save_file(golden.tensors, path)
    layers = tuple(range(golden.config.num_layers))
    weights = load_weights(str(path), config=golden.config, licence="none")
    cameras = tuple(f"camera_{number}" for number in range(recorded["images_u8"].shape[1]))
    spec = EncoderSpec(
        str(path),
        weights.digest,
        "none",
        cameras,
        golden.config,
        layers,
        views=views,
        image_size=(size, size),
    )
    outputs = VggtEncoder(spec, weights).encode(recorded["images_u8"])
    assert tuple(outputs) == layers
    for layer, tokens in outputs.items():
        expected = recorded[f"output_list/{layer:02}"]
        assert tokens.shape == expected.shape == (len(expected), len(cameras), *spec.token_shape)
        error = np.sqrt(np.mean((np.asarray(tokens) - expected) ** 2)) / expected.std()
        assert error < 2e-6


def test_a_tiny_encoder_has_21_tokens_of_64(encoder: Callable, images: np.ndarray) -> None:
    tokens = encoder().encode(images)
    assert {layer: (t.shape, str(t.dtype)) for layer, t in tokens.items()} == {
        0: ((4, 2, 21, 64), "float32"),
        1: ((4, 2, 21, 64), "float32"),
    }
    assert all(0.1 < float(jnp.std(t)) < 10 for t in tokens.values())


def test_single_views_do_not_see_each_other_and_joint_ones_do(
    encoder: Callable, images: np.ndarray
) -> None:
    other = images.copy()
    other[:, 1] = 255 - other[:, 1]
    single, joint = encoder(), encoder(views="joint")
    one, two = single.encode(images)[1], single.encode(other)[1]
    np.testing.assert_array_equal(one[:, 0], two[:, 0])
    assert np.abs(one[:, 1] - two[:, 1]).max() > 0.1
    assert np.abs(joint.encode(images)[1][:, 0] - joint.encode(other)[1][:, 0]).max() > 0.01


def test_steps_do_not_see_each_other(encoder: Callable, images: np.ndarray) -> None:
    """What a rollout encodes step by step is what a dataset got in batches."""
    for views in ("single", "joint"):
        encode = encoder(views=views).encode
        together = encode(images)[1]
        alone = [encode(images[i : i + 1])[1] for i in range(len(images))]
        assert_equal_but_for_rounding(jnp.concatenate(alone), together)


def test_images_are_brought_to_size_and_may_differ_in_it(
    encoder: Callable, images: np.ndarray
) -> None:
    encode = encoder().encode
    small = np.asarray(resize_bicubic(jnp.asarray(images[:, 1]), 56, 56))
    assert_equal_but_for_rounding(encode([images[:, 0], small])[1], encode(images)[1])


def test_all_devices_share_a_batch_and_send_each_other_nothing(
    spec: EncoderSpec, encoder: Callable, images: np.ndarray
) -> None:
    mesh = make_mesh()
    sharding = batch_sharding(mesh, len(images))
    spread = random_weights("random:tiny", sharding=replicated(mesh))
    for views in ("single", "joint"):
        of_views = dataclasses.replace(spec, views=views)
        parallel = VggtEncoder(of_views, spread, sharding)
        tokens = parallel.encode(images)[1]
        assert tokens.sharding.is_equivalent_to(sharding, 4)
        alone = encoder(views=views).encode(images)[1]
        assert_equal_but_for_rounding(tokens, alone)
        compiled = parallel.compiled(images).as_text()
        assert not [
            name
            for name in ("all-gather", "all-reduce", "collective", "all-to-all")
            if name in compiled
        ]


def test_bfloat16_is_near_and_comes_out_as_float32(
    spec: EncoderSpec, encoder: Callable, images: np.ndarray
) -> None:
    rounded = random_weights("random:tiny", dtype="bfloat16")
    fine = encoder().encode(images)[1]
    coarse = VggtEncoder(dataclasses.replace(spec, compute_dtype="bfloat16"), rounded)
    tokens = coarse.encode(images)[1]
    assert tokens.dtype == jnp.float32
    error = float(jnp.sqrt(jnp.mean((tokens - fine) ** 2)) / jnp.std(fine))
    assert 1e-4 < error < 2e-2


def test_later_blocks_do_not_run(spec: EncoderSpec, encoder: Callable, images: np.ndarray) -> None:
    of_one = VggtEncoder(
        dataclasses.replace(spec, layers=(0,)), random_weights("random:tiny", layers=(0,))
    )
    expected = encoder().encode(images)[0]
    assert_equal_but_for_rounding(of_one.encode(images)[0], expected)
    of_all = encoder(layers=(0,))
    blocks = jax.tree.leaves(of_all.params["blocks"])
    assert {leaf.shape[0] for leaf in blocks} == {1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights_digest": "0" * 32}, r"random:tiny: expected digest 0{32}; found digest 377f3"),
        ({"compute_dtype": "bfloat16"}, "expected compute_dtype bfloat16; found compute_dtype flo"),
    ],
)
def test_weights_of_another_encoder_are_refused(
    settings: dict[str, Any], message: str, spec: EncoderSpec, weights: VggtWeights
) -> None:
    with pytest.raises(UserError, match=message):
        VggtEncoder(dataclasses.replace(spec, **settings), weights)


def test_weights_without_the_layer_are_refused(spec: EncoderSpec) -> None:
    some = random_weights("random:tiny", layers=(0,))
    with pytest.raises(UserError, match="expected layers up to 1; found layers up to 0"):
        VggtEncoder(spec, some)


def test_a_spec_finds_its_weights_again(spec: EncoderSpec, weights: VggtWeights) -> None:
    again = load_for(dataclasses.replace(spec, layers=(0,)))
    assert (again.digest, again.num_layers) == (weights.digest, 1)
    with pytest.raises(UserError, match="Load the weights that the tokens were made with: random"):
        load_for(dataclasses.replace(spec, weights_digest="0" * 32))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda images: images.astype(np.float32), r"float32\[4, 64, 48, 3\], float32"),
        (lambda images: images[:, :1], r"uint8\[4, 64, 48, 3\]\."),
        (lambda images: images[..., :1], r"uint8\[4, 64, 48, 1\]"),
        (lambda images: [images[:, 0], images[:2, 1]], r"uint8\[4, .*\], uint8\[2, "),
        (lambda images: images[:, :, None], r"uint8\[4, 1, 64, 48, 3\]"),
    ],
)
def test_other_images_are_refused(
    change: Callable, found: str, encoder: Callable, images: np.ndarray
) -> None:
    message = rf"image_primary, image_wrist: expected uint8\[b, y, x, 3\] of 2 cameras.*{found}"
    with pytest.raises(UserError, match=message):
        encoder().encode(change(images))


def test_a_batch_that_the_devices_do_not_divide_is_refused(
    spec: EncoderSpec, images: np.ndarray
) -> None:
    mesh = make_mesh()
    spread = random_weights("random:tiny", sharding=replicated(mesh))
    encoder = VggtEncoder(spec, spread, batch_sharding(mesh, 4))
    with pytest.raises(UserError, match=r"b a multiple of 2; found uint8\[3, "):
        encoder.encode(images[:3])
