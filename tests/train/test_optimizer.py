from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from train.config import OptimizerConfig
from train.optimizer import learning_rate, make_optimizer


@pytest.fixture(scope="module")
def golden():
    path = Path(__file__).parents[1] / "data" / "golden" / "octo" / "units" / "optimizer.npz"
    with np.load(path) as arrays:
        return dict(arrays)


def nested(golden, prefix):
    """The arrays below a name, nested."""
    flat = {k.removeprefix(f"{prefix}/"): v for k, v in golden.items() if k.startswith(prefix)}
    return jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(flat, sep="/"))


def params():
    return {
        "hf_model": {"kernel": jnp.ones((2, 2))},
        "head": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full((2,), 2.0)},
    }


def step(config, gradients):
    optimizer = make_optimizer(config, num_steps=10)
    before = params()
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(before)
        updates, state = optimizer.update(gradients, state, before)
        updates, state = optimizer.update(gradients, state, before)
    return optax.apply_updates(before, updates), state


def test_the_rate_rises_to_the_peak_and_falls_to_zero():
    schedule = learning_rate(OptimizerConfig(learning_rate=1.0, warmup_steps=2), num_steps=10)
    found = [float(schedule(step)) for step in (0, 1, 2, 6, 10, 11)]
    np.testing.assert_allclose(found, [0.0, 0.5, 1.0, 0.5, 0.0, 0.0], atol=1e-6)


def test_the_rate_ends_at_decay_steps_where_given():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=2, decay_steps=6)
    assert float(learning_rate(config, num_steps=10)(6)) == 0.0


def test_without_gradients_only_trained_kernels_decay():
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=1, weight_decay=0.5)
    after, _ = step(config, jax.tree.map(jnp.zeros_like, params()))
    np.testing.assert_array_equal(after["hf_model"]["kernel"], 1.0)
    np.testing.assert_array_equal(after["head"]["bias"], 2.0)
    np.testing.assert_allclose(after["head"]["kernel"], 2.0 - 0.1 * 0.5 * 2.0, rtol=1e-6)


def test_frozen_parameters_stay_bitwise_and_take_no_memory():
    after, state = step(OptimizerConfig(warmup_steps=1), jax.tree.map(jnp.ones_like, params()))
    np.testing.assert_array_equal(after["hf_model"]["kernel"], 1.0)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * (4 + 2)


def test_six_updates_equal_the_originals(golden):
    params = nested(golden, "params")
    config = OptimizerConfig(learning_rate=0.03, warmup_steps=2, decay_steps=8)
    optimizer = make_optimizer(config, num_steps=8)
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
        for update in range(6):
            gradients = nested(golden, f"grads/{update}")
            updates, state = optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            expected = nested(golden, f"finetune_full/params_after/{update}")
            jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6, rtol=0), params, expected)


def test_the_gradient_is_clipped_to_its_global_norm():
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=1, weight_decay=0.0)
    gradients = jax.tree.map(jnp.ones_like, params())
    _, small = step(config, gradients)
    _, large = step(config, jax.tree.map(lambda g: 1000 * g, gradients))
    for clipped in (small, large):
        nu = optax.tree_utils.tree_get(clipped.inner_states["trained"].inner_state, "nu")
        # Six trained numbers of equal gradients: each is 1 / sqrt(6) once clipped.
        np.testing.assert_allclose(nu["head"]["bias"], (0.001 + 0.000999) / 6, rtol=1e-5)
