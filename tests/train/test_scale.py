"""Runs in separate processes: signals, kills, several devices and several processes."""

import dataclasses
import functools
import json
import os
import random
import re
import shutil
import signal
import socket
import time

import jax
import numpy as np
import pytest

from pipeline.loading.data_config import DatasetConfig
from tests.processes import Command
from tests.train.save_moments import signal_at_save
from train.checkpoints.checkpoint_store import read_checkpoint
from train.checkpoints.run_directory import claimed
from train.flags import Flags, load_config
from train.metrics.step_metrics import read_metrics
from train.processes.liveness import EXIT_OTHER_DIED
from train.run import run
from train.train_config import ValidationConfig

STEPS = ("--config.num_steps=24", "--config.save_interval=7")
FEW = (*STEPS, "--config.num_steps=6")
ENDLESS = ("--config.num_steps=100000", "--config.optimizer.decay_steps=100000")
HELD_OUT = {"validation_fraction": 0.3, "validation": ValidationConfig(num_batches=2)}
KILLS = 20


def start(config_path, dataset, directory, *flags, devices=2, env=None, before=None):
    """Starts `python -m train.run` in a separate process, without waiting for it.

    With 2 devices it loads the programs that runs in this process have compiled.
    """
    arguments = [
        f"--config.data.datasets.0.path={dataset}",
        f"--config.save_dir={directory}",
        f"--config.compilation_cache={jax.config.jax_compilation_cache_dir}",
    ]
    flags_of_xla = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    env = {"XLA_FLAGS": flags_of_xla, **(env or {})}
    line = ("--config", config_path, *arguments, *flags)
    return Command("train.run", *line, env=env, before=before)


def losses(directory):
    return [(row.step, row.loss, row.batch_fingerprint) for row in read_metrics(directory)]


def num_steps(directory):
    path = directory / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def assert_equal_params(directory, expected, step):
    found, wanted = (read_checkpoint(path, step).params for path in (directory, expected))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def train_here(config_path, dataset, directory, *, resume=False, **changes):
    """Runs the same in this process."""
    config = load_config(str(config_path))
    data = dataclasses.replace(config.data, datasets=(DatasetConfig(str(dataset)),))
    held_out = changes.pop("validation_fraction", 0.0)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(data, validation_fraction=held_out),
        save_dir=str(directory),
        **changes,
    )
    return run(Flags(config, resume=resume))


@pytest.fixture(scope="module")
def tiny_config_path(tiny_config_path):
    """The variant that compiles fastest: each number of devices or processes compiles it again."""
    return f"{tiny_config_path}:shallow"


@pytest.fixture(scope="module")
def undisturbed(tiny_config_path, mini_dataset, tmp_path_factory):
    """A run of 24 steps on two devices."""
    directory = tmp_path_factory.mktemp("scale") / "undisturbed"
    return train_here(tiny_config_path, mini_dataset, directory, num_steps=24, save_interval=7)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_the_resumed_run_is_bitwise_identical(
    undisturbed, tiny_config_path, mini_dataset, number
):
    directory = undisturbed.with_name(number.name)
    # A checkpoint per step: the signal comes while one is being written.
    flags, before = ("--config.save_interval=1",), functools.partial(signal_at_save, 10, number)
    process = start(tiny_config_path, mini_dataset, directory, *STEPS, *flags, before=before)
    process.finish(code=130 if number is signal.SIGINT else 0)
    assert f"stopped by {number.name}; the state is saved: continue with --resume" in process.stderr
    taken = num_steps(directory)
    assert 10 <= taken <= 12
    assert read_checkpoint(directory).step == taken
    train_here(tiny_config_path, mini_dataset, directory, num_steps=24, resume=True)
    assert losses(directory) == losses(undisturbed)
    assert_equal_params(directory, undisturbed, 24)


