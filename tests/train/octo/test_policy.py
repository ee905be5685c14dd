from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.octo.config import VGGTTokenizerConfig, demo
from train.octo.model import OctoModule
from train.octo.policy import init_params, input_spec, loss_fn, sample_actions


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
        return loss_fn(module, params, batch, key), actions

    loss, actions = jax.eval_shape(run, params, spec, key)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    assert (actions.shape, actions.dtype) == ((4, 4, 7), jnp.float32)
    assert ("vggt_tokens" in spec["observation"]) == (vggt is not None)


def test_the_key_decides_the_loss(
    module: OctoModule, params: dict[str, Any], batch: dict[str, Any]
) -> None:
    run = jax.jit(lambda key: loss_fn(module, params, batch, key))
    first, again, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert np.isfinite(first)
