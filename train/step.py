"""One finetune step: images to the model's size and augmented, loss, gradients, update."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pipeline.device import resize_images
from pipeline.text import TaskTable, blank
from train.augment import augment
from train.config import TrainConfig
from train.octo.config import OctoConfig
from train.octo.model import OctoModule
from train.octo.policy import encode_texts, loss_fn
from train.optimizer import join_frozen, split_frozen
from train.state import TrainState

Batch = dict[str, Any]
Metrics = dict[str, jax.Array]
LanguageTable = jax.Array | None
"""Float32 (texts + 1, n, d): the frozen encoder's output for each text of a run, then for an empty
one. None where the encoder runs in the step, or the model reads no language."""
TrainStep = Callable[[TrainState, Batch, LanguageTable], tuple[TrainState, Metrics]]


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
      A function of (state, batch, language table) to (next state, metrics `loss`, `grad_norm` of
      the trained parameters before clipping, and the applied `learning_rate`).
    """
    module = OctoModule(config.model)
    cameras = [image.observation_key for image in config.model.images]

    def train_step(
        state: TrainState, batch: Batch, table: LanguageTable
    ) -> tuple[TrainState, Metrics]:
        noise_key, augment_key = jax.random.split(jax.random.key(config.seed))
        key = jax.random.fold_in(noise_key, state.step)
        inputs = to_model_size(batch, config.model)
        if config.augment.enabled:
            inputs = augment(inputs, config.augment, cameras, config.cropped, augment_key)
        if table is not None:
            inputs = look_up_language(inputs, table)
        trained, frozen = split_frozen(state.params, config.optimizer.frozen)

        def loss_of(trained: dict[str, Any]) -> jax.Array:
            return loss_fn(module, join_frozen(trained, frozen), inputs, key)

        loss, gradients = jax.value_and_grad(loss_of)(trained)
        # Frozen parameters have no gradient; the optimizer does not look at these zeros.
        zeros = jax.tree.map(jnp.zeros_like, frozen)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes Python and array scalars
            updates, opt_state = optimizer.update(
                join_frozen(gradients, zeros), state.opt_state, state.params
            )
            rate = jnp.asarray(schedule(state.step), jnp.float32)
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(gradients),
            "learning_rate": rate,
        }
        changes, _ = split_frozen(updates, config.optimizer.frozen)
        params = join_frozen(cast(dict[str, Any], optax.apply_updates(trained, changes)), frozen)
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


def make_language_table(config: OctoConfig, params: Any, tasks: TaskTable) -> LanguageTable:
    """The table that a run's step looks its instructions up in; works under `jax.eval_shape`.

    Args:
      config: The model.
      params: Its parameters.
      tasks: The instructions of the run.
    """
    if config.language is None or config.language.finetune:
        return None
    empty_ids, empty_mask = blank(config.language.max_length)
    ids = jnp.asarray(np.concatenate([tasks.input_ids, empty_ids[None]]))
    mask = jnp.asarray(np.concatenate([tasks.attention_mask, empty_mask[None]]))
    return encode_texts(OctoModule(config), params, ids, mask)


def look_up_language(batch: Batch, table: jax.Array) -> Batch:
    """The batch with `task/language_embedding`, float32 (b n d), of each sample's instruction."""
    task = batch["task"]
    has_text = task["pad_mask_dict"]["language_instruction"]
    rows = jnp.where(has_text, task["task_index"], table.shape[0] - 1)
    return batch | {"task": task | {"language_embedding": table[rows]}}
