"""Weights of an aggregator, streamed to the device tensor by tensor."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax.sharding import NamedSharding

from pipeline.vggt.config import VggtConfig
from pipeline.vggt.spec import ComputeDtype


@dataclasses.dataclass(frozen=True)
class VggtWeights:
    """An aggregator on the device."""

    source: str
    """Where it came from, as it was asked for."""
    config: VggtConfig
    """Its sizes."""
    params: dict[str, Any]
    """Its parameters, with the blocks that the layers need."""
    layers: tuple[int, ...]
    """Those it was loaded for."""
    digest: str
    """Of all the aggregator's tensors, loaded or not."""
    licence: str
    """Of the weights."""
    compute_dtype: ComputeDtype
    """Of the matrices."""


def load_weights(
    source: str,
    *,
    config: VggtConfig | None = None,
    layers: Sequence[int] | None = None,
    dtype: ComputeDtype = "float32",
    licence: str | None = None,
    sharding: NamedSharding | None = None,
) -> VggtWeights:
    """An aggregator from a file, the hub, or random numbers."""
    raise NotImplementedError
