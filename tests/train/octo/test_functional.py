import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.loading.text import tokenize
from tests.rounding import assert_equal_but_for_rounding
from train.octo.functional import (
    InstructionEncoder,
    draw_by_sample,
    encode_texts,
    init_params,
    input_spec,
    loss_fn,
    sample_actions,
    sample_axes,
)
from train.octo.model import OctoModule
from train.octo.octo_config import (
    DiffusionConfig,
    OctoConfig,
    RegressionConfig,
    VGGTTokenizerConfig,
    demo,
)


@pytest.mark.parametrize("vggt", [None, VGGTTokenizerConfig(num_tokens=6, token_dim=16)])
def test_the_specified_inputs_are_all_that_loss_and_sampling_need(
    vggt: VGGTTokenizerConfig | None,
) -> None:
    config = demo(vggt=vggt)
    module, key = OctoModule(config), jax.random.key(0)
    params = jax.eval_shape(lambda key: init_params(config, key), key)
    spec = input_spec(config, batch_size=4, window_size=2)

    def run(params: Any, batch: Any, key: jax.Array) -> Any:
        actions = sample_actions(module, params, batch["observation"], batch["task"], key)
        noise = config.head.draw_training_noise(key, (4, 2))
        return loss_fn(module, params, batch, noise), actions

    loss, actions = jax.eval_shape(run, params, spec, key)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    assert (actions.shape, actions.dtype) == ((4, 4, 7), jnp.float32)
    assert ("vggt_tokens" in spec["observation"]) == (vggt is not None)


def test_the_key_decides_the_loss(
    module: OctoModule, params: dict[str, Any], batch: dict[str, Any]
) -> None:
    def run(key: jax.Array) -> jax.Array:
        noise = module.config.head.draw_training_noise(key, (3, 2))
        return loss_fn(module, params, batch, noise)

    run = jax.jit(run)
    first, again, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert np.isfinite(first)


def test_an_instruction_is_encoded_once_as_in_training(
    config: OctoConfig, module: OctoModule, params: dict[str, Any]
) -> None:
    def encode(text: str) -> list[int]:
        return [len(word) + 1 for word in text.split()]

    encoder = InstructionEncoder(config, params, encode)
    text = "put the bowl on the plate"
    table = tokenize([text], encode, 16)
    expected = encode_texts(
        module, params, *map(jnp.asarray, (table.input_ids, table.attention_mask))
    )[0]
    for _ in range(2):
        assert_equal_but_for_rounding(encoder(text), expected)
    assert encoder(text) is encoder(text)
    assert float(jnp.abs(encoder("open the drawer") - encoder(text)).max()) > 0.1


def test_a_model_that_reads_no_language_encodes_none(config: OctoConfig) -> None:
    with pytest.raises(ValueError, match="reads no language"):
        InstructionEncoder(dataclasses.replace(config, language=None), {}, list)


@dataclasses.dataclass(frozen=True)
class DrawsTwice(DiffusionConfig):
    """A head whose noise has the samples at the end of one array, and in front of the other."""

    draw: Callable[..., Any] | None = None

    def draw_sampling_noise(self, key: Any, shape: tuple[int, int]) -> Any:
        if self.draw is not None:
            return self.draw(key, shape)
        last, first = jax.random.split(key)
        return jax.random.normal(last, (3, shape[1], shape[0])), jax.random.normal(first, shape)


def test_the_axis_of_the_samples_is_found_in_any_layout() -> None:
    head = DiffusionConfig(diffusion_steps=1)
    of_loss = sample_axes(head.draw_training_noise, 1)
    assert (of_loss.time, of_loss.noise) == (1, 1)
    of_sample = sample_axes(head.draw_sampling_noise, 2)
    assert (of_sample.initial, of_sample.steps) == (0, 1)
    assert sample_axes(RegressionConfig().draw_sampling_noise, 2) is None
    assert sample_axes(DrawsTwice().draw_sampling_noise, 1) == (2, 0)


@pytest.mark.parametrize("head", [DiffusionConfig(), DrawsTwice()])
def test_noise_by_sample_is_that_of_a_batch_of_one(head: DiffusionConfig) -> None:
    keys = jax.random.split(jax.random.key(3), 4)
    axes = sample_axes(head.draw_sampling_noise, 2)
    found = jax.tree.leaves(draw_by_sample(head, keys, 2))
    assert len(found) == 2
    for sample, key in enumerate(keys):
        expected = jax.tree.leaves(head.draw_sampling_noise(key, (1, 2)))
        for array, alone, axis in zip(found, expected, jax.tree.leaves(axes), strict=True):
            np.testing.assert_array_equal(jnp.take(array, jnp.array([sample]), axis), alone)


@pytest.mark.parametrize(
    ("draw", "found"),
    [
        (lambda key, shape: jnp.zeros(7), r"the shape \(7,\) for 1 sample and \(7,\) for 2"),
        (lambda key, shape: jnp.zeros((shape[0], shape[0])), r"\(1, 1\) for 1 .* \(2, 2\) for 2"),
    ],
)
def test_noise_without_one_axis_of_samples_is_reported(draw: Any, found: str) -> None:
    head = DrawsTwice(draw=draw)
    with pytest.raises(UserError, match=rf"head, draw_sampling_noise: .*; found .*{found}. Draw"):
        draw_by_sample(head, jax.random.split(jax.random.key(0), 2), 2)
