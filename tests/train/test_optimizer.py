import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.config import OptimizerConfig
from train.optimizer import learning_rate, make_optimizer


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


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_the_gradient_is_clipped_before_adam(scale):
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=1, weight_decay=0.0)
    after, state = step(config, jax.tree.map(lambda p: scale * jnp.ones_like(p), params()))
    trained = state.inner_states["trained"].inner_state
    mu = optax.tree_utils.tree_get(trained, "mu")
    np.testing.assert_allclose(mu["head"]["bias"], 0.19 / np.sqrt(6), rtol=1e-5)
    assert float(after["head"]["bias"][0]) < 2.0
