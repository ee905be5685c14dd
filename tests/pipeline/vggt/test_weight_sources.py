import math
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from pipeline.vggt.aggregator_weights import leaf_shapes
from pipeline.vggt.encoder_spec import tiny, vggt_1b
from pipeline.vggt.weight_sources import PREFIX, Place, places


@pytest.fixture(scope="session")
def published(golden_dir: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the whole VGGT-1B."""
    lines = (golden_dir / "state_dict_keys.txt").read_text().splitlines()
    rows = [line.split("\t") for line in lines if line]
    assert {dtype for _, _, dtype in rows} == {"float32"}
    return {key: tuple(int(n) for n in shape.strip("()").split(",") if n) for key, shape, _ in rows}


def test_every_tensor_of_the_published_aggregator_has_a_place(
    published: dict[str, tuple[int, ...]],
) -> None:
    found = places(leaf_shapes(vggt_1b(), 24))
    of_aggregator = {key: shape for key, shape in published.items() if key.startswith(PREFIX)}
    assert len(published) == 1797
    assert len(of_aggregator) == 1210
    assert {key: place.shape for key, place in found.items()} == of_aggregator


def test_the_parameters_are_as_many_as_published() -> None:
    shapes = leaf_shapes(vggt_1b(), 24)
    assert sum(math.prod(shape) for shape in shapes.values()) == 909_112_320
    backbone = [shape for path, shape in shapes.items() if path.startswith("patch_embed/")]
    assert sum(map(math.prod, backbone)) == 304_372_736


def test_no_two_tensors_share_a_place() -> None:
    shapes = leaf_shapes(tiny(), 2)
    found = places(shapes)
    assert len({(place.path, place.index) for place in found.values()}) == len(found)
    assert sum(math.prod(place.shape) for place in found.values()) == sum(
        map(math.prod, shapes.values())
    )


def test_a_place_says_where_and_how() -> None:
    found = places(leaf_shapes(vggt_1b(), 24))
    assert found["aggregator.frame_blocks.3.attn.qkv.weight"] == Place(
        "blocks/frame/attn/qkv/kernel", 3, "transpose", (3072, 1024)
    )
    assert found["aggregator.patch_embed.norm.weight"] == Place(
        "patch_embed/norm/scale", None, "none", (1024,)
    )
    assert found["aggregator.patch_embed.patch_embed.proj.weight"] == Place(
        "patch_embed/patch_embed/proj/kernel", None, "patches", (1024, 3, 14, 14)
    )


def test_fewer_layers_have_fewer_blocks() -> None:
    shapes = leaf_shapes(vggt_1b(), 5)
    assert shapes["blocks/global/mlp/fc1/kernel"] == (5, 1024, 4096)
    assert shapes["patch_embed/blocks/block/mlp/fc1/kernel"] == (24, 1024, 4096)
    assert np.dtype(jnp.float32).itemsize * sum(map(math.prod, shapes.values())) < 1.8e9
