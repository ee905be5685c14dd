"""One training step: resize and augment images, compute loss and gradients, update parameters."""

import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pipeline.errors import UserError
from pipeline.loading.text import TaskTable, blank
from train.octo.functional import encode_texts, losses_fn, sample_axes
from train.octo.model import OctoModule
from train.octo.octo_config import OctoConfig
from train.octo.protocols import Noise
from train.train_config import TrainConfig
from train.update.augment import augment
from train.update.image_resizing import resize_images
from train.update.optimizer import Parameters, join_frozen, split_frozen
from train.update.train_state import TrainState

_RGB = 3
_TEXTS_AT_ONCE = 1024
"""Maximum number of instructions that are encoded together: 100,000 take 20 GB in T5-base."""
Batch = dict[str, Any]
Metrics = dict[str, jax.Array]
LanguageTable = jax.Array | None
"""A frozen encoder's output, float32 (texts + 1, n, d): one row per text of a run, then one for the
empty text. None: the encoder runs in the training step, or the model reads no language."""
Found = tuple[tuple[jax.Array, Metrics], Parameters]
"""The loss, the metrics of all losses, and the gradients."""
TrainStep = Callable[[TrainState, Batch, LanguageTable], tuple[TrainState, Metrics]]


def make_train_step(
    config: TrainConfig, optimizer: optax.GradientTransformation, schedule: optax.Schedule
) -> TrainStep:
    """Returns the training step as a pure function, ready for `jax.jit`.

    If the loss or gradient is not finite, the update is skipped: parameters, average and optimizer
    state stay the same, and only the step number grows.

    Args:
      config: The config of the run. Training step k draws its diffusion noise from (seed, k) alone,
        and sample i its augmentation from (seed, i).
      optimizer: The optimizer that `make_optimizer` returns.
      schedule: The learning rate of each training step.

    Returns:
      A function of (state, batch, language table) that returns (next state, metrics). The metrics
        are the losses of `OctoModule.losses`: `loss` and, if the model aligns, `align_loss`; the
        global norms `grad_norm` of the trained parameters' gradient before clipping, `update_norm`
        of their update and `param_norm` of the parameters themselves; `learning_rate`; and
        `applied`, 1 or 0.
    """
    module = OctoModule(config.model)
    noise_key, augment_key = _noise_key(config), augmentation_key(config)

    def train_step(
        state: TrainState, batch: Batch, table: LanguageTable
    ) -> tuple[TrainState, Metrics]:
        # Gradients are taken of the trained parameters alone: 27.0 of 136.7 million with T5 frozen.
        trained, frozen = split_frozen(state.params, config.frozen)
        # From the step number, not from a key that is carried along: a resumed run draws the same.
        key = jax.random.fold_in(noise_key, state.step)
        # Drawn for the whole batch, so that accumulation does not change the noise of a sample.
        noise = config.model.head.draw_training_noise(key, batch["action"].shape[:2])

        def loss_of(trained: Parameters, batch: Batch, noise: Noise) -> tuple[jax.Array, Metrics]:
            inputs = model_inputs(batch, config, table, augment_key)
            # Frozen parameters come from outside the function, so no gradient reaches them.
            losses = losses_fn(module, join_frozen(trained, frozen), inputs, noise)
            return losses["loss"], losses

        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        parts = config.optimizer.accumulation_steps
        axes = sample_axes(config.model.head.draw_training_noise, batch["action"].shape[1])
        (loss, losses), gradients = _accumulate(gradient_of, trained, batch, noise, axes, parts)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes Python and array scalars
            # By the step number, which also counts skipped updates: the logged rate is the applied
            # one.
            rate = jnp.asarray(schedule(state.step), jnp.float32)
            # AdamW without a rate; optax would keep its own count for the schedule.
            updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
            # Minus: gradient descent.
            updates = jax.tree.map(lambda update: -rate * update, updates)
            after = cast(Parameters, optax.apply_updates(trained, updates))
            ema = _average(config.optimizer.ema_decay, state, after)
        # Before clipping, which happens inside the optimizer.
        grad_norm = optax.tree.norm(gradients)
        # Part of the compiled step, so no state with NaN ever exists.
        applied = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        def keep(new: Any, old: Any) -> Any:
            # `where`, not `cond`: the new values are computed anyway.
            return jax.tree.map(lambda n, o: jnp.where(applied, n, o), new, old)

        params = join_frozen(keep(after, trained), frozen)
        metrics = {
            **losses,
            "grad_norm": grad_norm,
            # Zero and not NaN: the row says that nothing was applied.
            "update_norm": jnp.where(applied, optax.tree.norm(updates), 0.0),
            "param_norm": optax.tree.norm(trained),
            "learning_rate": rate,
            "applied": applied.astype(jnp.int32),
        }
        # Adam's own count is kept too, so its bias correction counts applied updates.
        kept = keep(opt_state, state.opt_state), keep(ema, state.ema)
        # The number always grows, so the next step reads another batch.
        return TrainState(state.step + 1, params, *kept), metrics

    return train_step


