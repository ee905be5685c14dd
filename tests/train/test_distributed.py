import hashlib
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from pipeline.errors import EXIT_USER_ERROR, UserError
from tests.processes import Command
from train import distributed
from train.processes.liveness import EXIT_OTHER_DIED

ENDPOINTS = "/computeMetadata/v1/instance/attributes/worker-network-endpoints"
VARIABLES = (
    "SLURM_STEP_NUM_TASKS",
    "SLURM_NTASKS",
    "TPU_PROCESS_ADDRESSES",
    "TPU_WORKER_HOSTNAMES",
    "MEGASCALE_NUM_SLICES",
    "TPU_SKIP_MDS_QUERY",
)


@pytest.fixture
def joined(monkeypatch):
    """Records what jax is asked to join, and hides this machine's environment."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:9")
    monkeypatch.setattr(distributed, "_has_tpu", lambda: False)
    asked = []
    # What jax finds out about a cluster is its own; here it finds one host, this one, of two.
    monkeypatch.setattr(
        distributed.ClusterEnv,
        "auto_detect_unset_distributed_params",
        lambda address, *_: (address or "node0:1234", 2, 0, None),
    )
    monkeypatch.setattr(
        distributed.jax.distributed, "initialize", lambda *named, **_: asked.append(named)
    )
    monkeypatch.setattr(distributed, "_watch_others", lambda address: None)
    return asked


@pytest.mark.parametrize(
    ("env", "is_joined"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "8"}, False),  # the shell of an allocation, or python in its script
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8"}, True),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}, False),
    ],
)
def test_tasks_of_a_step_are_joined_not_those_of_an_allocation(monkeypatch, joined, env, is_joined):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    distributed.join()
    assert joined == [("node0:1234", 2, 0)] * is_joined


def test_half_a_cluster_is_reported(monkeypatch, joined):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(UserError, match="JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID missing"):
        distributed.join()
    assert not joined


@pytest.mark.parametrize(
    ("address", "count", "index", "message"),
    [
        ("host0", "2", "0", "ADDRESS: expected HOST:PORT of process 0, such as host0:1234; found"),
        ("host0:", "2", "0", "ADDRESS: expected HOST:PORT"),
        ("host0:1", "two", "0", "JAX_NUM_PROCESSES: expected the number of processes; found 'two'"),
        ("host0:1", "0", "0", "JAX_NUM_PROCESSES: expected the number of processes; found '0'"),
        ("host0:1", "2", "2", "JAX_PROCESS_ID: expected a number from 0 to 1; found '2'"),
        ("host0:1", "2", "-1", "JAX_PROCESS_ID: expected a number from 0 to 1; found '-1'"),
    ],
)
def test_a_variable_with_a_wrong_value_is_named(
    monkeypatch, joined, address, count, index, message
):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
    monkeypatch.setenv("JAX_NUM_PROCESSES", count)
    monkeypatch.setenv("JAX_PROCESS_ID", index)
    with pytest.raises(UserError, match=message):
        distributed.join()
    assert not joined


@pytest.mark.parametrize(
    ("env", "is_joined"),
    [
        ({}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_HOSTNAMES": "a"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, True),
    ],
)
def test_hosts_of_a_slice_are_joined(monkeypatch, joined, env, is_joined):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    distributed.join()
    assert not joined  # there is no TPU
    monkeypatch.setattr(distributed, "_has_tpu", lambda: True)
    distributed.join()
    assert joined == [("node0:1234", 2, 0)] * is_joined


@pytest.mark.parametrize(
    ("endpoints", "env", "is_joined"),
    [
        ("10.0.0.1,10.0.0.2", {}, True),
        ("a:b:10.0.0.1", {}, False),
        (None, {}, False),
        ("10.0.0.1,10.0.0.2", {"TPU_SKIP_MDS_QUERY": "1"}, False),
    ],
)
def test_a_cloud_tpu_vm_learns_its_hosts_from_the_metadata_server(
    monkeypatch, joined, endpoints, env, is_joined
):
    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            is_known = endpoints is not None and self.path == ENDPOINTS
            is_asked_rightly = self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if is_known and is_asked_rightly else 404)
            self.end_headers()
            self.wfile.write((endpoints or "none").encode())

        def log_message(self, *_):
            pass

    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "_has_tpu", lambda: True)
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_address[1]}")
        distributed.join()
        server.shutdown()
        thread.join()
    assert joined == [("node0:1234", 2, 0)] * is_joined


def test_device_files_without_the_library_are_no_tpu(monkeypatch):
    monkeypatch.setattr(distributed.os.path, "exists", lambda path: True)
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
    assert not distributed._has_tpu()
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: name)
    assert distributed._has_tpu()


def test_processes_that_differ_are_an_error(monkeypatch):
    error = UserError(where="run", expected="step 6", found="step 3", remedy="Fix it.")
    distributed.check_alike("3", error)  # alone
    errors = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "agree", lambda *, error: errors.append(error))
    for texts in (("3", "3"), ("6", "3")):
        digests = [list(hashlib.sha256(text.encode()).digest()) for text in texts]
        gathered = np.array(digests, np.uint8)
        monkeypatch.setattr(
            distributed.multihost_utils, "process_allgather", lambda _, found=gathered: found
        )
        distributed.check_alike("3", error)
    assert errors == [None, error]


@pytest.mark.parametrize("character", ["a", "\0", "\U0001f916", "\ud800"])
def test_an_error_of_any_text_reaches_the_other_processes(monkeypatch, character):
    monkeypatch.setattr(
        distributed.multihost_utils, "broadcast_one_to_all", lambda room, is_source: room
    )
    texts = dict.fromkeys(("where", "expected", "found", "remedy"), character * 100_000)
    received = distributed._error_of(0, UserError(**texts))
    assert received.where.startswith("process 0, ")
    assert len(received.remedy) == 2340


ALONE = """
import jax
from pipeline.terminal import log_to_stderr
from train import distributed
log_to_stderr()
distributed._NOTICE_S, distributed._JOIN_S = 0.5, 2
distributed.join()
"""


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_whose_others_never_come_ends_with_one_line(index):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    env = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    alone = subprocess.run(
        [sys.executable, "-c", ALONE],
        env=env | {"JAX_PROCESS_ID": str(index)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert alone.returncode == EXIT_USER_ERROR, alone.stderr
    assert alone.stderr.splitlines() == [
        f"process {index} of 2 waits for the others at {address}, at most 2 s",
        f"error: process {index} of 2: expected all processes of the run at {address} within 2 s; "
        "found that not all have come. Start every process with this address, and check that each "
        "can reach it.",
    ]


@pytest.mark.parametrize("index", [0, 1])
def test_processes_meet_the_same_error_and_end_when_one_dies(index):
    """Process 0 hosts the service whose loss makes JAX abort with a stack trace."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    env |= {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    # The host of process 0 is reached directly; so must the relay be.
    env |= {"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
    both = [
        Command("tests.train.joined_pair", index, env=env | {"JAX_PROCESS_ID": str(one)})
        for one in range(2)
    ]
    dying, other = both[index], both[1 - index]
    dying.finish(-signal.SIGKILL)
    other.finish(EXIT_OTHER_DIED)
    for one in both:
        assert "process 0, the claim: expected a; found b. Fix it." in one.stdout
    lines = other.stderr.splitlines()
    # Process 0 passes no relay: JAX warns it of the proxies that the user has set.
    notes = ("[Gloo]", "JAX detected proxy variable") if index else ("[Gloo]",)
    errors = [line for line in lines if not line.startswith(notes)]
    assert len(errors) == 1, other.stderr
    assert errors[0].startswith(f"error: process {index} on {socket.gethostname()}: ")
    assert "found that it was killed (out of memory, for example)" in errors[0]
