"""All of a run that is known before anything is compiled, checked against each other."""

import dataclasses
import pathlib
import time
from typing import Any

import jax
import optax

from pipeline import device
from pipeline.errors import UserError
from pipeline.loader import Loader
from pipeline.memory import release_freed_memory
from pipeline.sampling import HostShard
from train.config import TrainConfig
from train.inputs import Inputs, exclusion_named
from train.octo.pretrained import Allowed, account
from train.octo.report import LoadReport
from train.optimizer import check_frozen, learning_rate, make_optimizer, split_frozen
from train.sharding import shard_structs
from train.state import TrainState, init_state
from train.step import LanguageTable, TrainStep, make_language_table, make_train_step
from train.validation import Validator


@dataclasses.dataclass(frozen=True)
class Setup:
    """The parts of a run."""

    config: TrainConfig
    """The run."""
    inputs: Inputs
    """What was found on the disk or the hub."""
    loader: Loader
    """Of the training batches."""
    validator: Validator | None
    """None: no episode is held out."""
    mesh: jax.sharding.Mesh
    """Of all devices."""
    sharding: jax.sharding.NamedSharding
    """Of a batch."""
    optimizer: optax.GradientTransformation
    """Of the trained parameters."""
    step: TrainStep
    """Not compiled."""
    state: TrainState
    """`jax.ShapeDtypeStruct`s with shardings."""
    batch: dict[str, Any]
    """The same of a batch."""
    table: jax.ShapeDtypeStruct | None
    """The same of the language table."""

    @property
    def shardings(self) -> TrainState:
        """Of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.state)

    @property
    def whole(self) -> jax.sharding.NamedSharding:
        """Of an array that every device holds."""
        return device.replicated(self.mesh)

    def account(self) -> LoadReport | None:
        """What becomes of every pretrained tensor; None without pretrained weights.

        Raises:
          UserError: As `train.octo.pretrained.account`.
        """
        if self.inputs.weights is None:
            return None
        return account(self.state.params, self.inputs.weights, allowed(self.config))

    def compile(self) -> tuple[TrainStep, float]:
        """The step, compiled for exactly these shapes before a batch is read, and the seconds."""
        started = time.perf_counter()
        jitted = jax.jit(self.step, donate_argnums=0, out_shardings=(self.shardings, self.whole))
        compiled = jitted.lower(self.state, self.batch, self.table).compile()
        release_freed_memory()
        return compiled, time.perf_counter() - started

    def encode_language(self, params: Any) -> LanguageTable:
        """What a frozen encoder gives for every instruction of the run, computed once."""
        model, tasks = self.config.model, self.loader.tasks
        encode = jax.jit(
            lambda params: make_language_table(model, params, tasks), out_shardings=self.whole
        )
        return encode(params)


def keep_compiled(config: TrainConfig) -> None:
    """Takes programs that an earlier run compiled, and keeps those of this process."""
    if config.compilation_cache is None:
        return
    cache = pathlib.Path(config.compilation_cache).expanduser()
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def set_up(config: TrainConfig, inputs: Inputs) -> Setup:
    """The parts of a run; nothing is compiled, and no record is read.

    Args:
      config: The run.
      inputs: Opened.

    Raises:
      UserError: Parts that do not fit: devices and batch, model and data, frozen globs.
    """
    mesh = device.make_mesh(config.fsdp_devices)
    parts = config.optimizer.accumulation_steps
    sharding = device.batch_sharding(mesh, config.batch_size, parts)
    shard = device.host_shard(sharding, config.batch_size)
    encode = inputs.vocabulary.EncodeAsIds
    with exclusion_named(config):
        loader = Loader(
            config.data,
            config.batch_size,
            inputs.datasets,
            encode,
            shard,
            config.model.image_sizes,
        )
    optimizer = make_optimizer(config.optimizer)
    schedule = learning_rate(config.optimizer, config.num_steps)
    state = shard_structs(jax.eval_shape(lambda: init_state(config, optimizer)), mesh)
    _check_frozen(config, state)
    setup = Setup(
        config=config,
        inputs=inputs,
        loader=loader,
        validator=_validator(config, inputs, shard, sharding),
        mesh=mesh,
        sharding=sharding,
        optimizer=optimizer,
        step=make_train_step(config, optimizer, schedule),
        state=state,
        batch=device.shape_structs(loader.spec, sharding),
        table=_table_struct(config, loader, state, device.replicated(mesh)),
    )
    jax.eval_shape(setup.step, setup.state, setup.batch, setup.table)
    return setup


def allowed(config: TrainConfig) -> Allowed:
    """Which tensors need not come from the checkpoint as they are."""
    return Allowed(config.pretrained_differs, config.pretrained_resized)


def _check_frozen(config: TrainConfig, state: TrainState) -> None:
    """A frozen language encoder is frozen whole: its output is computed once a run."""
    trained, held = split_frozen(state.params, config.frozen)
    check_frozen([*trained, *held], config.frozen)
    language = config.model.language
    if language is None or language.finetune:
        return
    trained = [path for path in trained if "/hf_model/" in path]
    if trained:
        raise UserError(
            where="config.optimizer.frozen",
            expected="all of the language encoder frozen, as model.language.finetune is False",
            found=f"{len(trained)} of its parameters trained, such as {trained[0]}",
            remedy="Add '*hf_model*' to optimizer.frozen, or set model.language.finetune.",
        )


def _validator(
    config: TrainConfig, inputs: Inputs, shard: HostShard, sharding: jax.sharding.NamedSharding
) -> Validator | None:
    if not config.data.validation_fraction:
        return None
    encode = inputs.vocabulary.EncodeAsIds
    return Validator(config, inputs.datasets, encode, shard, sharding)


def _table_struct(
    config: TrainConfig, loader: Loader, state: TrainState, whole: jax.sharding.NamedSharding
) -> jax.ShapeDtypeStruct | None:
    shape = jax.eval_shape(
        lambda params: make_language_table(config.model, params, loader.tasks), state.params
    )
    return shape and jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=whole)
