import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipeline.loading.text import tokenize
from tests.rounding import assert_equal_but_for_rounding
from train.octo.functional import (
    InstructionEncoder,
    encode_texts,
    init_params,
    input_spec,
    loss_fn,
    sample_actions,
    training_noise,
)
from train.octo.model import OctoModule
from train.octo.octo_config import OctoConfig, VGGTTokenizerConfig, demo


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
        noise = training_noise(config.head, key, (4, 2))
        return loss_fn(module, params, batch, noise), actions

    loss, actions = jax.eval_shape(run, params, spec, key)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    assert (actions.shape, actions.dtype) == ((4, 4, 7), jnp.float32)
    assert ("vggt_tokens" in spec["observation"]) == (vggt is not None)


def test_the_key_decides_the_loss(
    module: OctoModule, params: dict[str, Any], batch: dict[str, Any]
) -> None:
    def run(key: jax.Array) -> jax.Array:
        noise = training_noise(module.config.head, key, (3, 2))
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
