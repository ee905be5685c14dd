import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.octo.heads.diffusion import (
    DiffusionHead,
    SamplingNoise,
    add_noise,
    cosine_schedule,
    draw_sampling_noise,
    draw_training_noise,
    masked_mean,
    reverse_steps,
    unused_levels,
)
from train.octo.heads.guidance import Guide
from train.octo.octo_config import DiffusionConfig

HEAD = DiffusionConfig(hidden_dim=64)


def apply_head(weights: dict[str, Any], *inputs: Any, method: str) -> Any:
    return DiffusionHead(HEAD).apply(weights, *inputs, method=method)


@pytest.fixture(scope="module")
def weights(params: dict[str, Any]) -> dict[str, Any]:
    return {"params": params["heads_action"]}


def test_schedule_is_the_recorded_one(recorded: dict[str, Any]) -> None:
    schedule = cosine_schedule(20)
    for name, values in schedule._asdict().items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, recorded["sched"][name], atol=1e-6, rtol=0)


def test_reverse_steps_undo_the_forward_step_and_end_without_noise() -> None:
    schedule = cosine_schedule(20)
    scale, shift, sigma = reverse_steps(schedule)
    assert sigma[0] == 0
    # At step 0 the true noise gives back the action.
    action, noise = jnp.full((1, 1, 1, 4), 0.7), jnp.full((1, 1, 1, 4), -1.3)
    noisy = add_noise(schedule, action, jnp.zeros((1, 1, 1, 1), jnp.int32), noise)
    np.testing.assert_allclose(scale[0] * (noisy - shift[0] * noise), action, atol=1e-5)


def test_noisy_actions_are_the_recorded_ones(
    batch: dict[str, Any], recorded: dict[str, Any]
) -> None:
    loss = recorded["loss"]
    actions = jnp.clip(batch["action"].reshape(1, 3, 2, 28), -5, 5)
    add = jax.jit(functools.partial(add_noise, cosine_schedule(20)))
    noisy = add(actions, jnp.asarray(loss["time"]), jnp.asarray(loss["noise"]))
    np.testing.assert_allclose(noisy, loss["noisy_actions"], atol=1e-5, rtol=0)


def test_predicted_noise_is_the_recorded_one_at_every_step(
    weights: dict[str, Any], recorded: dict[str, Any]
) -> None:
    denoiser = jax.tree.map(jnp.asarray, recorded["denoiser"])
    readout = jnp.broadcast_to(denoiser["embeddings"][None], (20, 3, 2, 64))
    inputs = (readout, denoiser["noisy_actions"], denoiser["time"])
    predict = jax.jit(functools.partial(apply_head, method="predict"))
    eps = predict(weights, *inputs)
    np.testing.assert_allclose(eps, denoiser["eps"], atol=1e-5, rtol=0)


def test_sampled_actions_are_the_recorded_ones(
    weights: dict[str, Any], recorded: dict[str, Any]
) -> None:
    sample = jax.tree.map(jnp.asarray, recorded["sample"])
    noise = SamplingNoise(sample["init_noise"], sample["step_noise"])
    # Op by op, as it was recorded: the first reverse step multiplies rounding by 31.6.
    with jax.disable_jit():
        readout = jnp.asarray(recorded["denoiser"]["embeddings"])[:, :, None]
        actions = apply_head(weights, readout, noise, method="sample")
    np.testing.assert_allclose(actions, sample["actions"], atol=1e-4, rtol=0)


def test_masked_mean_counts_real_entries_alone() -> None:
    x = jnp.array([1.0, 2.0, 3.0, 10.0]).reshape(1, 1, 1, 4)
    mask = jnp.array([True, True, False, False]).reshape(1, 1, 1, 4)
    assert masked_mean(x, mask) == 1.5
    assert masked_mean(x, jnp.zeros_like(mask)) == 0


def test_masked_chunks_do_not_enter_the_loss(weights: dict[str, Any]) -> None:
    noise = draw_training_noise(HEAD, jax.random.key(0), (2, 1))
    readout, action = jnp.ones((2, 1, 1, 64)), jnp.zeros((2, 1, 4, 7))
    mask = jnp.zeros(action.shape, dtype=bool).at[0].set(True)

    @jax.jit
    def loss(action: jax.Array) -> Any:
        return apply_head(weights, readout, action, mask, noise, method="loss")

    assert loss(action) == loss(action.at[1].set(3.0))
    assert loss(action) != loss(action.at[0].set(3.0))


