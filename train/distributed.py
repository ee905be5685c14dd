"""Connects the processes of a multi-host run, and lets them agree on errors and signals."""

import atexit
import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import json
import logging
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import jax
import numpy as np

# Not public, but what Orbax uses as well: nothing public finds the address of process 0, and
# nothing public exchanges a text without a collective.
from jax._src import distributed as jax_distributed
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pipeline.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError
from train.processes import relay
from train.processes.liveness import Address, Liveness

_log = logging.getLogger("train.run")

_COORDINATOR = "JAX_COORDINATOR_ADDRESS"
_COUNT = "JAX_NUM_PROCESSES"
_INDEX = "JAX_PROCESS_ID"
_JOIN_S = 300
"""How long a process waits for the others to start."""
_NOTICE_S = 20
"""After how long it says that it waits."""
_JAX_SILENCE_S = 240
"""JAX aborts all processes after such a silence, or after half of it, as it hears each process only
every 120 s. `Liveness` comes first, with one line instead of a stack trace."""
_KEY = "octograin/liveness"
"""Where process 0 publishes how the others reach it."""
_relays: list[subprocess.Popen[bytes]] = []
_watches: list[Liveness] = []
_METADATA_S = 5.0
"""Timeout of the metadata server, which runs on the host itself."""
_ERROR_BYTES = 1 << 16
"""Room for the text of an error that one process sends to the others."""
T = TypeVar("T")


def join() -> None:
    """Joins the processes of a Slurm job, of a TPU slice, or those set in the environment.

    A single process joins nothing. Outside Slurm and TPUs, set `JAX_COORDINATOR_ADDRESS` (host:port
    of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` for each process.

    Raises:
      UserError: Only some of these variables are set, one is not what jax needs, or the processes
        cannot reach each other.
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
    # A single task of a scheduler must not wait for others.
    if missing and _slurm_tasks() == 1 and _tpu_hosts() == 1:
        return
    set_count, set_index = (
        (None, None) if missing else _checked(*(value or "" for value in named.values()))
    )
    try:
        # On Slurm and TPUs, jax finds by itself what is not set.
        address, count, index, _ = ClusterEnv.auto_detect_unset_distributed_params(
            *(named[_COORDINATOR], set_count, set_index),
            *(None, None, _JOIN_S),
        )
        # Process 0 hosts the service itself.
        reached = _relayed(address) if index and address else address
        with _waiting(f"process {index} of {count}", cast(str, address)):
            jax.distributed.initialize(
                *(reached, count, index),
                # Then it aborts with a stack trace; `_waiting` comes first.
                initialization_timeout=_JOIN_S + 60,
                heartbeat_timeout_seconds=_JAX_SILENCE_S,
            )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            where="jax.distributed",
            expected="all processes of the run",
            found=" ".join(str(error).split()),
            remedy="Check that every process starts, and that they reach process 0.",
        ) from error
    _watch_others(cast(str, address))


@contextlib.contextmanager
def _waiting(process: str, address: str) -> Iterator[None]:
    """Says that this process waits for the others, and ends it after `_JOIN_S` or by Ctrl-C."""

    def end() -> None:
        error = UserError(
            where=process,
            expected=f"all processes of the run at {address} within {_JOIN_S} s",
            found="that not all have come",
            remedy="Start every process with this address, and check that each can reach it.",
        )
        sys.stderr.write(f"error: {error}\n")
        sys.stderr.flush()
        # jax's call cannot be interrupted.
        os._exit(EXIT_USER_ERROR)

    notice = f"{process} waits for the others at {address}, at most {_JOIN_S} s"
    timers = [threading.Timer(_NOTICE_S, _log.warning, [notice]), threading.Timer(_JOIN_S, end)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    is_main = threading.current_thread() is threading.main_thread()
    # Python's own handler would run once jax's call returns.
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL) if is_main else None
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        if is_main:
            signal.signal(signal.SIGINT, handler)


def _checked(address: str, count: str, index: str) -> tuple[int, int]:
    """Returns the number of processes and that of this one, from the three variables.

    Raises:
      UserError: One of them is not what jax needs.
    """
    host, _, port = address.rpartition(":")
    size, own = (int(text) if text.isdecimal() else -1 for text in (count, index))
    if not host or not port.isdecimal():
        name, value, expected = _COORDINATOR, address, "HOST:PORT of process 0, such as host0:1234"
    elif size < 1:
        name, value, expected = _COUNT, count, "the number of processes"
    elif not 0 <= own < size:
        name, value, expected = _INDEX, index, f"a number from 0 to {size - 1}"
    else:
        return size, own
    raise UserError(
        where=f"environment, {name}",
        expected=expected,
        found=repr(value),
        remedy="Set address and number alike for all processes, and JAX_PROCESS_ID for each.",
    )


def _relayed(address: str) -> str:
    """Starts a relay to the service of process 0, and returns the relay's own address."""
    host, _, port = address.rpartition(":")
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", relay.__file__, host.strip("[]"), port],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Or else Ctrl-C would end it.
        start_new_session=True,
    )
    # It ends with this process, when its stdin is closed.
    _relays.append(process)
    assert process.stdout is not None
    # Where a proxy is set, gRPC would look for this host behind it. It reads these names only.
    direct = os.environ.get("no_grpc_proxy", os.environ.get("no_proxy", ""))  # noqa: SIM112
    os.environ["no_grpc_proxy"] = f"{direct},localhost".lstrip(",")  # noqa: SIM112
    # It would warn of this very name.
    jax.config.update("jax_check_proxy_envs", False)  # noqa: FBT003  (jax has no keyword)
    return f"localhost:{int(process.stdout.readline())}"


