"""Sets up a run: everything that is known before compiling, checked against each other."""

import dataclasses
import pathlib
import time
from typing import Any

import jax
import optax

from pipeline.errors import UserError
from pipeline.loading import device
from pipeline.loading.loader import Loader
from pipeline.loading.samples.sampling import HostShard
from pipeline.memory import release_freed_memory
from train.metrics.validation import Validator
from train.octo.released.weight_loading import Allowed, account
from train.octo.released.weights_report import LoadReport
from train.run_resources import Inputs, exclusion_named
from train.train_config import TrainConfig
from train.update.optimizer import check_frozen, learning_rate, make_optimizer, split_frozen
from train.update.sharding import shard_structs
from train.update.train_state import TrainState, init_state
from train.update.train_step import LanguageTable, TrainStep, make_language_table, make_train_step


@dataclasses.dataclass(frozen=True)
class Setup:
    """The checked parts of a run, before anything is compiled."""

    config: TrainConfig
    """Config of the run."""
    inputs: Inputs
    """Opened datasets, vocabulary and weights."""
    loader: Loader
    """Loader of the training batches."""
    validator: Validator | None
    """Validation on held-out episodes; None: none are held out."""
    mesh: jax.sharding.Mesh
    """Mesh of all devices."""
    sharding: jax.sharding.NamedSharding
    """Sharding of a batch."""
    optimizer: optax.GradientTransformation
    """Optimizer of the trained parameters."""
    step: TrainStep
    """Training step, not compiled."""
    state: TrainState
    """Shapes of the state: `jax.ShapeDtypeStruct`s with shardings."""
    batch: dict[str, Any]
    """Shapes of a batch: `jax.ShapeDtypeStruct`s with shardings."""
    table: jax.ShapeDtypeStruct | None
    """Shape of the language table; None: there is no table."""

    @property
    def shardings(self) -> TrainState:
        """Returns the shardings of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.state)

    @property
    def whole(self) -> jax.sharding.NamedSharding:
        """Returns the sharding of an array that every device holds whole."""
        return device.replicated(self.mesh)

    def account(self) -> LoadReport | None:
        """Reports how every pretrained tensor is used; None without pretrained weights.

        Raises:
          UserError: The checkpoint and the model differ, as reported by
            `train.octo.released.weight_loading.account`.
        """
        if self.inputs.weights is None:
            return None
        return account(self.state.params, self.inputs.weights, allowed(self.config))

    def compile(self) -> tuple[TrainStep, float]:
        """Compiles the training step for the known shapes; returns it and the seconds it took."""
        started = time.perf_counter()
        # The old state is given away, so two states never have to fit at once.
        # Fixed output shardings: otherwise XLA may choose others, and the next call would not
        # match.
        jitted = jax.jit(self.step, donate_argnums=0, out_shardings=(self.shardings, self.whole))
        compiled = jitted.lower(self.state, self.batch, self.table).compile()
        # Compiling octo-small leaves 1.4 of 2.4 GB that the C library would keep.
        release_freed_memory()
        return compiled, time.perf_counter() - started

    def encode_language(self, params: Any) -> LanguageTable:
        """Computes a frozen encoder's output for every instruction of the run, once."""
        model, tasks = self.config.model, self.loader.tasks
        encode = jax.jit(
            lambda params: make_language_table(model, params, tasks), out_shardings=self.whole
        )
        return encode(params)


def keep_compiled(config: TrainConfig) -> None:
    """Turns on the persistent compilation cache: programs of earlier runs are reused."""
    if config.compilation_cache is None:
        return
    cache = pathlib.Path(config.compilation_cache).expanduser()
    jax.config.update("jax_compilation_cache_dir", str(cache))
    # By default jax caches only what took a second or more.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def set_up(config: TrainConfig, inputs: Inputs) -> Setup:
    """Sets up a run without compiling anything or reading a record.

    Args:
      config: The config of the run.
      inputs: The opened inputs.

    Raises:
      UserError: Parts do not fit together: devices and batch, model and data, or frozen globs.
    """
    mesh = device.make_mesh(config.fsdp_devices)
    # The rows of a micro-batch must be divisible by the devices as well.
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
    # Shapes only: no parameter is allocated before the checks have passed.
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
    # Traces the step without compiling it: wrong shapes show in seconds.
    jax.eval_shape(setup.step, setup.state, setup.batch, setup.table)
    return setup


def allowed(config: TrainConfig) -> Allowed:
    """Returns which tensors may differ from the checkpoint."""
    return Allowed(config.pretrained_differs, config.pretrained_resized)


def _check_frozen(config: TrainConfig, state: TrainState) -> None:
    """Checks that a frozen language encoder is frozen completely: its output is computed once."""
    trained, held = split_frozen(state.params, config.frozen)
    check_frozen([*trained, *held], config.frozen)
    language = config.model.language
    if language is None or language.finetune:
        return
    # The language table is computed once, so a trained encoder would never reach the loss.
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
    # Nothing is held out.
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
    # None stays None.
    return shape and jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=whole)