def test_a_head_that_predicts_actions_learns_them_and_samples_what_it_predicts(
    weights: dict[str, Any],
) -> None:
    config = dataclasses.replace(HEAD, prediction="action")
    head = DiffusionHead(config)
    chunk = np.linspace(-2, 2, 28, dtype=np.float32)
    # Whatever it reads, the network returns this chunk.
    network = weights["params"]["diffusion_model"]["reverse_network"]
    last = {"kernel": jnp.zeros_like(network["Dense_1"]["kernel"]), "bias": jnp.asarray(chunk)}
    inner = weights["params"]["diffusion_model"] | {"reverse_network": network | {"Dense_1": last}}
    constant = {"params": weights["params"] | {"diffusion_model": inner}}
    readout, mask = jnp.ones((2, 1, 1, 64)), jnp.ones((2, 1, 4, 7), bool)
    action = jnp.broadcast_to(jnp.asarray(chunk).reshape(4, 7), (2, 1, 4, 7))
    noise = draw_training_noise(config, jax.random.key(0), (2, 1))
    losses = [
        head.apply(constant, readout, target, mask, noise, method="loss")
        for target in (action, action + 0.5)
    ]
    np.testing.assert_allclose(losses, [0, 0.25 * 7], atol=1e-5)
    draws = draw_sampling_noise(config, jax.random.key(4), (2, 1))
    sampled = head.apply(constant, readout, draws, method="sample")
    np.testing.assert_allclose(sampled, action[:, 0], atol=1e-4)
    # A guide holds what is planned, and the rest is the prediction.
    planned = np.zeros((2, 4, 7), np.float32)
    weight = np.broadcast_to(np.float32([1, 1, 0, 0])[:, None], planned.shape)
    guided = head.apply(constant, readout, draws, Guide(planned, weight), method="sample_guided")
    np.testing.assert_allclose(guided[:, :2], 0, atol=1e-6)
    np.testing.assert_allclose(guided[:, 2:], action[:, 0, 2:], atol=1e-4)


def test_draws_have_their_ranges_and_depend_on_the_key_alone() -> None:
    config = DiffusionConfig(n_diffusion_samples=32)
    draw = draw_training_noise(config, jax.random.key(0), (8, 2))
    assert (draw.time.shape, draw.time.dtype) == ((32, 8, 2, 1), jnp.int32)
    assert set(np.unique(draw.time)) == set(range(20))
    assert draw.noise.shape == (32, 8, 2, 28)
    again = draw_training_noise(config, jax.random.key(0), (8, 2))
    np.testing.assert_array_equal(draw.noise, again.noise)
    other = draw_sampling_noise(config, jax.random.key(1), (8, 2))
    assert (other.initial.shape, other.steps.shape) == ((8, 2, 28), (20, 8, 2, 28))
    assert not np.array_equal(other.initial, other.steps[0])


def test_samples_are_bounded_and_of_the_last_step(weights: dict[str, Any]) -> None:
    readout = jax.random.normal(jax.random.key(3), (2, 2, 1, 64))
    noise = draw_sampling_noise(HEAD, jax.random.key(4), (2, 2))

    @jax.jit
    def sample(readout: jax.Array, noise: SamplingNoise) -> Any:
        return apply_head(weights, readout, noise, method="sample")

    actions = sample(readout, noise)
    assert actions.shape == (2, 4, 7)
    assert np.abs(actions).max() <= HEAD.max_action
    np.testing.assert_array_equal(actions, sample(readout.at[:, 0].set(0.0), noise))


def test_unused_dimensions_stay_the_noise_that_training_showed(weights: dict[str, Any]) -> None:
    schedule = cosine_schedule(20)
    levels = unused_levels(schedule)
    assert levels[0] == 0
    noise = jnp.full((1, 1, 1, 4), 1.7)
    # After the denoising step at `time`, the network is asked at `time - 1`.
    for time in (1, 10, 19):
        seen = add_noise(schedule, 0 * noise, jnp.full((1, 1, 1, 1), time - 1), noise)
        np.testing.assert_allclose(seen, levels[time] * noise, rtol=1e-6)

    readout = jax.random.normal(jax.random.key(3), (2, 2, 1, 64))
    draws = draw_sampling_noise(HEAD, jax.random.key(4), (2, 2))
    # The weights of an unused dimension's output are what no training has touched.
    last = weights["params"]["diffusion_model"]["reverse_network"]["Dense_1"]
    spoiled = last | {"bias": last["bias"].at[5::7].set(40.0)}
    network = weights["params"]["diffusion_model"]["reverse_network"] | {"Dense_1": spoiled}
    inner = weights["params"]["diffusion_model"] | {"reverse_network": network}
    other = {"params": weights["params"] | {"diffusion_model": inner}}

    @jax.jit
    def sample(weights: dict[str, Any]) -> Any:
        head = DiffusionHead(dataclasses.replace(HEAD, unused_dims=(5,)))
        return head.apply(weights, readout, draws, method="sample")

    actions = sample(weights)
    np.testing.assert_array_equal(actions[..., 5], 0)
    np.testing.assert_array_equal(actions, sample(other))
    assert np.abs(actions[..., :5]).max() > 0.1
