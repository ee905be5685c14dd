import dataclasses

import pytest

from train.octo.octo_config import octo_small
from train.update.step_memory import activation_bytes


@pytest.mark.parametrize(
    ("change", "measured_mb"),
    [({}, 3166), ({"attention": "by_head"}, 1676), ({"remat": True}, 738 - 170)],
)
def test_estimate_is_near_what_xla_planned_for_octo_small(change, measured_mb):
    """Measured: temporary memory of the step at batch 4, window 2; for remat less the stacks."""
    model = dataclasses.replace(octo_small(), **change)
    assert 4 * activation_bytes(model, 2) / 1e6 == pytest.approx(measured_mb, rel=0.15)
