import dataclasses

import pytest

from train.octo.octo_config import octo_small
from train.update.step_memory import MemoryEstimate, activation_bytes


@pytest.mark.parametrize(
    ("change", "measured_mb"),
    [({}, 3166), ({"attention": "by_head"}, 1676), ({"remat": True}, 738 - 170)],
)
def test_estimate_is_near_what_xla_planned_for_octo_small(change, measured_mb):
    """Measured: temporary memory of the step at batch 4, window 2; for remat less the stacks."""
    model = dataclasses.replace(octo_small(), **change)
    assert 4 * activation_bytes(model, 2) / 1e6 == pytest.approx(measured_mb, rel=0.15)


def test_instructions_are_listed_where_there_are_many():
    few = MemoryEstimate(8 * 10**8, 10**8, 38 * 10**8, 10**8, instructions=4 * 10**6)
    parts = "state 0.80, gradients 0.10, activations 3.80, batches 0.10"
    assert str(few) == f"about 4.8 GB ({parts})"
    # 100,001 instructions of 16 tokens in T5-base.
    many = dataclasses.replace(few, instructions=100_001 * 16 * 768 * 4)
    assert str(many) == f"about 9.7 GB ({parts}, instructions 4.92)"
    assert many.total == 48 * 10**8 + 4_915_249_152
