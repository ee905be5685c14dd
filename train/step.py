"""One finetune step: images to the model's size and augmented, loss, gradients, update."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pipeline.device import resize_images
from train.augment import augment
from train.config import TrainConfig
from train.octo.config import OctoConfig
from train.octo.model import OctoModule
from train.octo.policy import loss_fn
from train.state import TrainState

Batch = dict[str, Any]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    config: TrainConfig, optimizer: optax.GradientTransformation, schedule: optax.Schedule
) -> TrainStep:
    """The step as a pure function, to be jitted.

    Args:
      config: The run. Of its seed, step k draws the diffusion noise from (seed, k) alone, and
        sample i its augmentation from (seed, i).
      optimizer: As `make_optimizer` returns it.
      schedule: Its learning rate, to be logged.

    Returns:
      A function of (state, batch) to (next state, metrics `loss`, `grad_norm` before
      clipping, and the applied `learning_rate`).
    """
    module = OctoModule(config.model)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        noise_key, augment_key = jax.random.split(jax.random.key(config.seed))
        key = jax.random.fold_in(noise_key, state.step)
        inputs = to_model_size(batch, config.model)
        if config.augment is not None:
            inputs = augment(inputs, config.augment, config.cropped, augment_key)
        loss, gradients = jax.value_and_grad(lambda params: loss_fn(module, params, inputs, key))(
            state.params
        )
        with jax.numpy_dtype_promotion("standard"):  # optax mixes Python and array scalars
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            rate = jnp.asarray(schedule(state.step), jnp.float32)
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(gradients),
            "learning_rate": rate,
        }
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def to_model_size(batch: Batch, config: OctoConfig) -> Batch:
    """The batch with every camera, and its goal image where there is one, at the model's size."""
    resized = {"observation": dict(batch["observation"]), "task": dict(batch["task"])}
    for image in config.images:
        for part in resized.values():
            if image.observation_key in part:
                part[image.observation_key] = resize_images(
                    part[image.observation_key], image.image_size, image.image_size
                )
    return batch | resized