def test_a_run_that_is_killed_while_it_writes_a_checkpoint_is_resumed_bitwise_identically(
    undisturbed, tiny_config_path, mini_dataset
):
    directory = undisturbed.with_name("killed")
    before = functools.partial(signal_at_save, 14, signal.SIGKILL)
    process = start(tiny_config_path, mini_dataset, directory, *STEPS, before=before)
    process.finish(-signal.SIGKILL)
    for step in steps_of(directory):
        read_checkpoint(directory, step)
    train_here(tiny_config_path, mini_dataset, directory, num_steps=24, resume=True)
    assert losses(directory) == losses(undisturbed)
    assert_equal_params(directory, undisturbed, 24)


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_is_resumed_bitwise_identically(
    undisturbed, tiny_config_path, mini_dataset
):
    """Kills while it starts, between steps, and while a checkpoint is written."""
    last = 60 * KILLS
    flags = (f"--config.num_steps={last}", "--config.optimizer.decay_steps=5000")
    flags = (*flags, "--config.save_interval=7")
    whole, directory = undisturbed.with_name("whole"), undisturbed.with_name("killed_often")
    start(tiny_config_path, mini_dataset, whole, *flags).finish()
    moments = random.Random(0)
    for _ in range(KILLS):
        resume = ["--resume"] if (directory / "config.json").exists() else []
        process = start(tiny_config_path, mini_dataset, directory, *flags, *resume)
        before = num_steps(directory)
        deadline = time.monotonic() + moments.choice([moments.uniform(0, 8), 60])
        while num_steps(directory) < before + 20 and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.1))
        assert process.returncode is None, process.stderr
        process.kill()
        for step in steps_of(directory):
            read_checkpoint(directory, step)
    assert num_steps(directory) < last
    resume = ["--resume"] if (directory / "config.json").exists() else []
    start(tiny_config_path, mini_dataset, directory, *flags, *resume).finish()
    assert losses(directory) == losses(whole)
    assert_equal_params(directory, whole, last)


def steps_of(directory):
    path = directory / "checkpoints"
    return (
        sorted(int(p.name) for p in path.iterdir() if p.name.isdecimal()) if path.exists() else []
    )


def close_to(directory, expected, num):
    ours, theirs = (
        [row.loss for row in read_metrics(path)][:num] for path in (directory, expected)
    )
    assert len(ours) == num
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp_devices", [1, 2])
def test_two_devices_train_as_one_and_continue_as_one(
    undisturbed, tiny_config_path, mini_dataset, fsdp_devices
):
    directory = undisturbed.with_name(f"fsdp{fsdp_devices}")
    train_here(tiny_config_path, mini_dataset, directory, num_steps=6, fsdp_devices=fsdp_devices)
    close_to(directory, undisturbed, 6)
    longer = (*FEW, "--config.num_steps=12", "--resume")
    start(tiny_config_path, mini_dataset, directory, *longer, devices=1).finish()
    close_to(directory, undisturbed, 12)


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start_all(count, config_path, dataset, directory, *flags, dies=None, at_save=0):
    """The processes of one run; one of them may be killed while it writes a checkpoint."""
    env = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": str(count)}
    env |= {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    killed = functools.partial(signal_at_save, at_save, signal.SIGKILL)
    return [
        start(
            config_path,
            dataset,
            directory,
            *flags,
            devices=1,
            env=env | {"JAX_PROCESS_ID": str(index)},
            before=killed if index == dies else None,
        )
        for index in range(count)
    ]


start_two = functools.partial(start_all, 2)


@pytest.fixture(scope="module")
def alone(undisturbed, tiny_config_path, mini_dataset):
    """A run of 6 steps that validates on held-out episodes, in this process."""
    return train_here(
        tiny_config_path,
        mini_dataset,
        undisturbed.with_name("alone"),
        **HELD_OUT,
        num_steps=6,
        save_interval=3,
    )


def test_two_processes_train_as_one_and_continue_as_one(
    undisturbed, alone, tiny_config_path, mini_dataset
):
    directory = undisturbed.with_name("processes")
    held_out = ("--config.data.validation_fraction=0.3", "--config.validation.num_batches=2")
    flags = (*FEW, "--config.save_interval=3", *held_out)
    first, second = start_two(tiny_config_path, mini_dataset, directory, *flags)
    assert "2 x cpu in 2 processes" in first.finish().stderr
    assert "2 x cpu" not in second.finish().stderr  # only the first one writes
    close_to(directory, alone, 6)
    ours, theirs = (
        json.loads((path / "validation.jsonl").read_text()) for path in (directory, alone)
    )
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-4)
    assert (directory / "report.html").exists()
    train_here(tiny_config_path, mini_dataset, directory, resume=True, **HELD_OUT, num_steps=9)
    assert [row.step for row in read_metrics(directory)] == list(range(1, 10))


