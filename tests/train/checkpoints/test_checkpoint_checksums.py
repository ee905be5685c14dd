import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from pipeline.loading.device import make_mesh
from train.checkpoints.checkpoint_checksums import digest_arrays, digest_json

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


def test_json_has_one_digest_in_whatever_order_its_keys_are():
    digest = digest_json({"a": (1, 2.5), "b": None})
    assert digest == digest_json({"b": None, "a": [1, 2.5]})
    assert digest != digest_json({"b": None, "a": [1, 2.25]})
