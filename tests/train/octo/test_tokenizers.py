import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.loading.batch import LeafSpec
from tests.rounding import assert_equal_but_for_rounding
from train.octo.attention import Kind
from train.octo.octo_config import (
    BinsConfig,
    LowdimTokenizerConfig,
    OctoConfig,
    VGGTTokenizerConfig,
)
from train.octo.token_groups import TokenGroup, pad_window
from train.octo.tokenizer_inputs import check_group, read_steps
from train.octo.tokenizers import (
    ImageTokenizer,
    LanguageTokenizer,
    LowdimTokenizer,
    StdConv,
    bin_edges,
    from_bins,
    to_bins,
)
from train.octo.vggt_tokens import VGGTTokenizer

VGGT = VGGTTokenizerConfig(num_tokens=5, token_dim=8)


def apply(module: nn.Module, variables: Any, *inputs: Any, method: str = "__call__") -> Any:
    return _compiled(module, method)(variables, *inputs)


@functools.cache
def _compiled(module: nn.Module, method: str) -> Any:
    return jax.jit(functools.partial(module.apply, method=method))


def geometry(present: list[list[bool]] | None = None) -> dict[str, Any]:
    """Returns an observation of 2 samples, 2 steps, whose first step is padding in sample 0."""
    tokens = jax.random.normal(jax.random.key(0), (2, 2, 5, 8)).astype(jnp.float16) * 30
    observation: dict[str, Any] = {
        "vggt_tokens": tokens,
        "timestep_pad_mask": jnp.array([[False, True], [True, True]]),
    }
    if present is not None:
        observation["pad_mask_dict"] = {"vggt_tokens": jnp.array(present)}
    return observation


@pytest.fixture(scope="module")
def wrist(config: OctoConfig, params: dict[str, Any]) -> tuple[ImageTokenizer, dict[str, Any]]:
    weights = params["octo_transformer"]["observation_tokenizers_wrist"]
    return ImageTokenizer(config.images[1]), {"params": weights}


def test_a_standardised_convolution_ignores_scale_and_offset_of_its_kernel() -> None:
    image = jax.random.normal(jax.random.key(1), (1, 8, 8, 6))
    conv = StdConv(features=4)
    variables = jax.jit(conv.init)(jax.random.key(2), image)
    changed = jax.tree.map(lambda leaf: 3.0 * leaf + 0.5 if leaf.ndim == 4 else leaf, variables)
    output = apply(conv, variables, image)
    assert output.shape == (1, 4, 4, 4)
    np.testing.assert_allclose(output, apply(conv, changed, image), atol=1e-3)


