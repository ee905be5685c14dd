"""What runs of one test process share: traced and compiled steps, and first states."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest

import train.run
import train.run_setup
from pipeline.config_checks import deferred
from pipeline.loading.data_config import DatasetConfig
from train.metrics.validation import Validator
from train.run_setup import Setup
from train.train_config import TrainConfig, ValidationConfig
from train.update.train_state import TrainState, fresh_state, init_state
from train.update.train_step import TrainStep, make_train_step


@contextlib.contextmanager
def shared_by_runs() -> Iterator[None]:
    """Runs in this block trace and compile once what their configs have in common.

    That is 5 s of CPU time for each further run of the tiny config.
    """
    states: dict[str, TrainState] = {}

    def first_state(init: functools.partial[TrainState], shardings: Any) -> TrainState:
        key = read_by_programs(init.args[0])
        if key not in states:
            states[key] = jax.device_get(fresh_state(init, shardings))
        return jax.device_put(states[key], shardings)

    steps: dict[tuple[str, str], TrainStep] = {}
    compile_alone = Setup.compile

    def compile_once(setup: Setup) -> TrainStep:
        # The shapes with their shardings: the same config may run on other devices.
        key = read_by_programs(setup.config), str((setup.state, setup.batch, setup.table))
        if key not in steps:
            steps[key] = compile_alone(setup)
        return steps[key]

    validators: dict[tuple[str, Any], Validator] = {}

    def validator(config: TrainConfig, *args: Any) -> Validator:
        made = Validator(config, *args)
        *_, sharding = args
        key = read_by_programs(config) + repr(config.data.transforms)
        first = validators.setdefault((key, sharding), made)
        made._evaluate, made._sample = first._evaluate, first._sample
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.run_setup, "make_train_step", _once(make_train_step))
        make_init = _once(lambda config, optimizer: jax.jit(lambda: init_state(config, optimizer)))
        patch.setattr(train.run_setup, "init_state", lambda *args: make_init(*args)())
        patch.setattr(train.run_setup, "fresh_state", first_state)
        patch.setattr(Setup, "compile", compile_once)
        patch.setattr(train.run_setup, "Validator", validator)
        yield


def _once(make: Callable[..., Any]) -> Callable[..., Any]:
    """Makes what configs share at the first call; jax then finds its own caches by its identity."""
    made: dict[str, Any] = {}

    def get(config: TrainConfig, *args: object) -> Any:
        key = read_by_programs(config)
        if key not in made:
            made[key] = make(config, *args)
        return made[key]

    return get


def read_by_programs(config: TrainConfig) -> str:
    """All of a config but the fields that neither a step nor a first state depends on."""
    schedule = config.optimizer
    is_timed = schedule.schedule == "cosine" and schedule.decay_steps is None
    with deferred():
        data = dataclasses.replace(
            config.data,
            datasets=(DatasetConfig("any"),),
            validation_fraction=0.0,
            transforms=(),  # the shapes that they leave are compared beside this
        )
        config = dataclasses.replace(
            config,
            data=data,
            save_dir="any",
            name=None,
            num_steps=config.num_steps if is_timed else 1,
            save_interval=1,
            keep_checkpoints=1,
            keep_every=None,
            validation=ValidationConfig(),
            compilation_cache=None,
            pretrained_differs=(),
        )
    return repr(config)
