"""A training of the encoder: resumable, measured on held-out episodes, with weights as its result.

Every batch and every augmentation depends only on the seed and the number of its training step, so
a run that was stopped and resumed is the same as one that was not.
"""

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

from converters.job.job_progress import clock
from examples.geometry_encoder.batches import Batch, draw_batch
from examples.geometry_encoder.geometry_model import GeometryModel, losses
from examples.geometry_encoder.held_out import Constants, evaluate, table
from examples.geometry_encoder.view_sets import ViewSets
from pipeline.errors import UserError
from pipeline.files import dump_json, to_json_values, write_text_atomically, writing
from pipeline.vggt.aggregator_weights import save_weights
from pipeline.vggt.encoder_spec import PATCH_SIZE, VggtConfig
from train.train_config import AugmentConfig
from train.update.augment import apply, draw

CONFIG, CHECKPOINTS, METRICS, WEIGHTS = (
    "config.json",
    "checkpoints",
    "metrics.jsonl",
    "model.safetensors",
)
_MM = 1000.0
_LOG_INTERVAL = 50
_COLORS = AugmentConfig(cropped=())
"""A policy's augmentation of colors; geometry keeps its pixels."""

State = Mapping[str, Any]
"""`params` and `opt_state`."""


@dataclasses.dataclass(frozen=True)
class EncoderTraining:
    """Everything that decides the weights, beside the views themselves."""

    num_moments: int
    """Sets of views that are trained on."""
    model: VggtConfig
    """Sizes of the aggregator."""
    num_steps: int
    """Training steps."""
    num_images: int
    """Images in a batch, as sets of one, two or three."""
    learning_rate: float
    """Largest learning rate; it rises for a twentieth of the steps, then falls as a cosine."""
    weight_decay: float
    """Decay of AdamW."""
    seed: int
    """Seed of parameters, batches and augmentation."""

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW with clipped gradients, as VGGT is trained."""
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, self.learning_rate, max(self.num_steps // 20, 1), self.num_steps
        )
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(schedule, weight_decay=self.weight_decay),
        )


def small(image_size: int, dim: int = 128, num_layers: int = 4, dino_layers: int = 2) -> VggtConfig:
    """An aggregator for two CPU cores: heads of 32 numbers, stored tokens of width `2 * dim`."""
    heads = dim // 32
    return VggtConfig(
        dim=dim,
        num_layers=num_layers,
        num_heads=heads,
        dino_layers=dino_layers,
        dino_heads=heads,
        position_grid=image_size // PATCH_SIZE,
    )


@dataclasses.dataclass(frozen=True)
class EncoderRun:
    """A training with its data and its folder."""

    training: EncoderTraining
    """The settings."""
    sets: ViewSets
    """Views to train on."""
    held_out: ViewSets
    """Views of other episodes."""
    folder: pathlib.Path
    """Folder of checkpoints, metrics and weights."""
    save_interval: int
    """Training steps between checkpoints, at which held-out errors are measured."""
    licence: str
    """Licence of the weights."""
    show: Callable[[str], None]
    """Called with lines of progress."""

    def train(self) -> State:
        """Trains, or resumes at the last checkpoint, and writes the weights.

        Raises:
          UserError: The folder has a run of other settings, or cannot be written.
        """
        self._note_settings()
        model, num_steps = GeometryModel(self.training.model), self.training.num_steps
        update, predict = step_function(model, self.training), predict_function(model)
        constants = Constants.fit(self.sets)
        options = ocp.CheckpointManagerOptions(max_to_keep=1)
        checkpoints = (self.folder / CHECKPOINTS).absolute()
        with ocp.CheckpointManager(checkpoints, options=options) as manager:
            first, state = self._restored(manager, self._initial(model))
            started = time.perf_counter()
            for step in range(first, num_steps):
                rng = np.random.default_rng((self.training.seed, step))
                batch = draw_batch(self.sets, rng, self.training.num_images)
                state, metrics = update(state, batch, np.int32(step))
                done = step + 1
                if done % _LOG_INTERVAL == 0:
                    self._log(done, metrics, (time.perf_counter() - started) / (done - first))
                if done % self.save_interval == 0 or done == num_steps:
                    of_state = functools.partial(predict, state["params"])
                    errors = evaluate(of_state, self.held_out, constants)
                    self._note(done, errors)
                    self._write_weights(state, errors)
                    # Last: what a checkpoint counts as done is not done again.
                    manager.save(done, args=ocp.args.StandardSave(state))
        return state

    def _initial(self, model: GeometryModel) -> State:
        images = jnp.zeros((1, 1, *self.sets.images.shape[2:]), jnp.float32)
        params = jax.jit(model.init)(jax.random.key(self.training.seed), images)["params"]
        return {"params": params, "opt_state": self.training.optimizer().init(params)}

    def _restored(self, manager: ocp.CheckpointManager, initial: State) -> tuple[int, State]:
        """The training steps done, and the state after them."""
        step = manager.latest_step()
        if step is None:
            return 0, initial
        self.show(f"resumes after training step {step:,}\n")
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, initial)
        return step, manager.restore(step, args=ocp.args.StandardRestore(shapes))

    def _note_settings(self) -> None:
        noted = self.folder / CONFIG
        text = dump_json(to_json_values(self.training))
        if noted.exists() and noted.read_text() != text:
            raise UserError(
                where=str(self.folder),
                expected="a run of the same settings",
                found=f"one of others, see {noted}",
                remedy="Give the same flags, or name another folder.",
            )
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text_atomically(noted, text)

    def _log(self, step: int, metrics: dict[str, jax.Array], step_s: float) -> None:
        values = ", ".join(f"{name} {float(value):.4f}" for name, value in metrics.items())
        left = clock((self.training.num_steps - step) * step_s)
        self.show(f"{step:,} training steps, {values}, {step_s:.2f} s each, {left} left\n")

    def _note(self, step: int, errors: dict[str, dict[str, float]]) -> None:
        with writing(self.folder), (self.folder / METRICS).open("a") as file:
            file.write(json.dumps({"step": step, **errors}) + "\n")
        self.show(f"held out, after {step:,} training steps:\n{table(errors)}")

    def _write_weights(self, state: State, errors: dict[str, dict[str, float]]) -> None:
        provenance = {
            "trained_by": "examples/geometry_encoder",
            "training": dump_json(to_json_values(self.training)),
            "held_out": dump_json(errors),
        }
        save_weights(
            self.folder / WEIGHTS,
            state["params"]["aggregator"],
            self.training.model,
            licence=self.licence,
            provenance=provenance,
        )


def step_function(model: GeometryModel, training: EncoderTraining) -> Callable[..., Any]:
    """A training step: from state, batch and its number to the next state and the losses."""
    optimizer = training.optimizer()

    @functools.partial(jax.jit, donate_argnames="state")
    def update(state: State, batch: Batch, step: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        stored, depth_mm, pose = map(jnp.asarray, batch)
        # Draws depend on an index of the sample: that of its training step and row.
        rows = step * training.num_images + jnp.arange(len(stored))
        colors = draw(_COLORS, jax.random.key(training.seed), rows)
        images = apply(stored, colors, crops=False).astype(jnp.float32) / 255.0
        depth_m = depth_mm.astype(jnp.float32) / _MM

        def loss(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            parts = losses(model.apply({"params": params}, images), depth_m, pose)
            return parts["loss"], parts

        gradients, parts = jax.grad(loss, has_aux=True)(state["params"])
        with jax.numpy_dtype_promotion("standard"):  # optax mixes Python and array scalars
            updates, opt_state = optimizer.update(gradients, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state}, parts

    return update


def predict_function(model: GeometryModel) -> Callable[..., Any]:
    """From parameters and images uint8 (b, v, y, x, 3) to a `Prediction`."""

    @jax.jit
    def predict(params: Any, images: jax.Array) -> Any:
        return model.apply({"params": params}, images.astype(jnp.float32) / 255.0)

    return predict
