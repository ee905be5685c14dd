"""Validates a model on held-out episodes: loss, action errors, and chunks along an episode."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from pipeline.data.schema import ACTION
from pipeline.loading import device
from pipeline.loading.loader import Loader
from train import distributed
from train.guard import exclusion_named
from train.metrics.validation_files import EpisodePrediction, ValidationMetrics
from train.octo.functional import loss_fn, sample_actions
from train.octo.model import OctoModule
from train.octo.octo_config import with_unused_dims
from train.train_config import TrainConfig
from train.update.train_step import LanguageTable, model_inputs

T = TypeVar("T")


class Validator:
    """Validates a model on a fixed set of samples, without augmentation.

    Args:
      config: The config of the run; its `data.validation_fraction` decides which episodes are held
        out.
      loader: The loader of the training batches, whose statistics normalise the held-out samples.
      sharding: The sharding of a batch.
    """

    def __init__(
        self,
        config: TrainConfig,
        loader: Loader,
        sharding: jax.sharding.NamedSharding,
    ) -> None:
        # Without held-out episodes the chunks along an episode show one of training.
        split = "validation" if config.data.validation_fraction else "train"
        self._config = config
        self._loader = loader.over_split(split).without_random()
        self._sharding = sharding
        # For sampling; the loss is the same.
        self._module = OctoModule(with_unused_dims(config.model, self._loader.spec[ACTION]))
        # Replicated: every process then reads the results from its own devices.
        whole = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        self._evaluate = jax.jit(self._losses_and_errors, out_shardings=whole)
        self._sample = jax.jit(self._chunks, out_shardings=whole)

    @property
    def batch_structs(self) -> dict[str, Any]:
        """Returns the shapes of a batch, nested."""
        return device.shape_structs(self._loader.spec, self._sharding)

    def run(self, params: Any, table: LanguageTable, step: int) -> ValidationMetrics:
        """Computes loss and errors over the first `validation.num_batches` of held-out samples.

        Args:
          params: The parameters of the model.
          table: The language table that `make_language_table` returns.
          step: Training steps taken.

        Raises:
          UserError: In every process, if any of them finds a corrupt record or image.
        """
        num_batches = self._config.validation.num_batches
        losses, errors, counts, tasks, actions, real = [], [], [], [], [], []
        # From batch 0 at every validation: always the same samples.
        with contextlib.closing(self._loader.batches()) as batches:
            for number in range(num_batches):
                batch = self._together(lambda: next(batches))
                arrays = device.to_devices(batch, self._sharding)
                # The number decides the noise, so it is the same at every validation too.
                found = self._evaluate(params, arrays, table, jnp.int32(number))
                # Waits for the batch: validation keeps no batches in flight.
                loss, *samples = jax.device_get(found)
                losses.append(float(loss))
                for parts, part in zip(
                    (errors, counts, tasks, actions, real), samples, strict=True
                ):
                    parts.append(part)
        metrics = self._metrics(
            step, losses, *(np.concatenate(parts) for parts in (errors, counts, tasks))
        )
        by_dim, overall = constant_errors(np.concatenate(actions), np.concatenate(real))
        constant_by_dim = dict(zip(self._dims, by_dim.tolist(), strict=True))
        return dataclasses.replace(metrics, constant_error=overall, constant_by_dim=constant_by_dim)

    def episode(self, params: Any, table: LanguageTable) -> EpisodePrediction:
        """Samples chunks along a held-out episode, or along any episode if none is held out.

        Args:
          params: The parameters of the model.
          table: The language table that `make_language_table` returns.

        Raises:
          UserError: In every process, if any of them finds a corrupt record or image.
        """
        loader, dataset = self._loader, self._loader.datasets[0]
        steps = loader.example(0)
        # "right": a step that starts an episode belongs to that episode.
        episode = int(np.searchsorted(dataset.episode_starts, steps[0], side="right")) - 1
        first = int(dataset.episode_starts[episode])
        rows = loader.shard.rows(loader.batch_size)
        chunks, actions = [], []
        for begin in range(0, len(steps), loader.batch_size):
            # The last batch is filled with its last step, because the program has one batch size.
            wanted = np.minimum(begin + np.arange(loader.batch_size), len(steps) - 1)
            # Each process reads its own rows of the batch.
            batch = self._read(steps[wanted][list(rows)])
            arrays = device.arrays_to_devices(batch, self._sharding)
            sampled, recorded = jax.device_get(self._sample(params, arrays, table))
            # Without what fills the last batch.
            kept = min(loader.batch_size, len(steps) - begin)
            chunks.append(sampled[:kept])
            actions.append(recorded[:kept])
        # Six images, evenly spaced, the first and the last step included.
        shown = np.linspace(0, len(steps) - 1, min(6, len(steps))).astype(np.int32)
        unnormalize = loader.normalizers[ACTION].unnormalize
        # All steps are of the first dataset.
        place = np.zeros(len(steps), np.int64)
        return EpisodePrediction(
            dataset=dataset.path,
            episode=episode,
            is_held_out=loader.config.split == "validation",
            task=dataset.manifest.tasks[dataset.task_index(episode, int(steps[0]) - first)],
            dims=self._dims,
            actions=unnormalize(np.concatenate(actions), place),
            chunks=unnormalize(np.concatenate(chunks), place),
            frames=self._frames(steps[shown]),
            frame_steps=shown,
        )

    def _read(self, steps: np.ndarray) -> dict[str, Any]:
        """Reads this process's rows of a batch of the given steps."""
        return self._together(lambda: self._loader.read(0, steps.tolist()))

    def _together(self, work: Callable[[], T]) -> T:
        """Runs a read in every process; an error in one is raised in all."""

        def read() -> T:
            with exclusion_named(self._config):
                return work()

        # A read that fails in one process must not leave the others in the next collective.
        return distributed.together(read)

    def _frames(self, steps: np.ndarray) -> tuple[np.ndarray, ...]:
        """Reads each camera's images at steps of the first dataset, as they are in the batch."""
        count = len(self._loader.shard.rows(self._loader.batch_size))
        # Filled to whole batches by repeating; cut off again below.
        wanted = np.resize(steps, -(-len(steps) // count) * count)
        cameras = list(self._config.model.image_shapes)
        found: list[list[np.ndarray]] = [[] for _ in cameras]
        for begin in range(0, len(wanted) if cameras else 0, count):
            batch = self._read(wanted[begin : begin + count])
            for images, camera in zip(found, cameras, strict=True):
                # A copy: a slice would keep the whole batch in memory.
                images.append(batch["observation"][camera][:, -1].copy())
        return tuple(np.concatenate(images)[: len(steps)] for images in found)

    def _losses_and_errors(
        self, params: Any, batch: dict[str, Any], table: LanguageTable, number: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Returns loss, summed errors (b a), number of real actions (b a) and task index (b).

        Then follow the actions (b h a), and bool (b h a): True where an action is real.
        """
        # Loss and samples have draws of their own, from the batch's number.
        noise_key, sample_key = jax.random.split(jax.random.fold_in(self._key, number))
        inputs = model_inputs(batch, self._config, table)
        shape = batch["action"].shape[:2]
        noise = self._config.model.head.draw_training_noise(noise_key, shape)
        loss = loss_fn(self._module, params, inputs, noise)
        chunk = sample_actions(
            self._module, params, inputs["observation"], inputs["task"], sample_key
        )
        # The last step of the window is the one that acts.
        real = batch["action_pad_mask"][:, -1]
        # (b h a)
        errors = jnp.where(real, jnp.abs(chunk - batch["action"][:, -1]), 0.0)
        counts = real.sum(axis=1).astype(jnp.float32)
        tasks = batch["task"]["task_index"]
        return loss, errors.sum(axis=1), counts, tasks, batch["action"][:, -1], real

    def _chunks(
        self, params: Any, batch: dict[str, Any], table: LanguageTable
    ) -> tuple[jax.Array, jax.Array]:
        """Samples chunks (b h a); returns them and the recorded actions of the same steps (b a)."""
        inputs = model_inputs(batch, self._config, table)
        chunk = sample_actions(
            self._module, params, inputs["observation"], inputs["task"], self._key
        )
        return chunk, batch["action"][:, -1, 0]

    @property
    def _key(self) -> jax.Array:
        return jax.random.key(self._config.seed)

    @property
    def _dims(self) -> tuple[str, ...]:
        # Of what the model predicts: transforms may change the dimensions.
        names = self._loader.spec[ACTION].dims
        return tuple(f"action[{name}]" if name.isdecimal() else name for name in names)

    def _metrics(
        self,
        step: int,
        losses: list[float],
        errors: np.ndarray,
        counts: np.ndarray,
        task: np.ndarray,
    ) -> ValidationMetrics:
        # A dimension without a real action has no error, instead of NaN.
        by_dim = errors.sum(axis=0) / np.maximum(counts.sum(axis=0), 1)
        texts = self._loader.tasks.texts
        by_task = {
            texts[row]: float(errors[task == row].sum() / max(counts[task == row].sum(), 1))
            for row in np.unique(task).tolist()
        }
        return ValidationMetrics(
            step=step,
            loss=float(np.mean(losses)),
            action_error=float(errors.sum() / max(counts.sum(), 1)),
            by_dim=dict(zip(self._dims, map(float, by_dim), strict=True)),
            by_task=by_task,
            num_samples=len(errors),
        )


def constant_errors(actions: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns (float64 (a), mean over all): the errors of the best constant action, the median.

    Args:
      actions: Actions (b h a).
      real: bool (b h a), False where there is no action; a dimension without any has error 0.
    """
    masked = np.ma.masked_array(actions.astype(np.float64), ~real)
    # The median minimises the absolute error.
    errors = abs(masked - np.ma.median(masked, axis=(0, 1)))
    return np.ma.filled(errors.mean(axis=(0, 1)), 0.0), float(np.ma.filled(errors.mean(), 0.0))
