"""What is stored is what a rollout makes: pooled and coded by one way."""

import dataclasses
import re
from collections.abc import Callable

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from pipeline.data.token_provenance import TokenOrigin
from pipeline.errors import DataError, UserError
from pipeline.vggt.aggregator_weights import VggtWeights, load_weights
from pipeline.vggt.encoder import VggtEncoder
from pipeline.vggt.encoder_spec import EncoderSpec, tiny
from pipeline.vggt.token_storage import TokenEncoder, merged_spec, pooling

KEY = "observation/t"


@pytest.fixture(scope="module")
def weights() -> VggtWeights:
    return load_weights("random:tiny")


@pytest.fixture(scope="module")
def encoder(weights: VggtWeights) -> VggtEncoder:
    return VggtEncoder(spec(weights), weights)


def spec(weights: VggtWeights, **fields) -> EncoderSpec:
    fields = {"model": tiny(), "layers": (1,), "image_size": (56, 56)} | fields
    return EncoderSpec("random:tiny", weights.digest, "none", **fields)


@pytest.fixture
def make(encoder: VggtEncoder) -> Callable[..., TokenEncoder]:
    def build(keep: str = "all", store="f16"):
        kept = {"all": "all", "registers": "special"}.get(keep, "patches")
        of = dataclasses.replace(encoder.spec, kept=kept)
        return TokenEncoder(encoder, {KEY: TokenOrigin(of, "image_primary", keep, store, 0.0)})

    return build


def tokens(num_tokens: int = 21, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((3, num_tokens, 64), np.float32)


def stored(encoder: TokenEncoder, values: np.ndarray) -> np.ndarray:
    """Packed, written and read back."""
    packed = encoder.pack(encoder.reduce({KEY: jnp.asarray(values)}))
    return encoder.read(encoder.records(packed, ["a", "b", "c"]))[KEY]


def nrmse(found: np.ndarray, values: np.ndarray) -> float:
    error = found.astype(np.float64) - values
    return float(np.sqrt((error**2).mean() / (values.astype(np.float64) ** 2).mean()))


@pytest.mark.parametrize("store", ["f16", "bf16"])
def test_half_precision_is_rounded_once(make: Callable, store: str) -> None:
    values = tokens()
    dtype = np.float16 if store == "f16" else ml_dtypes.bfloat16
    found = stored(make(store=store), values)
    assert found.dtype == (np.float16 if store == "f16" else np.float32)
    np.testing.assert_array_equal(found.astype(dtype), values.astype(dtype))


@pytest.mark.parametrize(
    ("store", "least", "most"),
    [("f16", 1.9e-4, 2.3e-4), ("bf16", 1.5e-3, 1.9e-3), ("int8", 5.0e-3, 5.5e-3)],
)
def test_errors_of_normal_numbers(make: Callable, store: str, least: float, most: float) -> None:
    values = tokens()
    assert least < nrmse(stored(make(store=store), values), values) < most


def test_int8_keeps_special_tokens_and_errs_by_half_a_scale_at_most(make: Callable) -> None:
    values = tokens()
    values[:, :5] *= 100
    found = stored(make(store="int8"), values)
    np.testing.assert_array_equal(found[:, :5], values[:, :5].astype(np.float16))
    scales = np.abs(values[:, 5:]).max(axis=-1, keepdims=True) / 127
    assert (np.abs(found[:, 5:] - values[:, 5:]) <= 0.50001 * scales).all()


def test_int8_of_tiny_and_of_no_values(make: Callable) -> None:
    values = tokens() * np.float32(1e-44)
    values[1] = 0
    found = stored(make(store="int8"), values)
    assert np.abs(found - values).max() <= 1e-43


def test_pooled_cells_are_means_of_patches(make: Callable) -> None:
    values = tokens(16)
    found = stored(make("pool:4"), values)
    grid = values.reshape(3, 2, 2, 2, 2, 64)
    np.testing.assert_allclose(found, grid.mean(axis=(2, 4)).reshape(3, 4, 64), atol=2e-3)


def test_a_grid_that_does_not_divide_shares_patches(weights: VggtWeights) -> None:
    of = spec(weights, image_size=(70, 42))
    shares = pooling(of, 2)
    assert shares.shape == (4, 15)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    row = shares[0].reshape(5, 3)  # 3 of 5 rows, 2 of 3 columns
    np.testing.assert_allclose(row[:3, :2], 1 / 6)
    assert np.count_nonzero(row) == 6


@pytest.mark.parametrize(
    ("store", "value", "message"),
    [
        (
            "f16",
            65600,
            "b, observation/t: expected tokens up to 65504, the largest that f16 ho",
        ),
        ("int8", 65600, "b, observation/t: expected tokens up to 65504, the largest that int8 h"),
        (
            "bf16",
            np.inf,
            "b, observation/t: expected finite tokens; found tokens of which one",
        ),
        ("f16", np.nan, "b, observation/t: expected finite tokens; found tokens of which one"),
    ],
)
def test_tokens_that_cannot_be_stored_are_refused(
    make: Callable, store: str, value: float, message: str
) -> None:
    values = tokens()
    values[1, 2, 3] = -value
    with pytest.raises(DataError, match=re.escape(message)):
        stored(make(store=store), values)


def test_what_fills_a_batch_up_is_not_looked_at(make: Callable) -> None:
    values = tokens()
    values[2] = np.nan
    encoder = make()
    packed = encoder.pack({KEY: jnp.asarray(values)})
    assert len(encoder.records(packed, ["a", "b"])) == 2


def test_large_tokens_fit_bfloat16_and_int8_of_patches(make: Callable) -> None:
    values = tokens(16) * np.float32(1e6)
    for store in ("bf16", "int8"):
        assert nrmse(stored(make("patches", store), values), values) < 7e-3


# --- one encoder for features


def test_features_of_a_job_have_one_encoder(weights: VggtWeights) -> None:
    def origin(layer: int, camera: str) -> TokenOrigin:
        of = spec(weights, layers=(layer,), cameras=(camera,))
        return TokenOrigin(of, camera, "all", "f16", 0.0)

    origins = {
        "a": origin(1, "image_primary"),
        "b": origin(0, "image_primary"),
        "c": origin(1, "image_wrist"),
    }
    merged = merged_spec(origins)
    assert (merged.layers, merged.cameras) == ((0, 1), ("image_primary", "image_wrist"))


@pytest.mark.parametrize(
    "other",
    [
        {"image_size": (70, 70)},
        {"views": "joint"},
        {"views": "joint", "cameras": ("image_wrist", "image_primary")},
    ],
)
def test_features_that_no_encoder_makes_together_are_refused(
    weights: VggtWeights, other: dict
) -> None:
    first = spec(weights, views=other.get("views", "single"))
    if "cameras" not in other and "views" in other:
        first = spec(weights)
    pair = [
        TokenOrigin(s, "image_primary", "all", "f16", 0.0) for s in (first, spec(weights, **other))
    ]
    with pytest.raises(UserError, match="the features a, b: expected one encoder for all of them"):
        merged_spec(dict(zip("ab", pair, strict=True)))


def test_images_become_what_a_batch_holds(make: Callable, encoder: VggtEncoder) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 48, 3), np.uint8)
    (found,) = make(store="f16")([images]).values()
    direct = np.asarray(encoder.encode([images])[1])[:, 0]
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, direct.astype(np.float16))
