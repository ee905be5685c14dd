"""The batch: the contract between the pipeline and the model, and its check.

`b` batch, `w` window, `h` action horizon; in every mask True = real.

    observation/image_primary        uint8    b w 256 256 3   stored size
    observation/image_wrist          uint8    b w 256 256 3
    observation/depth_primary        float32  b w 256 256 1   metres, 0: no reading; stored size
    observation/proprio              float32  b w 8           normalised
    observation/vggt_tokens          float16  b w 261 2048    as the column declares; b 1 261 2048
                                                              where `current_only` names it, and
                                                              fewer steps where `windows` does
    observation/timestep             int32    b w             step inside the episode
    observation/timestep_pad_mask    bool     b w             False: before the first step
    observation/pad_mask_dict/<key>  bool     b w             False: not read, or the set has none
    task/language_instruction/input_ids       int32  b 16     T5 ids, 1 ends the text, 0 pads
    task/language_instruction/attention_mask  int32  b 16
    task/task_index                  int32    b               row of the run's task table
    task/pad_mask_dict/language_instruction   bool   b        False: no instruction
    task/image_primary, image_wrist  uint8    b 256 256 3     goal images; zeros where masked  (1)
    task/pad_mask_dict/image_primary bool     b               False: the instruction is used   (1)
    task/timestep                    int32    b               step of the goal                 (1)
    action                           float32  b w h 7         normalised; gripper 1 = open
    action_pad_mask                  bool     b w h 7         False: past the end or the goal
    sample_index                     int32    b               place in the run, modulo 2**31

(1) only with `image_conditioned` and `multimodal`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.data.schema import BATCH_DTYPES
from pipeline.errors import SchemaError

FlatBatch = dict[str, np.ndarray]
"""Arrays by path, such as `observation/proprio`."""

DATASET_INDEX = "dataset_index"
"""Index of each sample's dataset in the mixture; removed before the contract is checked."""
KEEPS_TEXT = "keeps_text"
"""Whether a sample's task is given by its instruction; removed before the check as well."""
INTERNAL = frozenset({DATASET_INDEX, KEEPS_TEXT})
"""Arrays of a batch that was read which only the transforms use."""

_NUM_SAMPLES = 3


@dataclasses.dataclass(frozen=True)
class LeafSpec:
    """Type of one array of a batch."""

    dtype: str
    """One of `BATCH_DTYPES`."""
    shape: tuple[int, ...]
    """Shape including the batch axis."""
    dims: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    """Names of the last axis, with their units, such as `x_m`; empty where it has none."""
    raw: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)
    """Those of `dims` that are not normalised, such as a gripper."""
    rotations: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)
    """Representation of the rotation, by the name of each of `dims` that is known to hold one."""
    unused: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)
    """Those of `dims` that a model does not learn: 0 in a batch, and excluded from the loss."""
    is_depth: bool = dataclasses.field(default=False, compare=False)
    """Whether it is a depth image, in metres from 0 to 65.535; 0: no reading."""

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def is_image(self) -> bool:
        """Whether it is one step of a camera, an RGB image, uint8 (y x 3)."""
        # Others of uint8 are tensors, such as a mask (y x 1).
        return self.dtype == "uint8" and self.shape[2:] == (3,)

    def __str__(self) -> str:
        """Formats the type, such as `float32[16,2,8]`."""
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


BatchSpec = dict[str, LeafSpec]
"""The type of every array of a batch, by path."""


def check_batch(batch: Mapping[str, Any], spec: BatchSpec) -> None:
    """Raises a `SchemaError` that lists every leaf of a batch that breaks the contract."""
    problems = [
        f"{key}: {spec[key]} expected, {_found(batch.get(key))}"
        for key in spec
        if not _fits(batch.get(key), spec[key])
    ]
    problems += [f"{key}: not in the contract, {_found(batch[key])}" for key in batch.keys() - spec]
    if problems:
        raise SchemaError(
            where="batch",
            expected=f"the contract's leaves, each of {', '.join(BATCH_DTYPES)}",
            found="; ".join(sorted(problems)),
            remedy="A transform changed a shape or dtype: cast inside it, to the contract's.",
        )


def table(spec: BatchSpec) -> str:
    """Formats one line per leaf: its path and `dtype[shape]`."""
    width = max(map(len, spec))
    return "\n".join(f"{key:{width}}  {leaf}" for key, leaf in spec.items())


def _fits(value: Any, leaf: LeafSpec) -> bool:
    return (
        isinstance(value, np.ndarray)
        and value.dtype == np.dtype(leaf.dtype)
        and value.shape == leaf.shape
    )


def _found(value: Any) -> str:
    if value is None:
        return "missing"
    if not isinstance(value, np.ndarray):
        return f"a {type(value).__name__} found"
    samples = ", ".join(repr(item) for item in value.ravel()[:_NUM_SAMPLES].tolist())
    shape = ",".join(map(str, value.shape))
    return f"{value.dtype}[{shape}] found, such as {samples}"