def _accumulate(
    gradient_of: Callable[[Parameters, Batch, Noise], Found],
    trained: Parameters,
    batch: Batch,
    noise: Noise,
    noise_axes: Any,
    num_parts: int,
) -> Found:
    """Computes losses and gradients of the whole batch, one micro-batch after the other.

    The loss is a mean over the real actions, so each micro-batch is weighted by its number of them:
    except for rounding, the result is that of the whole batch. An alignment loss, a mean over real
    tokens, has the same weights: it is exact if all micro-batches have as many of both. Micro-batch
    i has every `num_parts`-th sample, so that every device has samples of every micro-batch.
    """
    if num_parts == 1:
        return gradient_of(trained, batch, noise)

    def split(leaf: jax.Array, axis: int) -> jax.Array:
        # (parts x n) becomes (n, parts), then parts first: part i has every `num_parts`-th sample.
        # Contiguous parts would put a whole micro-batch on a few devices.
        shape = (*leaf.shape[:axis], leaf.shape[axis] // num_parts, num_parts)
        return jnp.moveaxis(leaf.reshape(*shape, *leaf.shape[axis + 1 :]), axis + 1, 0)

    parts = jax.tree.map(lambda leaf: split(leaf, 0), batch)
    # A head lays out its noise as it likes, such as with the diffusion samples in front.
    noises = jax.tree.map(split, noise, noise_axes)
    real = parts["action_pad_mask"] & parts["observation"]["timestep_pad_mask"][..., None, None]
    # (parts): real actions of each micro-batch.
    counts = real.sum(axis=(1, 2, 3, 4)).astype(jnp.float32)
    # A batch without a real action has no loss, and must not divide by zero.
    weights = counts / jnp.maximum(counts.sum(), 1.0)

    def add(
        total: Found,
        part: tuple[Batch, Noise, jax.Array],
    ) -> tuple[Found, None]:
        batch, noise, weight = part
        found = gradient_of(trained, batch, noise)
        # Losses and gradients are both means, so the same weights fit both.
        return jax.tree.map(lambda sum_, one: sum_ + weight * one, total, found), None

    # Shapes only: nothing is computed here.
    first = jax.tree.map(lambda leaf: leaf[0], (parts, noises))
    shapes = jax.eval_shape(gradient_of, trained, *first)
    # Sums start in each leaf's own dtype.
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    # A scan compiles the step once and keeps one micro-batch's activations at a time.
    total, _ = jax.lax.scan(add, zeros, (parts, noises, weights))
    return total


def _average(decay: float | None, state: TrainState, after: Parameters) -> Parameters:
    if decay is None:
        return state.ema
    # Adam's bias correction, (1 - decay) / (1 - decay**(step + 1)): the first update replaces the
    # initial parameters, which would else keep a weight of decay**step.
    share = (1 - decay) / -jnp.expm1((state.step + 1) * math.log(decay))
    return jax.tree.map(lambda mean, new: mean + share * (new - mean), state.ema, after)


def augmentation_key(config: TrainConfig) -> jax.Array:
    """Returns the key for a run's augmentation, to be combined with each sample's index."""
    # Two halves of one split: noise and augmentation must not share random bits.
    return jax.random.split(jax.random.key(config.seed))[1]


def _noise_key(config: TrainConfig) -> jax.Array:
    return jax.random.split(jax.random.key(config.seed))[0]


def model_inputs(
    batch: Batch, config: TrainConfig, table: LanguageTable, augment_key: jax.Array | None = None
) -> Batch:
    """Converts a batch of the loader to the inputs of the model.

    Args:
      batch: A batch of the loader.
      config: The config of the run.
      table: The language table that `make_language_table` returns.
      augment_key: The key of the augmentation; None: no augmentation.
    """
    # On the device: images cross the bus as stored, and the host stays free to decode.
    inputs = to_model_size(batch, config.model)
    if config.augment.enabled and augment_key is not None:
        cameras = list(config.model.image_shapes)
        inputs = augment(inputs, config.augment, cameras, config.cropped, augment_key)
    return inputs if table is None else look_up_language(inputs, table)


def to_model_size(batch: Batch, config: OctoConfig) -> Batch:
    """Resizes every camera's images, and its goal images if any, to the model's size."""
    # Copies of the dictionaries, because inputs are never modified.
    resized = {"observation": dict(batch["observation"]), "task": dict(batch["task"])}
    for camera, (height, width) in config.image_shapes.items():
        for name, part in resized.items():
            if camera in part:
                _check_rgb(part[camera], f"{name}/{camera}")
                part[camera] = resize_images(part[camera], height, width)
    return batch | resized


def _check_rgb(pixels: jax.Array, key: str) -> None:
    # `jax.image.resize` would also make three channels of the one of a depth image.
    if pixels.dtype != jnp.uint8 or pixels.shape[-1] != _RGB:
        raise UserError(
            where=f"batch, {key}",
            expected="images, uint8 [..., h, w, 3], for an image tokenizer",
            found=f"{pixels.dtype}{list(pixels.shape)}",
            remedy="Give the tokenizer a camera. Depth needs a tokenizer of your own.",
        )


def make_language_table(config: OctoConfig, params: Any, tasks: TaskTable) -> LanguageTable:
    """Encodes the instructions of a run for its training step; works under `jax.eval_shape`.

    Args:
      config: The config of the model.
      params: The parameters of the model.
      tasks: The instructions of the run.
    """
    if config.language is None or config.language.finetune:
        return None
    # The empty text, for samples whose task is given by goal images: the table's last row.
    empty_ids, empty_mask = blank(config.language.max_length)
    ids = jnp.asarray(np.concatenate([tasks.input_ids, empty_ids[None]]))
    mask = jnp.asarray(np.concatenate([tasks.attention_mask, empty_mask[None]]))
    return _in_parts(lambda *part: encode_texts(OctoModule(config), params, *part), ids, mask)


def _in_parts(encode: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Encodes at most 1,024 rows at a time, and returns the results of all."""
    rows = len(arrays[0])
    if rows <= _TEXTS_AT_ONCE:
        return encode(*arrays)
    # Zeros fill the last part; their results are cut off.
    fill = -rows % _TEXTS_AT_ONCE
    parts = [
        jnp.pad(one, ((0, fill), (0, 0))).reshape(-1, _TEXTS_AT_ONCE, *one.shape[1:])
        for one in arrays
    ]
    encoded = jax.lax.map(lambda part: encode(*part), tuple(parts))
    return encoded.reshape(-1, *encoded.shape[2:])[:rows]


def look_up_language(batch: Batch, table: jax.Array) -> Batch:
    """Adds `task/language_embedding`, float32 (b n d), the encoded instruction of each sample."""
    task = batch["task"]
    has_text = task["pad_mask_dict"]["language_instruction"]
    # The empty text is the last row.
    rows = jnp.where(has_text, task["task_index"], table.shape[0] - 1)
    return batch | {"task": task | {"language_embedding": table[rows]}}