@pytest.mark.slow
def test_a_corrupt_record_in_one_process_ends_both_which_continue_without_it(
    undisturbed, tiny_config_path, mini_dataset, tmp_path
):
    spoiled, directory = tmp_path / "spoiled", undisturbed.with_name("spoiled")
    shutil.copytree(mini_dataset, spoiled)
    path = spoiled / "steps" / "00000-of-00002.arrayrecord"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    flags = ("--config.num_steps=60", "--config.batch_size=16", "--config.save_interval=1000")
    both = start_two(tiny_config_path, spoiled, directory, *flags)
    outputs = [one.finish(2).stderr for one in both]
    errors = [re.search(r"error: (process [01], .*)", text).group(1) for text in outputs]
    assert errors[0] == errors[1]
    found = re.search(
        r"record \d+: expected a readable .* is saved at step (\d+): continue with --resume.* "
        r"--config.data.datasets.0.excluded (\S+)$",
        errors[0],
    )
    step = int(found.group(1))
    assert [row.step for row in read_metrics(directory)] == list(range(1, step + 1))
    assert read_checkpoint(directory).step == step
    longer = (*flags, f"--config.num_steps={step + 3}", "--resume")
    excluded = (*longer, "--config.data.datasets.0.excluded", found.group(2))
    for process in start_two(tiny_config_path, spoiled, directory, *excluded):
        process.finish()
    assert [row.step for row in read_metrics(directory)] == list(range(1, step + 4))


@pytest.mark.slow
def test_every_process_logs_who_is_at_work(undisturbed, tiny_config_path, mini_dataset):
    directory = undisturbed.with_name("in_use")
    config = dataclasses.replace(load_config(str(tiny_config_path)), save_dir=str(directory))
    found = f"found process {os.getpid()} on {socket.gethostname()} at work on it"
    with claimed(config, resume=False, overwrite=False):
        both = start_two(tiny_config_path, mini_dataset, directory, *STEPS, "--overwrite")
        for process in both:
            expected = f"process 0, save_dir {directory}: expected a run that no"
            assert expected in process.finish(2).stderr
            assert found in process.stderr


@pytest.mark.slow
def test_a_second_signal_ends_a_process_that_waits_for_another(
    tiny_config_path, mini_dataset, tmp_path
):
    waiting, silent = start_two(tiny_config_path, mini_dataset, tmp_path / "run", *ENDLESS)
    waiting.wait_until(lambda: num_steps(tmp_path / "run") >= 1)
    silent.send_signal(signal.SIGSTOP)
    time.sleep(1)  # the step under way ends
    waiting.send_signal(signal.SIGTERM)
    time.sleep(6)
    assert waiting.returncode is None
    waiting.send_signal(signal.SIGTERM)
    output = waiting.finish(128 + signal.SIGTERM).stderr
    assert "SIGTERM: stopping; a second one after 5 s ends the run unsaved" in output
    assert "ended by a second SIGTERM; --resume continues from the last checkpoint" in output
    silent.kill()


@pytest.mark.slow
def test_a_run_of_eight_processes_of_which_one_is_killed_continues_on_four_and_on_one(
    undisturbed, tiny_config_path, mini_dataset
):
    """Killed while it writes a checkpoint: with fewer processes, the batches are the same."""
    alone, directory = undisturbed.with_name("of one"), undisturbed.with_name("of eight")
    flags = ("--config.batch_size=8", "--config.save_interval=3", "--config.num_steps=12")
    start(tiny_config_path, mini_dataset, alone, *flags, devices=1).finish()
    for count, dies, at_save in ((8, 5, 6), (4, 0, 9)):
        resume = ("--resume",) if count < 8 else ()
        command = (count, tiny_config_path, mini_dataset, directory, *flags, *resume)
        processes = start_all(*command, dies=dies, at_save=at_save)
        processes[dies].finish(-signal.SIGKILL)
        for index, process in enumerate(processes):
            if index != dies:
                process.finish(EXIT_OTHER_DIED)
                (error,) = (line for line in process.stderr.splitlines() if "error: " in line)
                assert error.startswith(f"error: process {dies} on {socket.gethostname()}: ")
                assert "Traceback" not in process.stderr
        for step in steps_of(directory):
            read_checkpoint(directory, step)
    start(tiny_config_path, mini_dataset, directory, *flags, "--resume", devices=1).finish()
    close_to(directory, alone, 12)