def _watch_others(address: str) -> None:
    """Ends this process from now on if another one dies; `address` is that of process 0."""
    client = jax_distributed.global_state.client
    assert client is not None
    index, host = jax_distributed.global_state.process_id, socket.gethostname()
    if index == 0:
        liveness = Liveness(index, host)
        zero = liveness.address(address.rpartition(":")[0].strip("[]"))
        client.key_value_set(_KEY, json.dumps(dataclasses.astuple(zero)))
    else:
        zero = Address(*json.loads(client.blocking_key_value_get(_KEY, _JOIN_S * 1000)))
        try:
            liveness = Liveness(index, host, zero)
        except OSError as error:
            # The run itself needs other ports, which may be open.
            _log.warning(
                "process %d cannot reach port %d of %s (%s): if another process dies, this one "
                "ends after minutes",
                *(index, zero.port, zero.host, error.strerror or error),
            )
            return
    _watches.append(liveness)
    # Before jax leaves the service: callbacks run in reverse order.
    atexit.register(liveness.leave)


def end_all(error: BaseException) -> None:
    """Ends all processes of the run because of an error that this one alone has.

    If it follows from another process's death, this process reports that one instead. A run of one
    process continues: the function returns at once.

    Args:
      error: The error; of a `KeyboardInterrupt` no traceback is printed.
    """
    if not _watches:
        return
    is_interrupt = isinstance(error, KeyboardInterrupt)
    text = " ".join("".join(traceback.format_exception_only(error)).split())[:500]
    _watches[0].fail("that it was interrupted" if is_interrupt else text)
    if is_interrupt:
        sys.stderr.write("interrupted; --resume continues from the last checkpoint\n")
    else:
        traceback.print_exception(error)
    sys.stderr.flush()
    # `os._exit`: jax and Orbax would wait for the other processes, which have ended.
    os._exit(EXIT_INTERRUPTED if is_interrupt else 1)


def is_writer() -> bool:
    """Returns whether this process writes the shared files: logs, reports, the config."""
    return jax.process_index() == 0


def agree(*, flag: int = 0, error: UserError | None = None) -> int:
    """Returns the largest flag of all processes; every process must call this.

    It waits for the devices if they are busy.

    Args:
      flag: This process's flag, from 0 = not set to 2**31 - 1.
      error: This process's error; None if it has none.

    Raises:
      UserError: In every process, if any has an error: the first process's error.
    """
    # A single process gathers nothing, so its loop costs nothing.
    if jax.process_count() == 1:
        if error is not None:
            raise error
        return flag
    count = jax.process_count()
    # The lowest number has the largest value, so that all report the same error.
    failure = 0 if error is None else count - jax.process_index()
    flagged, first = _largest()(int(flag), failure)
    # Every process takes the same branch, because all see the same values.
    if first:
        raise _error_of(count - first, error) from error
    return flagged


