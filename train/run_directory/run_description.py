"""Describes a run's config and devices as text."""

from collections.abc import Mapping

import jax
import numpy as np

from pipeline.files import to_json_values
from pipeline.loading.device import DATA_AXIS, FSDP_AXIS
from train.run_directory.run_directory import flatten
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
    last = np.asarray(learning_rate(config.optimizer, num_steps)(num_steps - 1)).item()
    return (
        f"optimizer.warmup_steps {warmup} is not below num_steps {num_steps}: the rate only "
        f"rises, to {last:.2g} of {config.optimizer.learning_rate:.2g} at the last step. That "
        "is enough to see a run work; to train, lower warmup_steps"
    )


def _value(value: object) -> str:
    return "none" if value is None else str(value)
