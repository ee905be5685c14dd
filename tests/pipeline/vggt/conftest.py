"""The recorded models of the public code, and their weights as files and as parameters."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from pipeline.vggt.aggregator_weights import leaf_shapes
from pipeline.vggt.encoder_spec import VggtConfig
from pipeline.vggt.weight_sources import PREFIX, places
from tests.flax_parameters import check_parameters_once

check_parameters_once()

GOLDEN = pathlib.Path(__file__).parents[2] / "data" / "golden" / "vggt"


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A model of the public code."""

    config: VggtConfig
    tensors: dict[str, np.ndarray]
    """Tensors by the key of a checkpoint."""

    @functools.cached_property
    def params(self) -> dict[str, Any]:
        """The parameters that the aggregator takes, made step by step by other code than tested."""
        shapes = leaf_shapes(self.config, self.config.num_layers)
        leaves = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
        for key, place in places(shapes).items():
            tensor = self.tensors[key]
            if place.change == "transpose":
                tensor = tensor.T
            if place.change == "patches":
                tensor = np.moveaxis(tensor, 0, -1)
                tensor = np.concatenate([tensor[:, y, x] for y in range(14) for x in range(14)])
            if place.index is None:
                leaves[place.path][...] = tensor
            else:
                leaves[place.path][place.index] = tensor
        return traverse_util.unflatten_dict(leaves, sep="/")


@pytest.fixture(scope="session")
def golden_dir() -> pathlib.Path:
    return GOLDEN


@pytest.fixture(scope="session")
def golden_model() -> Callable[[str], Recorded]:
    @functools.cache
    def load(name: str) -> Recorded:
        sizes = json.loads((GOLDEN / f"{name}.json").read_text())["config"]
        config = VggtConfig(
            dim=sizes["embed_dim"],
            num_layers=sizes["depth"],
            num_heads=sizes["heads"],
            embedder=sizes["patch"],
            dino_layers=sizes["dino_depth"],
            dino_heads=sizes["dino_heads"],
            position_grid=sizes["img_size"] // 14,
        )
        with np.load(GOLDEN / f"{name}_weights.npz") as arrays:
            return Recorded(config, {PREFIX + key: arrays[key] for key in arrays})

    return load


@pytest.fixture(scope="session")
def golden_case() -> Callable[[str], dict[str, np.ndarray]]:
    """The arrays of a recorded run, such as `dino518_s2_70`."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope="session")
def weights_file(
    golden_model: Callable[[str], Recorded], tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """The tensors of `dino70` beside those of a head, which nobody reads."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    head = {"camera_head.poses.weight": np.full((3, 3), np.nan, np.float32)}
    save_file(golden_model("dino70").tensors | head, path)
    return path
