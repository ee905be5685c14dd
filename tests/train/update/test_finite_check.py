import ml_dtypes
import numpy as np
import pytest

from train.update.skipped_updates import non_finite


def batch(dtype=np.float32):
    return {
        "observation": {
            "proprio": np.zeros((4, 2, 16), dtype),
            "timestep": np.full((4, 2), 2**31 - 1, np.int32),
        },
        "action": np.ones((4, 2), np.float32),
        "action_pad_mask": np.ones((4, 2), bool),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_arrays_with_numbers_that_are_not_finite_are_counted(dtype):
    arrays = batch(dtype)
    assert non_finite(arrays) == []
    arrays["observation"]["proprio"][0, 1, :3] = [np.nan, np.inf, -np.inf]
    assert non_finite(arrays) == ["observation/proprio (3 of 128)"]
    arrays["action"][:] = np.nan
    assert non_finite(arrays) == ["action (8 of 8)", "observation/proprio (3 of 128)"]


def test_an_array_of_nothing_is_finite():
    assert non_finite({"action": np.zeros((0, 7), np.float32)}) == []