@functools.cache
def _largest() -> Callable[[int, int], list[int]]:
    """Returns a collective: of two numbers of each process, the largest of all processes.

    Compiled once, and the usual zeros stay on the device: a third of the CPU time of
    `process_allgather`, which prepares a program at every call.
    """
    count = jax.process_count()
    # One device of each process, in the order of the processes.
    firsts = {device.process_index: device for device in reversed(jax.devices())}
    mesh = Mesh(np.asarray([firsts[index] for index in range(count)]), ("process",))
    rows = NamedSharding(mesh, PartitionSpec("process"))
    struct = jax.ShapeDtypeStruct((count, 2), np.int32, sharding=rows)
    whole = NamedSharding(mesh, PartitionSpec())
    program = (
        jax.jit(lambda values: values.max(axis=0), out_shardings=whole).lower(struct).compile()
    )
    own = firsts[jax.process_index()]
    zeros = jax.device_put(np.zeros((1, 2), np.int32), own)

    def largest(*values: int) -> list[int]:
        part = jax.device_put(np.asarray([values], np.int32), own) if any(values) else zeros
        array = jax.make_array_from_single_device_arrays((count, 2), rows, [part])
        return np.asarray(program(array).addressable_data(0)).tolist()

    return largest


def together(work: Callable[[], T]) -> T:
    """Runs `work` in every process, and returns this process's result once all have finished.

    Args:
      work: This process's part; every process must have one.

    Raises:
      UserError: In every process, if any process's part raises one.
    """
    done = failure = None
    try:
        done = work()
    except UserError as error:
        failure = error
    # After `work`, also without an error: the others wait here.
    agree(error=failure)
    return cast(T, done)


def check_alike(text: str, error: UserError) -> None:
    """Checks that all processes pass the same text; every process must call this.

    Args:
      text: This process's text.
      error: The error to raise if it differs from the first process's text.

    Raises:
      UserError: In every process, if any text differs: the error of the first process that differs.
    """
    if jax.process_count() == 1:
        return
    # A checksum, because a collective needs equal sizes, and the text has any.
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    found = multihost_utils.process_allgather(digest)
    agree(error=None if np.array_equal(found[0], digest) else error)


def _error_of(index: int, error: UserError | None) -> UserError:
    """The error of one process, sent to every process."""
    fields = ("where", "expected", "found", "remedy")
    # A character takes up to 6 bytes, such as \\u0000, so four full fields and their names fit.
    texts = {field: getattr(error, field, "")[: _ERROR_BYTES // 28] for field in fields}
    data = json.dumps(texts, ensure_ascii=False).encode(errors="replace")
    room = np.zeros(_ERROR_BYTES, np.uint8)
    # Fixed room: the receivers do not know the length.
    room[: len(data)] = np.frombuffer(data, np.uint8)
    received = multihost_utils.broadcast_one_to_all(room, is_source=jax.process_index() == index)
    # Zero bytes end the text; JSON itself has none.
    values = json.loads(np.asarray(received, np.uint8).tobytes().rstrip(b"\0"))
    return UserError(**values | {"where": f"process {index}, {values['where']}"})


def _slurm_tasks() -> int:
    """Returns the number of processes that `srun` started together; 1 without `srun`."""
    # Of the step: `SLURM_NTASKS` is set in an interactive allocation as well.
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))


def _tpu_hosts() -> int:
    """Returns the number of hosts of a TPU slice, or of several slices; 1 elsewhere.

    Source: jax joins them by the same information: the variables that GKE sets, or else the
      metadata server of a Cloud TPU VM.
    """
    if not _has_tpu():
        return 1
    # jax asks the same variables, in this order.
    named = os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES"))
    hosts = _tpu_endpoints() if named is None else named
    return len(hosts.split(",")) * int(os.environ.get("MEGASCALE_NUM_SLICES", "1"))


def _has_tpu() -> bool:
    """Returns whether this host has TPUs; GPU hosts may have the device files, but not libtpu."""
    devices = (pathlib.Path("/dev/accel0"), pathlib.Path("/dev/vfio/0"))
    # libtpu as well: any machine with a VFIO device has the second path.
    return importlib.util.find_spec("libtpu") is not None and any(map(os.path.exists, devices))


def _tpu_endpoints() -> str:
    """Returns the slice's hosts, separated by commas; empty if no server answers."""
    if "TPU_SKIP_MDS_QUERY" in os.environ:
        return ""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/worker-network-endpoints"
    asked = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(asked, timeout=_METADATA_S) as answer:
            return answer.read().decode()
    except OSError:
        # No server answers: this is not Google's cloud.
        return ""
