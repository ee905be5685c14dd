"""Transforms of a batch that was read: each takes a batch and returns a new one."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import xxhash

from pipeline.data.conventions import Conventions, standardize_gripper
from pipeline.data.schema import ACTION, nest
from pipeline.errors import UserError
from pipeline.loading.batch import (
    DATASET_INDEX,
    INTERNAL,
    KEEPS_TEXT,
    BatchSpec,
    FlatBatch,
    LeafSpec,
    check_batch,
)
from pipeline.loading.text import TaskTable, blank
from pipeline.loading.transforms.transform_chain import Stage

_TASK_INDEX = "task/task_index"


@dataclasses.dataclass(frozen=True)
class StandardizeGripper:
    """Makes the gripper of every action 1 = open, 0 = close, whatever its dataset's signs."""

    conventions: tuple[Conventions, ...]
    """Conventions of each dataset of the mixture."""

    def __call__(self, batch: FlatBatch) -> FlatBatch:
        """Replaces `action`."""
        # A copy: a transform leaves its input as it is.
        action = batch[ACTION].copy()
        for number, conventions in enumerate(self.conventions):
            rows = batch[DATASET_INDEX] == number
            action[rows] = standardize_gripper(action[rows], conventions)
        return batch | {ACTION: action}


def instruction_spec(batch_size: int, max_text_length: int | None) -> BatchSpec:
    """Returns the types of the arrays that `LookUpTask` adds.

    Args:
      batch_size: Number of samples.
      max_text_length: Number of token ids of an instruction; None: there is no vocabulary.
    """
    spec = {"task/pad_mask_dict/language_instruction": LeafSpec("bool", (batch_size,))}
    if max_text_length is not None:
        ids = LeafSpec("int32", (batch_size, max_text_length))
        spec |= {f"task/language_instruction/{n}": ids for n in ("input_ids", "attention_mask")}
    return spec


@dataclasses.dataclass(frozen=True)
class LookUpTask:
    """Adds the token ids of each sample's instruction."""

    table: TaskTable
    """The instructions of the run."""
    rows: tuple[np.ndarray, ...]
    """int32 (tasks) of each dataset: the table's row of each of its own tasks."""
    has_ids: bool = True
    """Whether there is a vocabulary; else no token ids are added."""

    def __call__(self, batch: FlatBatch) -> FlatBatch:
        """Adds `task/language_instruction/*` and its pad mask; `task/task_index` becomes a row.

        Samples whose task is given by goal images get the token ids of an empty text.
        """
        pairs = zip(batch[DATASET_INDEX], batch[_TASK_INDEX], strict=True)
        # A loop over the samples: each dataset has a table of its own length.
        rows = np.array([self.rows[dataset][task] for dataset, task in pairs], np.int32)
        keeps = batch[KEEPS_TEXT]
        found = {
            "task/pad_mask_dict/language_instruction": keeps & self.table.has_text[rows],
            _TASK_INDEX: rows,
        }
        if not self.has_ids:
            return batch | found
        empty = blank(self.table.input_ids.shape[1])
        ids, mask = (
            # (b, 1) against (b, n) and (n)
            np.where(keeps[:, None], table[rows], row)
            for table, row in zip(
                (self.table.input_ids, self.table.attention_mask), empty, strict=True
            )
        )
        return (batch | found) | {
            "task/language_instruction/input_ids": ids,
            "task/language_instruction/attention_mask": mask,
        }


@dataclasses.dataclass(frozen=True)
class CheckBatch:
    """The last transform: checks the batch against the contract and computes its fingerprint."""

    spec: BatchSpec
    """The contract."""

    def __call__(self, batch: FlatBatch) -> tuple[dict, str]:
        """Returns (nested batch, fingerprint).

        Raises:
          SchemaError: A leaf does not match the contract.
        """
        sealed = {key: value for key, value in batch.items() if key not in INTERNAL}
        check_batch(sealed, self.spec)
        # In the order of the spec, whatever order the transforms added their arrays in.
        # The fingerprint is of the checked batch, before a user's own transforms.
        return nest({key: sealed[key] for key in self.spec}), fingerprint(sealed)


def fingerprint(batch: FlatBatch) -> str:
    """Hashes every path, type and byte, in the order of the paths: 16 hex digits of XXH3."""
    digest = xxhash.xxh3_64()
    # Sorted, since two equal batches may have their keys in another order.
    for key in sorted(batch):
        # The type as well: equal bytes of another shape are another batch.
        digest.update(f"{key}:{batch[key].dtype}{batch[key].shape}".encode())
        # Bytes without a copy, also for bool and 0-d arrays.
        digest.update(np.ascontiguousarray(batch[key]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class OwnTransform:
    """A user's function on the nested arrays of a checked batch, at the end of the chain."""

    function: Callable[[dict[str, Any]], dict[str, Any]]
    """Returns another batch."""

    @property
    def name(self) -> str:
        """The function's name, for the description of a loader."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def __call__(self, batch: tuple[dict[str, Any], str]) -> tuple[dict[str, Any], str]:
        """Returns (batch, fingerprint of the batch before transforms of one's own).

        Raises:
          UserError: The function returned something else than a dictionary of arrays.
        """
        arrays, fingerprint = batch
        changed = self.function(arrays)
        if not isinstance(changed, dict):
            raise UserError(
                where=f"Loader.map, {self.name}",
                expected="a dictionary, the changed batch",
                found=f"a {type(changed).__name__}",
                remedy="Return the batch: `return batch | {...}`.",
            )
        unusable = list(_unusable(changed, ""))
        if unusable:
            raise UserError(
                where=f"Loader.map, {self.name}",
                expected="numbers or arrays of numbers, which JAX takes",
                found="; ".join(unusable),
                remedy="Return arrays of one shape and a numeric dtype, or leave these keys out.",
            )
        return changed, fingerprint


def name_of(transform: Callable[[Any], Any]) -> str:
    """Returns the name of one of a loader's transforms, such as `CheckBatch`."""
    if isinstance(transform, Stage | OwnTransform):
        return transform.name
    return type(transform).__name__


def _unusable(value: Any, key: str) -> Iterator[str]:
    """Yields each value in a batch that JAX would refuse: (key: what it is)."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _unusable(part, f"{key}/{name}" if key else str(name))
        return
    # JAX takes None for a tree without leaves.
    if value is None:
        return
    try:
        # Arrays, JAX's too, have a dtype; lists and numbers get one here.
        dtype = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
    except ValueError:
        yield f"{key}: a {type(value).__name__} of parts of different lengths"
        return
    # Kind V: bfloat16 and its like, which numpy does not know; objects, texts and dates are left.
    if dtype.kind not in "biufcV":
        yield f"{key}: a {type(value).__name__} of dtype {dtype}"
