"""Describes a run's config, devices, versions and commit."""

import importlib.metadata
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pipeline.files import to_json_values
from pipeline.loading.device import DATA_AXIS, FSDP_AXIS
from train.checkpoints.run_directory import flatten
from train.train_config import TrainConfig
from train.update.optimizer import learning_rate


def describe_config(config: TrainConfig, unchanged: TrainConfig | None) -> str:
    """Returns one line per field; those changed by a flag are marked, with the file's value.

    Args:
      config: The config of the run.
      unchanged: The config in its file; None: nothing is marked.
    """
    now, before = _flat(config, unchanged)
    return "\n".join(
        f"{'  ' if now.get(key) == before.get(key) else '* '}{_setting(key, now, before)}"
        for key in sorted(now.keys() | before.keys())
    )


def changed_settings(config: TrainConfig, unchanged: TrainConfig | None) -> list[str]:
    """Returns the fields that flags changed, such as `num_steps = 20  (file: 200)`."""
    now, before = _flat(config, unchanged)
    changed = (key for key in sorted(now.keys() | before.keys()) if now.get(key) != before.get(key))
    return [_setting(key, now, before) for key in changed]


def _flat(
    config: TrainConfig, unchanged: TrainConfig | None
) -> tuple[dict[str, object], dict[str, object]]:
    now = flatten(to_json_values(config))
    return now, now if unchanged is None else flatten(to_json_values(unchanged))


def _setting(key: str, now: Mapping[str, object], before: Mapping[str, object]) -> str:
    text = f"{key} = {_value(now.get(key))}"
    same = now.get(key) == before.get(key)
    return text if same else f"{text}  (file: {_value(before.get(key))})"


def describe_devices(mesh: jax.sharding.Mesh) -> str:
    """Returns a text such as `8 x NVIDIA H100 in 2 processes, mesh data 4 x fsdp 2`."""
    kind = jax.devices()[0].device_kind
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    shape = f"mesh data {mesh.shape[DATA_AXIS]} x fsdp {mesh.shape[FSDP_AXIS]}"
    return f"{jax.device_count()} x {kind}{processes}, {shape}"


def describe_short_warmup(config: TrainConfig) -> str | None:
    """Returns a warning if the run ends before its learning rate has risen; None if it does not."""
    warmup, num_steps = config.optimizer.warmup_steps, config.num_steps
    if warmup < num_steps:
        return None
    # NumPy's scalar as a Python float, for the format.
    last = np.asarray(learning_rate(config.optimizer, num_steps)(num_steps - 1)).item()
    return (
        f"optimizer.warmup_steps {warmup} is not below num_steps {num_steps}: the rate only "
        f"rises, to {last:.2g} of {config.optimizer.learning_rate:.2g} at the last step. That "
        "is enough to see a run work; to train, lower warmup_steps"
    )


def _value(value: object) -> str:
    return "none" if value is None else str(value)


ENVIRONMENT_NAME = "environment.json"
_PACKAGES = ("octograin", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_STATUS = ("status", "--porcelain", "--untracked-files=no")
_TIMEOUT_S = 5.0


def describe_environment(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Returns the JSON values of a run's `environment.json`."""
    return {
        "devices": describe_devices(mesh),
        "commit": find_commit(pathlib.Path(__file__).parents[2]),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def find_commit(checkout: pathlib.Path) -> str | None:
    """Returns the commit of a checkout, with `+changes` if files differ; None without git."""
    # Not every checkout is one of git; a wheel has no commit.
    if not (checkout / ".git").exists():
        return None
    commit = _git(checkout, "rev-parse", "HEAD")
    if not commit:
        return None
    # Untracked files are left out: they do not change what runs.
    return commit + ("+changes" if _git(checkout, *_STATUS) else "")


def _git(checkout: pathlib.Path, *words: str) -> str:
    """Returns what git prints; empty if it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), *words],
            capture_output=True,
            text=True,
            # On a slow network disk git may take minutes.
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