def test_image_tokens_are_the_recorded_ones(
    wrist: tuple[ImageTokenizer, dict[str, Any]], batch: dict[str, Any], recorded: dict[str, Any]
) -> None:
    tokenizer, weights = wrist
    group = apply(tokenizer, weights, batch["observation"], batch["task"])
    transformer = recorded["intermediates"]["octo_transformer"]
    expected = transformer["observation_tokenizers_wrist"]["__call__"]
    np.testing.assert_allclose(group.tokens, expected, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(group.mask, recorded["out"]["obs_wrist"]["mask"])


def test_a_missing_goal_is_a_black_one(
    wrist: tuple[ImageTokenizer, dict[str, Any]], batch: dict[str, Any]
) -> None:
    tokenizer, weights = wrist
    goal = batch["task"]["image_wrist"]
    without = apply(tokenizer, weights, batch["observation"], {})
    black = apply(tokenizer, weights, batch["observation"], {"image_wrist": jnp.zeros_like(goal)})
    grey = apply(tokenizer, weights, batch["observation"], {"image_wrist": goal * 0 + 127})
    assert_equal_but_for_rounding(without.tokens, black.tokens)
    assert np.abs(np.asarray(without.tokens - grey.tokens)).max() > 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_wrist": None}, "'image_wrist', which the tokenizer 'wrist' reads"),
        (
            {"image_wrist": jnp.zeros((3, 2, 64, 64, 3), jnp.uint8)},
            r"expected uint8 \(b w 32 32 3\), .*; found uint8\[3, 2, 64, 64, 3\]",
        ),
        (
            {"image_wrist": jnp.zeros((3, 32, 32, 3), jnp.uint8)},
            r"expected uint8 \(b w 32 32 3\), .*; found uint8\[3, 32, 32, 3\]",
        ),
        ({"image_wrist": jnp.zeros((3, 2, 32, 32, 3))}, "expected uint8.*found float32"),
    ],
)
def test_an_image_that_is_missing_or_unlike_the_config_is_an_error(
    config: OctoConfig, batch: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    changed = {**batch["observation"], **change}
    observation = {key: value for key, value in changed.items() if value is not None}
    with pytest.raises(UserError, match=message):
        read_steps(observation, config.images[1])


def test_a_goal_image_with_a_window_is_an_error(
    wrist: tuple[ImageTokenizer, dict[str, Any]], batch: dict[str, Any]
) -> None:
    tokenizer, weights = wrist
    goal = {"image_wrist": batch["observation"]["image_wrist"]}
    message = r"task/image_wrist: expected uint8 \(b 32 32 3\), .*; found uint8\[3, 2, 32, 32, 3\]"
    with pytest.raises(UserError, match=message):
        apply(tokenizer, weights, batch["observation"], goal)


def test_the_error_for_a_missing_input_tells_what_there_is() -> None:
    with pytest.raises(UserError, match="only image_primary, timestep_pad_mask"):
        read_steps({"timestep_pad_mask": None, "image_primary": None}, VGGT)


def test_geometry_tokens_come_out_normalised_in_float32() -> None:
    tokenizer = VGGTTokenizer(VGGT)
    observation = geometry()
    variables = jax.jit(tokenizer.init)(jax.random.key(0), observation, {})
    group = apply(tokenizer, variables, observation, {})
    assert (group.tokens.shape, group.tokens.dtype) == ((2, 2, 5, 8), jnp.float32)
    real = group.tokens[group.mask]
    np.testing.assert_allclose(jnp.mean(real, axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(jnp.std(real, axis=-1), 1, atol=1e-4)


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (None, [[False, True], [True, True]]),
        ([[True, True], [True, False]], [[False, True], [True, False]]),
    ],
)
def test_padded_steps_and_missing_inputs_are_masked(
    present: list[list[bool]] | None, expected: list[list[bool]]
) -> None:
    observation = geometry(present)
    init = jax.jit(VGGTTokenizer(VGGT).init_with_output)
    group, _ = init(jax.random.key(0), observation, {})
    assert group.mask.shape == (2, 2, 5)
    np.testing.assert_array_equal(group.mask[..., 0], expected)
    np.testing.assert_array_equal(group.mask[..., 0], group.mask[..., 4])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (jnp.zeros((2, 2, 5, 9), jnp.float16), r"\(b w 5 8\)"),
        (jnp.zeros((2, 2, 5, 8), jnp.int8), "float16 or bfloat16 or float32.*found int8"),
    ],
)
def test_geometry_tokens_unlike_the_config_are_an_error(tokens: jax.Array, message: str) -> None:
    observation = {**geometry(), "vggt_tokens": tokens}
    with pytest.raises(UserError, match=message):
        read_steps(observation, VGGT)


@pytest.fixture(scope="module")
def language(
    config: OctoConfig, params: dict[str, Any]
) -> tuple[LanguageTokenizer, dict[str, Any]]:
    weights = params["octo_transformer"]["task_tokenizers_language"]
    return LanguageTokenizer(config.language), {"params": weights}


def test_an_encoded_instruction_stands_in_for_its_ids(
    language: tuple[LanguageTokenizer, dict[str, Any]], batch: dict[str, Any]
) -> None:
    tokenizer, weights = language
    instruction = batch["task"]["language_instruction"]
    embedding = apply(tokenizer, weights, instruction, method="encode")
    from_ids = apply(tokenizer, weights, batch["task"])
    from_embedding = apply(
        tokenizer,
        weights,
        {"language_embedding": embedding, "pad_mask_dict": batch["task"]["pad_mask_dict"]},
    )
    assert_equal_but_for_rounding(from_ids.tokens, from_embedding.tokens)
    np.testing.assert_array_equal(from_ids.mask, from_embedding.mask)
    np.testing.assert_array_equal(from_ids.mask.all(axis=1), [True, False, True])


def test_without_any_instruction_the_batch_is_refused(
    language: tuple[LanguageTokenizer, dict[str, Any]],
) -> None:
    tokenizer, weights = language
    with pytest.raises(UserError, match="'language_instruction', which the language tokenizer"):
        apply(tokenizer, weights, {"task_index": jnp.zeros(3, jnp.int32)})


@dataclasses.dataclass(frozen=True)
class ForceAndDepth(LowdimTokenizerConfig):
    """Reads a vector and a depth image."""

    @property
    def inputs(self) -> dict[str, LeafSpec]:
        return {"force": LeafSpec("float32", (2,)), "depth": LeafSpec("float32", (1, 1, 1))}


def test_inputs_of_shorter_windows_end_with_the_window() -> None:
    real = jnp.array([[False, True, True, True]])
    force, depth = jnp.ones((1, 2, 2)), jnp.full((1, 1, 1, 1, 1), 3, jnp.float16)
    observation = {
        "force": force,
        "depth": depth,
        "proprio": jnp.ones((1, 4, 7)),
        "timestep_pad_mask": real,
        "pad_mask_dict": {"force": jnp.array([[False, False, False, True]])},
    }
    read = read_steps(observation, ForceAndDepth("both", "force", 2))
    assert read.keys() == {"force", "depth", "timestep_pad_mask", "pad_mask_dict"}
    np.testing.assert_array_equal(read["timestep_pad_mask"], [[True, True]])
    np.testing.assert_array_equal(read["force"], force)
    np.testing.assert_array_equal(read["depth"][0, :, 0, 0, 0], [0, 3])
    np.testing.assert_array_equal(read["pad_mask_dict"]["force"], [[False, True]])
    np.testing.assert_array_equal(read["pad_mask_dict"]["depth"], [[False, True]])
    shorter = observation | {"timestep_pad_mask": real[:, :1]}
    with pytest.raises(UserError, match=r"force: expected at most the 1 steps .*; found 2 steps"):
        read_steps(shorter, ForceAndDepth("both", "force", 2))


