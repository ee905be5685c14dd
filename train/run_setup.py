"""Sets up a run: what it reads, its model and its training step, checked before compiling."""

import dataclasses
import functools
import logging
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece

from pipeline.data.dataset import Dataset, open_dataset
from pipeline.errors import UserError, did_you_mean
from pipeline.loading import device
from pipeline.loading.loader import Loader
from pipeline.loading.loader_opening import check_all_there, missing_parts
from pipeline.loading.text import load_vocabulary
from pipeline.memory import release_freed_memory
from train.checkpoints.initial_weights import load_checked, load_pretrained
from train.guard import exclusion_named
from train.metrics.validation import Validator
from train.octo.released.weight_loading import Allowed, Pretrained, account, check_config, merge
from train.octo.released.weights_report import LoadReport
from train.train_config import TrainConfig
from train.update.optimizer import check_frozen, learning_rate, make_optimizer, split_frozen
from train.update.step_memory import MemoryEstimate, estimate_memory
from train.update.train_state import TrainState, fresh_state, init_state, shard_structs
from train.update.train_step import LanguageTable, TrainStep, make_language_table, make_train_step

_log = logging.getLogger("train.run")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The opened data, vocabulary and weights of a run."""

    datasets: tuple[Dataset, ...]
    """Datasets, in the config's order."""
    vocabulary: sentencepiece.SentencePieceProcessor
    """Tokenizer of T5."""
    weights: Pretrained | None
    """Pretrained weights; None: random weights, or a resumed run's own."""


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
    init: Callable[[], TrainState]
    """Returns a fresh state; one function, so that it is traced once."""
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
    def replicated(self) -> jax.sharding.NamedSharding:
        """Returns the sharding of an array that every device holds whole."""
        return device.replicated(self.mesh)

    def account(self) -> LoadReport | None:
        """Returns how every pretrained tensor is used; None without pretrained weights.

        Raises:
          UserError: The checkpoint and the model differ, as reported by
            `train.octo.released.weight_loading.account`.
        """
        if self.inputs.weights is None:
            return None
        return account(
            self.config.model, self.state.params, self.inputs.weights, _allowed(self.config)
        )

    def lower(self) -> jax.stages.Lowered:
        """Returns the training step, traced for the known shapes."""
        # The old state is donated, so two states never have to fit at once. Fixed output
        # shardings: otherwise XLA may choose others, and the next call would not match.
        jitted = jax.jit(
            self.step, donate_argnums=0, out_shardings=(self.shardings, self.replicated)
        )
        return jitted.lower(self.state, self.batch, self.table)

    def compile(self) -> TrainStep:
        """Returns the training step, compiled for the known shapes."""
        _log.info("compiling the training step")
        started = time.perf_counter()
        compiled = self.lower().compile()
        # Compiling octo-small leaves 1.4 of 2.4 GB that the C library would keep.
        release_freed_memory()
        _log.info("compiled in %.1f s", time.perf_counter() - started)
        return compiled

    def first_state(self) -> TrainState:
        """Returns the state before the first training step: random, or with pretrained weights."""
        state = fresh_state(self.init, self.shardings)
        if self.inputs.weights is None:
            return state
        params, _ = merge(
            self.config.model, state.params, self.inputs.weights, _allowed(self.config)
        )

        def place(leaf: jax.Array, sharding: jax.sharding.Sharding) -> jax.Array:
            return leaf if leaf.sharding == sharding else jax.device_put(np.asarray(leaf), sharding)

        params = jax.tree.map(place, params, self.shardings.params)
        trained, _ = split_frozen(params, self.config.frozen)
        # A copy: the training step donates its input, and two leaves must not share memory.
        ema = {path: jnp.copy(trained[path]) for path in state.ema}
        return dataclasses.replace(state, params=params, ema=ema)

    def estimate_memory(self) -> MemoryEstimate:
        """Estimates the memory of the training step on one device."""
        return estimate_memory(self.config, self.state, self.batch, self.mesh.size, self.table)

    def encode_language(self, params: Any) -> LanguageTable:
        """Computes a frozen encoder's output for every instruction of the run, once."""
        model, tasks = self.config.model, self.loader.tasks
        encode = jax.jit(
            lambda params: make_language_table(model, params, tasks), out_shardings=self.replicated
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
    sharding = device.batch_sharding(mesh, config.batch_size, config.optimizer.accumulation_steps)
    shard = device.host_shard(sharding, config.batch_size)
    with exclusion_named(config):
        loader = Loader(
            config.data,
            config.batch_size,
            inputs.datasets,
            inputs.vocabulary.EncodeAsIds,
            shard,
            config.model.image_sizes,
        )
    _check_inputs(config, loader)
    validator = None
    if config.data.validation_fraction:
        validator = Validator(config, loader, sharding)
    optimizer = make_optimizer(config.optimizer)
    # Shapes only: no parameter is allocated before the checks have passed.
    init = functools.partial(init_state, config, optimizer)
    state = shard_structs(jax.eval_shape(init), mesh)
    _check_frozen(config, state)
    table = jax.eval_shape(
        lambda params: make_language_table(config.model, params, loader.tasks), state.params
    )
    if table is not None:
        whole = device.replicated(mesh)
        table = jax.ShapeDtypeStruct(table.shape, table.dtype, sharding=whole)
    schedule = learning_rate(config.optimizer, config.num_steps)
    setup = Setup(
        config=config,
        inputs=inputs,
        loader=loader,
        validator=validator,
        mesh=mesh,
        sharding=sharding,
        init=init,
        step=make_train_step(config, optimizer, schedule),
        state=state,
        batch=device.shape_structs(loader.spec, sharding),
        table=table,
    )
    # Traces the step without compiling it: wrong shapes show in seconds.
    jax.eval_shape(setup.step, setup.state, setup.batch, setup.table)
    return setup


def open_inputs(config: TrainConfig, *, resume: bool = False) -> Inputs:
    """Opens datasets, vocabulary and, unless the run is resumed, pretrained weights.

    Raises:
      UserError: Something is missing; it lists everything at once, with the commands to get it.
    """
    problems: list[UserError] = []

    def attempt(work: Callable[[], T]) -> T | None:
        try:
            return work()
        except UserError as error:
            problems.append(error)
            return None

    parts = config.data.datasets
    missing = missing_parts(parts)
    attempt(lambda: check_all_there(parts))
    datasets = [
        attempt(lambda part=part: open_dataset(part.path, config.data.keys_of(part)))
        for part in parts
        if part not in missing
    ]
    vocabulary = attempt(lambda: _open_vocabulary(config))
    # A resumed run has its own weights; the pretrained ones may be gone by then.
    weights = None if resume else attempt(lambda: _read_weights(config))
    if len(problems) == 1:
        raise problems[0]
    if problems or vocabulary is None:
        raise UserError(
            where="inputs of the run",
            expected="all of them",
            found=f"{len(problems)} that cannot be used",
            remedy="Fix each:" + "".join(f"\n  - {problem}" for problem in problems),
        )
    return Inputs(tuple(one for one in datasets if one is not None), vocabulary, weights)


def _open_vocabulary(config: TrainConfig) -> sentencepiece.SentencePieceProcessor:
    """Opens T5's vocabulary; an id beyond the encoder's table would give NaN, so it is an error."""
    if not config.data.vocabulary:
        raise UserError(
            where="data.vocabulary",
            expected="T5's SentencePiece model, whose ids Octo reads",
            found="an empty name",
            remedy="Name it, such as hf://google-t5/t5-base/spiece.model.",
        )
    vocabulary = load_vocabulary(config.data.vocabulary)
    language = config.model.language
    # T5 has more rows than pieces, so only "more pieces than rows" is an error.
    rows = math.inf if language is None else language.t5.vocab_size
    if vocabulary.GetPieceSize() > rows:
        raise UserError(
            where=f"vocabulary {config.data.vocabulary}",
            expected=f"at most {rows} pieces, the rows of model.language.t5.vocab_size",
            found=str(vocabulary.GetPieceSize()),
            remedy="Give the vocabulary that the encoder was trained with.",
        )
    return vocabulary


def _read_weights(config: TrainConfig) -> Pretrained | None:
    """Returns the pretrained weights; their model's config must mean the same as this config."""
    name = config.weights_source
    if name is None:
        return None
    if config.pretrained is None:
        loaded = load_pretrained(name, config.pretrained_step)
    else:
        loaded = load_checked(config.pretrained, name)
    # Before anything is compiled: other settings would load weights of the same shapes silently.
    check_config(loaded.config, config.model, f"config of {name}")
    return loaded


def _allowed(config: TrainConfig) -> Allowed:
    """Returns which tensors may differ from the checkpoint."""
    return Allowed(config.pretrained_differs, config.pretrained_resized)


def _check_inputs(config: TrainConfig, loader: Loader) -> None:
    """Checks that batches hold what the model reads, where transforms may have changed it."""
    found = [key.removeprefix("observation/") for key in loader.spec if key.count("/") == 1]
    missing = sorted(set(config.model.observation_keys) - set(found))
    if missing:
        raise UserError(
            where="config.model, observations",
            expected="some of a batch after data.transforms: " + ", ".join(found),
            found=", ".join(missing),
            remedy=did_you_mean(missing[0], found)
            + "Add it to data.observations, or remove its tokenizer from the model.",
        )


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
