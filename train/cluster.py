"""Several processes as one run: how they find each other, who writes, and how they agree."""

import os
import pathlib

import jax
import numpy as np
from jax.experimental import multihost_utils

from pipeline.errors import UserError

_COORDINATOR = "JAX_COORDINATOR_ADDRESS"
_COUNT = "JAX_NUM_PROCESSES"
_INDEX = "JAX_PROCESS_ID"


def join() -> None:
    """Joins the processes of a Slurm job, of a TPU slice, or those that the environment names.

    Nothing happens in a single process. Elsewhere than on Slurm and TPUs, `JAX_COORDINATOR_ADDRESS`
    (host:port of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` are set for each process.

    Raises:
      UserError: Only some of these variables are set, or the processes do not find each other.
    """
    named = {name: os.environ.get(name) for name in (_COORDINATOR, _COUNT, _INDEX)}
    missing = [name for name, value in named.items() if value is None]
    if 0 < len(missing) < len(named):
        raise UserError(
            where="environment",
            expected=f"all of {', '.join(named)}, or none",
            found=f"{', '.join(missing)} missing",
            remedy="Set it for every process, or unset the others.",
        )
    try:
        if not missing:
            jax.distributed.initialize(
                named[_COORDINATOR], int(named[_COUNT] or 0), int(named[_INDEX] or 0)
            )
        elif _slurm_tasks() > 1 or _tpu_hosts() > 1:
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            where="jax.distributed",
            expected="all processes of the run",
            found=" ".join(str(error).split()),
            remedy="Check that every process starts, and that they reach process 0.",
        ) from error


def is_writer() -> bool:
    """Whether this process writes what is written once: logs, reports, the config."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has come to the point of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_process(value: bool) -> bool:  # noqa: FBT001  (one value, gathered)
    """Whether it is so in any process; every process must ask."""
    if jax.process_count() == 1:
        return value
    return bool(np.any(multihost_utils.process_allgather(np.asarray(value))))


def _slurm_tasks() -> int:
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", os.environ.get("SLURM_NTASKS", "1")))


def _tpu_hosts() -> int:
    """Hosts of a TPU slice; 1 elsewhere."""
    has_tpu = pathlib.Path("/dev/accel0").exists() or pathlib.Path("/dev/vfio/0").exists()
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return len(hosts.split(",")) if has_tpu or hosts else 1