def test_steps_that_were_not_read_are_masked_zeros_in_a_group() -> None:
    short = TokenGroup(jnp.ones((2, 1, 5, 6)), jnp.array([[[True] * 5], [[False] * 5]]))
    whole = pad_window(short, 3)
    assert (whole.tokens.shape, whole.kind) == ((2, 3, 5, 6), Kind.OBSERVATION)
    np.testing.assert_array_equal(whole.tokens[:, :2], 0)
    np.testing.assert_array_equal(whole.tokens[:, 2:], short.tokens)
    np.testing.assert_array_equal(whole.mask.all(-1), [[False, False, True], [False] * 3])
    assert pad_window(short, 1) is short


@pytest.mark.parametrize(
    ("tokens", "mask", "found"),
    [
        ((1, 2, 4, 8), jnp.ones((1, 2, 4), bool), r"tokens \(1, 2, 4, 8\)"),
        ((1, 3, 8), jnp.ones((1, 3), bool), r"tokens \(1, 3, 8\)"),
        ((1, 2, 3, 8), jnp.ones((1, 2, 3)), r"a mask float32\(1, 2, 3\)"),
        ((1, 2, 3, 8), jnp.ones((1, 2, 1), bool), r"a mask bool\(1, 2, 1\)"),
    ],
)
def test_tokens_that_a_config_does_not_announce_are_reported(
    tokens: tuple[int, ...], mask: jax.Array, found: str
) -> None:
    read = {"timestep_pad_mask": jnp.ones((1, 2), bool)}
    config = LowdimTokenizerConfig("force", "force", 3)
    message = rf"tokenizer 'force': expected tokens \(1 2 3 d\), as its tokens_per_step .*{found}"
    with pytest.raises(UserError, match=message):
        check_group(TokenGroup(jnp.zeros(tokens), mask), read, config)


@pytest.mark.parametrize(
    ("name", "bins"),
    [
        ("uniform", BinsConfig(16, "uniform", -2.0, 2.0)),
        ("normal", BinsConfig(16, "normal")),
        ("default256", BinsConfig()),
    ],
)
def test_bins_are_those_of_the_original(golden_nest: Any, name: str, bins: BinsConfig) -> None:
    recorded = golden_nest("units/bin_tokenizer")
    np.testing.assert_allclose(bin_edges(bins), recorded[name]["thresholds"], atol=1e-5)
    found = to_bins(recorded["x"], bins)
    np.testing.assert_array_equal(found, recorded[name]["tokens"])
    np.testing.assert_allclose(from_bins(found, bins), recorded[name]["decoded"], atol=1e-5)


def test_binned_vector_is_that_of_the_original(golden_nest: Any) -> None:
    recorded = golden_nest("units/lowdim_discrete")
    config = LowdimTokenizerConfig("proprio", "proprio", 8, BinsConfig(16, "normal"))
    real = jnp.ones((3, 2), bool)
    observation = {"proprio": recorded["proprio"], "timestep_pad_mask": real}
    group = LowdimTokenizer(config).apply({}, observation, {})
    np.testing.assert_array_equal(group.tokens, recorded["tokens"])
    np.testing.assert_array_equal(group.mask, recorded["mask"].astype(bool))


def test_vector_of_another_size_is_an_error() -> None:
    observation = {"proprio": jnp.zeros((1, 2, 7)), "timestep_pad_mask": jnp.ones((1, 2), bool)}
    message = r"observation/proprio: expected float16 or bfloat16 or float32 \(b w 8\)"
    with pytest.raises(UserError, match=message):
        read_steps(observation, LowdimTokenizerConfig("proprio", "proprio", 8))


def test_a_vector_that_is_missing_is_masked() -> None:
    real = jnp.ones((2, 2), bool)
    observation = {"proprio": jnp.ones((2, 2, 3)), "timestep_pad_mask": real}
    tokenizer = LowdimTokenizer(LowdimTokenizerConfig("proprio", "proprio", 3))
    present = jnp.array([[True, True], [False, False]])
    assert tokenizer.apply({}, observation, {}).mask.all()
    group = tokenizer.apply({}, observation | {"pad_mask_dict": {"proprio": present}}, {})
    np.testing.assert_array_equal(group.mask, jnp.repeat(present[..., None], 3, axis=2))
