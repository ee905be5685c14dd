import dataclasses

import numpy as np
import pytest

from pipeline.data.conventions import Conventions
from pipeline.data.statistics import compute
from pipeline.errors import SchemaError
from pipeline.loading.batch import LeafSpec
from pipeline.loading.normalize import make_normalizer
from pipeline.loading.text import TaskTable
from pipeline.loading.transforms.batch_transforms import (
    CheckBatch,
    LookUpTask,
    StandardizeGripper,
    fingerprint,
)
from pipeline.loading.transforms.normalize_transforms import NormalizeAction
from pipeline.loading.transforms.transform_chain import Stage

LIBERO = Conventions("rotated_180", "axis_angle", 20.0, "kept", 2, -1.0, 1.0)
UNIT = dataclasses.replace(LIBERO, gripper_open=1.0, gripper_close=0.0)
TABLE = TaskTable(
    ("pick", "", "place"),
    np.array([[5, 1], [1, 0], [6, 1]], np.int32),
    np.array([[1, 1], [1, 0], [1, 1]], np.int32),
    np.array([True, False, True]),
    (),
)


def make_batch() -> dict[str, np.ndarray]:
    """Two samples, of the datasets 1 and 0."""
    return {
        "action": np.array([[[[1, 2, 1.0]]], [[[3, 4, 1.0]]]], np.float32),
        "task/task_index": np.array([0, 1], np.int32),
        "dataset_index": np.array([1, 0], np.int32),
        "sample_index": np.array([0, 1], np.int32),
        "keeps_text": np.array([True, True]),
    }


def normalize() -> Stage:
    values = [np.array([[0, 0, 0], [2, 4, 8]], np.float32), np.full((2, 3), 1, np.float32)]
    masks = [np.array([True, True, False])] * 2
    normalizer = make_normalizer([compute(v) for v in values], masks, "normal")
    spec = {"action": LeafSpec("float32", (2, 1, 1, 3))}
    return Stage(NormalizeAction("action", normalizer), spec, spec, seed=0, place=0)


LOOK_UP = LookUpTask(TABLE, (np.array([1, 2], np.int32), np.array([0], np.int32)))


def test_gripper_takes_the_signs_of_its_dataset() -> None:
    action = StandardizeGripper((LIBERO, UNIT))(make_batch())["action"]
    np.testing.assert_array_equal(action[:, 0, 0], [[1, 2, 1], [3, 4, 0]])


def test_action_takes_the_statistics_of_its_dataset() -> None:
    action = normalize()(make_batch())["action"]
    np.testing.assert_allclose(action[:, 0, 0], [[0, 1e8, 1], [2, 1, 1]], rtol=1e-6)


def test_instruction_is_that_of_the_dataset_s_own_task() -> None:
    looked_up = LOOK_UP(make_batch())
    np.testing.assert_array_equal(looked_up["task/task_index"], [0, 2])
    np.testing.assert_array_equal(
        looked_up["task/language_instruction/input_ids"], [[5, 1], [6, 1]]
    )
    assert looked_up["task/pad_mask_dict/language_instruction"].all()


def test_empty_instruction_is_masked() -> None:
    batch = make_batch() | {"task/task_index": np.array([0, 0], np.int32)}
    looked_up = LOOK_UP(batch)
    np.testing.assert_array_equal(
        looked_up["task/pad_mask_dict/language_instruction"], [True, False]
    )
    np.testing.assert_array_equal(looked_up["task/language_instruction/input_ids"][1], [1, 0])


def test_instruction_is_blank_where_goal_images_tell_the_task() -> None:
    looked_up = LOOK_UP(make_batch() | {"keeps_text": np.array([True, False])})
    np.testing.assert_array_equal(
        looked_up["task/pad_mask_dict/language_instruction"], [True, False]
    )
    np.testing.assert_array_equal(
        looked_up["task/language_instruction/input_ids"], [[5, 1], [1, 0]]
    )
    np.testing.assert_array_equal(
        looked_up["task/language_instruction/attention_mask"], [[1, 1], [1, 0]]
    )


@pytest.mark.parametrize("transform", [StandardizeGripper((LIBERO, UNIT)), normalize(), LOOK_UP])
def test_input_is_not_modified(transform: object) -> None:
    batch = make_batch()
    transform(batch)
    assert fingerprint(batch) == fingerprint(make_batch())


SPEC = {
    "action": LeafSpec("float32", (2, 1, 1, 3)),
    "sample_index": LeafSpec("int32", (2,)),
    "task/task_index": LeafSpec("int32", (2,)),
}


def test_seal_nests_what_the_contract_names_and_fingerprints_it() -> None:
    nested, digits = CheckBatch(SPEC)(make_batch())
    kept = {key: make_batch()[key] for key in SPEC}
    np.testing.assert_array_equal(nested["task"]["task_index"], kept["task/task_index"])
    assert (set(nested), digits) == ({"action", "sample_index", "task"}, fingerprint(kept))


def test_seal_refuses_what_the_contract_does_not_name() -> None:
    with pytest.raises(SchemaError, match=r"batch: .*extra: not in the contract, float64"):
        CheckBatch(SPEC)(make_batch() | {"extra": np.zeros(1)})
