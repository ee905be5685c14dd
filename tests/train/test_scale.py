"""Runs in processes of their own: signals, kills, several devices and several processes."""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from train.checkpoints import read_checkpoint
from train.logging import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
_KILLS = int(os.environ.get("OCTOGRAIN_KILLS", "4"))


def start(config_path, dataset, directory, *flags, devices=1, env=None):
    """`python -m train.run` in a process of its own, without waiting for it."""
    arguments = [
        f"--config.data.datasets.0.path={dataset}",
        f"--config.save_dir={directory}",
        f"--config.compilation_cache={directory.parent}/compiled",
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "train.run", "--config", str(config_path), *arguments, *flags],
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            **(env or {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, code=0):
    _, told = process.communicate(timeout=240)
    assert process.returncode == code, told
    return told


def losses(directory):
    return [(row.step, row.loss, row.batch_fingerprint) for row in read_metrics(directory)]


def num_steps(directory):
    path = directory / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for_steps(process, directory, number):
    while num_steps(directory) < number:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def assert_equal_params(directory, expected, step):
    found, wanted = (read_checkpoint(path, step).params for path in (directory, expected))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.fixture(scope="module")
def undisturbed(tiny_config_path, mini_dataset, tmp_path_factory):
    """A run of 60 steps on one device."""
    directory = tmp_path_factory.mktemp("scale") / "undisturbed"
    finish(start(tiny_config_path, mini_dataset, directory, *LONG))
    return directory


LONG = ("--config.num_steps=60", "--config.optimizer.decay_steps=100", "--config.save_interval=7")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(
    undisturbed, tiny_config_path, mini_dataset, number
):
    directory = undisturbed.with_name(number.name)
    # A checkpoint a step: the signal comes while one is being written.
    process = start(tiny_config_path, mini_dataset, directory, *LONG, "--config.save_interval=1")
    wait_for_steps(process, directory, 10)
    process.send_signal(number)
    told = finish(process, code=130 if number is signal.SIGINT else 0)
    assert f"stopped by {number.name}; the state is saved: go on with --resume" in told
    taken = num_steps(directory)
    assert 10 <= taken < 60
    assert read_checkpoint(directory).step == taken
    finish(start(tiny_config_path, mini_dataset, directory, *LONG, "--resume"))
    assert losses(directory) == losses(undisturbed)
    assert_equal_params(directory, undisturbed, 60)


def test_a_run_that_is_killed_at_any_moment_is_resumed_bit_for_bit(
    undisturbed, tiny_config_path, mini_dataset
):
    """Kills while it starts, between steps, and while a checkpoint is written."""
    last = 60 * _KILLS
    flags = (f"--config.num_steps={last}", "--config.optimizer.decay_steps=5000")
    flags = (*flags, "--config.save_interval=7")
    whole, directory = undisturbed.with_name("whole"), undisturbed.with_name("killed")
    finish(start(tiny_config_path, mini_dataset, whole, *flags))
    moments = random.Random(0)
    for _ in range(_KILLS):
        resume = ["--resume"] if (directory / "config.json").exists() else []
        process = start(tiny_config_path, mini_dataset, directory, *flags, *resume)
        before = num_steps(directory)
        deadline = time.monotonic() + moments.choice([moments.uniform(0, 8), 60])
        while num_steps(directory) < before + 20 and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.1))
        assert process.poll() is None, process.communicate()[1]
        process.kill()
        process.communicate()
        for step in steps_of(directory):
            read_checkpoint(directory, step)
    assert num_steps(directory) < last
    resume = ["--resume"] if (directory / "config.json").exists() else []
    finish(start(tiny_config_path, mini_dataset, directory, *flags, *resume))
    assert losses(directory) == losses(whole)
    assert_equal_params(directory, whole, last)


def steps_of(directory):
    path = directory / "checkpoints"
    return (
        sorted(int(p.name) for p in path.iterdir() if p.name.isdecimal()) if path.exists() else []
    )


def test_a_second_process_is_told_who_is_at_work(undisturbed, tiny_config_path, mini_dataset):
    directory = undisturbed.with_name("in_use")
    endless = ("--config.num_steps=100000", "--config.optimizer.decay_steps=100000")
    first = start(tiny_config_path, mini_dataset, directory, *endless)
    wait_for_steps(first, directory, 1)
    second = start(tiny_config_path, mini_dataset, directory, *LONG, "--overwrite")
    told = finish(second, code=2)
    assert f"found process {first.pid} on {socket.gethostname()} at work on it" in told
    first.kill()
    first.communicate()


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def close_to(directory, expected, num):
    ours, theirs = (
        [row.loss for row in read_metrics(path)][:num] for path in (directory, expected)
    )
    assert len(ours) == num
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


FEW = ("--config.num_steps=6", "--config.optimizer.decay_steps=100", "--config.save_interval=3")


