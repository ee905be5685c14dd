"""Several processes as one run: how they find each other, who writes, and how they agree."""

import importlib.util
import os
import pathlib
import urllib.request

import jax
import numpy as np
from jax.experimental import multihost_utils

from pipeline.errors import UserError

_COORDINATOR = "JAX_COORDINATOR_ADDRESS"
_COUNT = "JAX_NUM_PROCESSES"
_INDEX = "JAX_PROCESS_ID"
_METADATA_S = 5.0
"""The server is on the host itself."""


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
    """Processes that `srun` started together; 1 elsewhere, as in the shell of an allocation."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))


def _tpu_hosts() -> int:
    """Hosts of a TPU slice, or of several slices; 1 elsewhere.

    Source: what jax goes by when it joins them: the variables that GKE sets, else the metadata
    server of a Cloud TPU VM.
    """
    if not _has_tpu():
        return 1
    named = os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES"))
    hosts = _tpu_endpoints() if named is None else named
    return len(hosts.split(",")) * int(os.environ.get("MEGASCALE_NUM_SLICES", "1"))


def _has_tpu() -> bool:
    """A machine with GPUs may have the same device files, but not the library."""
    devices = (pathlib.Path("/dev/accel0"), pathlib.Path("/dev/vfio/0"))
    return importlib.util.find_spec("libtpu") is not None and any(map(os.path.exists, devices))


def _tpu_endpoints() -> str:
    """The slice's hosts, separated by commas; nothing where no server tells them."""
    if "TPU_SKIP_MDS_QUERY" in os.environ:
        return ""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/worker-network-endpoints"
    asked = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(asked, timeout=_METADATA_S) as answer:
            return answer.read().decode()
    except OSError:
        return ""
