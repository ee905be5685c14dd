"""A run's config and devices in words."""

import jax

from pipeline.device import DATA_AXIS, FSDP_AXIS
from pipeline.files import to_json_values
from train.config import TrainConfig
from train.directory import flatten


def describe_config(config: TrainConfig, unchanged: TrainConfig | None) -> str:
    """A line a field, those that differ from the file's marked with what the file has.

    Args:
      config: The run's.
      unchanged: As its file has it; None: nothing is marked.
    """
    now = flatten(to_json_values(config))
    before = now if unchanged is None else flatten(to_json_values(unchanged))
    lines = []
    for key in sorted(now.keys() | before.keys()):
        if now.get(key) == before.get(key):
            lines.append(f"  {key} = {_value(now[key])}")
        else:
            lines.append(f"* {key} = {_value(now.get(key))}  (file: {_value(before.get(key))})")
    return "\n".join(lines)


def describe_devices(mesh: jax.sharding.Mesh) -> str:
    """Such as `8 x NVIDIA H100 in 2 processes, mesh data 4 x fsdp 2`."""
    kind = jax.devices()[0].device_kind
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    shape = f"mesh data {mesh.shape[DATA_AXIS]} x fsdp {mesh.shape[FSDP_AXIS]}"
    return f"{jax.device_count()} x {kind}{processes}, {shape}"


def _value(value: object) -> str:
    return "none" if value is None else str(value)
