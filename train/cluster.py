"""Several processes as one run: how they find each other, who writes, and how they agree."""

import hashlib
import importlib.util
import json
import os
import pathlib
import urllib.request
from collections.abc import Callable
from typing import TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from pipeline.errors import UserError

_COORDINATOR = "JAX_COORDINATOR_ADDRESS"
_COUNT = "JAX_NUM_PROCESSES"
_INDEX = "JAX_PROCESS_ID"
_METADATA_S = 5.0
"""The server is on the host itself."""
_ERROR_BYTES = 1 << 16
"""Room for the text of an error on its way from one process to the others."""
T = TypeVar("T")


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


def agree(*, flag: bool = False, error: UserError | None = None) -> bool:
    """Whether the flag is set in any process; every process must ask.

    Where the devices are at work, this waits for them.

    Args:
      flag: Of this process.
      error: Of this process; None: it has none.

    Raises:
      UserError: In every process, where any has an error: that of the first one that has.
    """
    if jax.process_count() == 1:
        if error is not None:
            raise error
        return flag
    found = multihost_utils.process_allgather(np.asarray([flag, error is not None]))
    failed = np.flatnonzero(found[:, 1])
    if len(failed):
        raise _error_of(int(failed[0]), error) from error
    return bool(found[:, 0].any())


def together(work: Callable[[], T]) -> T:
    """What the work gives here, once it is done in every process.

    Args:
      work: What this process does; every process must have some.

    Raises:
      UserError: In every process, where the work of any raises it.
    """
    done = failure = None
    try:
        done = work()
    except UserError as error:
        failure = error
    agree(error=failure)
    return cast(T, done)


def check_alike(text: str, error: UserError) -> None:
    """Returns where all processes give the same text; every process must ask.

    Args:
      text: Of this process.
      error: What to tell, if it is not the text of the first process.

    Raises:
      UserError: In every process, where any has another text: the error of the first that has.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    found = multihost_utils.process_allgather(digest)
    agree(error=None if np.array_equal(found[0], digest) else error)


def _error_of(index: int, error: UserError | None) -> UserError:
    """The error of one process, sent to every process."""
    fields = ("where", "expected", "found", "remedy")
    text = json.dumps({field: getattr(error, field, "")[: _ERROR_BYTES // 28] for field in fields})
    room = np.zeros(_ERROR_BYTES, np.uint8)
    data = np.frombuffer(text.encode(), np.uint8)
    room[: len(data)] = data
    received = multihost_utils.broadcast_one_to_all(room, is_source=jax.process_index() == index)
    values = json.loads(np.asarray(received, np.uint8).tobytes().rstrip(b"\0"))
    return UserError(**values | {"where": f"process {index}, {values['where']}"})


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
    """The slice's hosts, separated by commas; empty where no server answers."""
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
