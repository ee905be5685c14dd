import dataclasses
import os
import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from pipeline.loading.device import make_mesh
from tests.processes import Command
from train.checkpoints.checkpoint_checksums import Digests, changes, digest_arrays, digest_json

OF_RANGE = "float32[4,6] b22afec4d40d93bdd1ebad9ba76ba368"


@struct.dataclass
class Pair:
    first: object
    second: object


def test_digests_are_those_of_xxh3_over_the_bytes():
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    assert digest_arrays({"a": {"b": array}}) == {"a/b": OF_RANGE}
    assert digest_arrays(Pair([array], ())) == {"first/0": OF_RANGE}
    assert digest_arrays({"a": array.T.copy().T}) == {"a": OF_RANGE}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 2)])
def test_arrays_of_every_type_and_shape_have_one(dtype, shape):
    (digest,) = digest_arrays([jnp.ones(shape, dtype)]).values()
    assert digest.startswith(f"{dtype}[{','.join(map(str, shape))}] ")
    assert digest_arrays([np.asarray(jnp.ones(shape, dtype))]) == {"0": digest}


@pytest.mark.parametrize(
    "other",
    [
        np.arange(24, dtype=np.float32).reshape(6, 4),
        np.arange(24, dtype=np.float32).reshape(4, 6).view(np.int32),
        -np.arange(24, dtype=np.float32).reshape(4, 6),
        np.arange(24, dtype=np.float32).reshape(4, 6)[::-1],
    ],
)
def test_another_shape_type_sign_or_order_is_another_digest(other):
    assert digest_arrays({"a": other}) != {"a": OF_RANGE}


def test_an_array_in_parts_has_the_digest_of_the_whole():
    mesh = make_mesh(2)
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    for spec in (jax.P(), jax.P("fsdp"), jax.P(None, "fsdp")):
        cut = jax.device_put(array, jax.sharding.NamedSharding(mesh, spec))
        assert digest_arrays({"a": cut}) == {"a": OF_RANGE}


PROCESS = """
import sys, jax, numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from pipeline.loading.device import make_mesh
from train.checkpoints.checkpoint_checksums import digest_arrays
array = np.arange(24, dtype=np.float32).reshape(4, 6)
for spec in (jax.P(), jax.P("fsdp"), jax.P(None, "fsdp")):
    sharding = jax.sharding.NamedSharding(make_mesh(2), spec)
    cut = jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
    print(digest_arrays({"a": cut})["a"])
"""


def test_an_array_that_is_cut_over_processes_has_the_digest_of_the_whole():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    env = {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "XLA_FLAGS": flags}
    both = [Command("tests.code", PROCESS, address, index, env=env) for index in range(2)]
    outputs = [process.finish().stdout for process in both]
    digests = [[line for line in out.splitlines() if "Gloo" not in line] for out in outputs]
    assert digests == [[OF_RANGE] * 3] * 2, outputs


def test_json_has_one_digest_in_whatever_order_its_keys_are():
    digest = digest_json({"a": (1, 2.5), "b": None})
    assert digest == digest_json({"b": None, "a": [1, 2.5]})
    assert digest != digest_json({"b": None, "a": [1, 2.25]})


def test_what_differs_is_reported_with_both_checksums():
    saved = Digests({"a": "x 0", "b": "y 0", "gone": "z 0"}, {})
    found = {"a": "x 0", "b": "y 1", "new": "w 0"}
    assert changes(saved.arrays, found) == [
        "b (y 0 then, y 1 now)",
        "gone (z 0 then, none now)",
        "new (none then, w 0 now)",
    ]
    assert changes(saved.arrays, dataclasses.replace(saved).arrays) == []