@pytest.mark.parametrize("fsdp_devices", [1, 2])
def test_two_devices_train_as_one_and_go_on_as_one(
    undisturbed, tiny_config_path, mini_dataset, fsdp_devices
):
    directory = undisturbed.with_name(f"fsdp{fsdp_devices}")
    flags = (*FEW, f"--config.fsdp_devices={fsdp_devices}")
    finish(start(tiny_config_path, mini_dataset, directory, *flags, devices=2))
    close_to(directory, undisturbed, 6)
    longer = (*FEW, "--config.num_steps=12", "--resume")
    finish(start(tiny_config_path, mini_dataset, directory, *longer))
    close_to(directory, undisturbed, 12)


def start_two(config_path, dataset, directory, *flags):
    """Two processes of one run."""
    env = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    env |= {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    return [
        start(config_path, dataset, directory, *flags, env=env | {"JAX_PROCESS_ID": str(index)})
        for index in range(2)
    ]


def test_two_processes_train_as_one_and_go_on_as_one(undisturbed, tiny_config_path, mini_dataset):
    directory = undisturbed.with_name("processes")
    held_out = ("--config.data.validation_fraction=0.3", "--config.validation.num_batches=2")
    alone = undisturbed.with_name("alone")
    finish(start(tiny_config_path, mini_dataset, alone, *FEW, *held_out))
    processes = start_two(tiny_config_path, mini_dataset, directory, *FEW, *held_out)
    told = [finish(process) for process in processes]
    assert "2 x cpu in 2 processes" in told[0]
    assert "2 x cpu" not in told[1]  # only the first one writes
    close_to(directory, alone, 6)
    ours, theirs = (
        json.loads((path / "validation.jsonl").read_text()) for path in (directory, alone)
    )
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-4)
    assert (directory / "report.html").exists()
    longer = (*FEW, *held_out, "--config.num_steps=9", "--resume")
    finish(start(tiny_config_path, mini_dataset, directory, *longer))
    assert [row.step for row in read_metrics(directory)] == list(range(1, 10))


def test_a_damaged_record_in_one_process_ends_both_which_go_on_without_it(
    undisturbed, tiny_config_path, mini_dataset, tmp_path
):
    spoiled, directory = tmp_path / "spoiled", undisturbed.with_name("spoiled")
    shutil.copytree(mini_dataset, spoiled)
    path = spoiled / "steps" / "00000-of-00002.arrayrecord"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    flags = (*LONG, "--config.batch_size=16", "--config.save_interval=1000")
    told = [finish(one, 2) for one in start_two(tiny_config_path, spoiled, directory, *flags)]
    errors = [re.search(r"error: (process [01], .*)", text).group(1) for text in told]
    assert errors[0] == errors[1]
    found = re.search(
        r"record \d+: expected a readable .* is saved at step (\d+): go on with --resume.* "
        r"--config.data.datasets.0.excluded (\S+)$",
        errors[0],
    )
    step = int(found.group(1))
    assert [row.step for row in read_metrics(directory)] == list(range(1, step + 1))
    assert read_checkpoint(directory).step == step
    longer = (*flags, f"--config.num_steps={step + 3}", "--resume")
    excluded = (*longer, "--config.data.datasets.0.excluded", found.group(2))
    for process in start_two(tiny_config_path, spoiled, directory, *excluded):
        finish(process)
    assert [row.step for row in read_metrics(directory)] == list(range(1, step + 4))


def test_a_run_in_use_is_told_in_every_process(tiny_config_path, mini_dataset, tmp_path):
    directory = tmp_path / "run"
    endless = ("--config.num_steps=100000", "--config.optimizer.decay_steps=100000")
    first = start(tiny_config_path, mini_dataset, directory, *endless)
    wait_for_steps(first, directory, 1)
    others = start_two(tiny_config_path, mini_dataset, directory, *endless, "--overwrite")
    for process in others:
        assert f"process 0, save_dir {directory}: expected a run that no" in finish(process, 2)
    first.kill()
    first.communicate()


def test_a_second_signal_ends_a_process_that_waits_for_another(
    tiny_config_path, mini_dataset, tmp_path
):
    endless = ("--config.num_steps=100000", "--config.optimizer.decay_steps=100000")
    waiting, silent = start_two(tiny_config_path, mini_dataset, tmp_path / "run", *endless)
    wait_for_steps(waiting, tmp_path / "run", 1)
    silent.send_signal(signal.SIGSTOP)
    time.sleep(1)  # the step under way ends
    waiting.send_signal(signal.SIGTERM)
    time.sleep(6)
    assert waiting.poll() is None
    waiting.send_signal(signal.SIGTERM)
    told = finish(waiting, 128 + signal.SIGTERM)
    assert "SIGTERM: to stop; again in 5 s ends the run unsaved" in told
    assert "ended by a second SIGTERM; --resume goes on from the last checkpoint" in told
    silent.kill()
    silent.communicate()


def test_half_a_cluster_is_told(tiny_config_path, mini_dataset, tmp_path):
    env = {"JAX_NUM_PROCESSES": "2"}
    told = finish(start(tiny_config_path, mini_dataset, tmp_path / "run", *FEW, env=env), code=2)
    assert "JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID missing" in told
