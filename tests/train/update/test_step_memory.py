import dataclasses

import pytest

from train.octo.octo_config import VGGTTokenizerConfig, octo_base, octo_small
from train.update.step_memory import MemoryEstimate, activation_bytes

TOKENS = VGGTTokenizerConfig(num_tokens=261, token_dim=2048)
BFLOAT16 = {"compute_dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("change", "measured_mb"),
    [
        ({}, 3166),
        ({"attention": "by_head"}, 1676),
        ({"remat": True}, 738 - 170),
        (BFLOAT16, 3166),
        (BFLOAT16 | {"attention": "fused"}, 3166),
    ],
)
def test_estimate_is_near_what_xla_planned_for_octo_small_on_a_cpu(change, measured_mb):
    """Measured: temporary memory of the step at batch 4, window 2; for remat less the stacks."""
    model = dataclasses.replace(octo_small(), **change)
    assert 4 * activation_bytes(model, 2, "cpu") / 1e6 == pytest.approx(measured_mb, rel=0.15)


@pytest.mark.parametrize(
    ("model", "change", "batch_size", "planned_mb"),
    [
        (octo_small(), {}, 16, 9009),
        (octo_small(), BFLOAT16, 64, 22314),
        (octo_small(), BFLOAT16 | {"remat": True}, 64, 3889),
        (octo_small(), BFLOAT16 | {"attention": "by_head"}, 64, 10493),
        (octo_small(), BFLOAT16 | {"attention": "fused"}, 64, 9315),
        (octo_small(), BFLOAT16 | {"attention": "fused", "remat": True}, 64, 2538),
        (octo_small(vggt=TOKENS), BFLOAT16, 16, 14160),
        (octo_small(vggt=TOKENS), BFLOAT16 | {"remat": True}, 64, 8324),
        (octo_base(), BFLOAT16, 16, 11144),
        (octo_base(), BFLOAT16 | {"remat": True}, 64, 7276),
    ],
)
def test_estimate_is_near_what_xla_planned_for_an_h200(model, change, batch_size, planned_mb):
    """Planned: temporary memory of the step at window 2, compiled without the device.

    The gradients are part of it.
    """
    model = dataclasses.replace(model, **change)
    gradients_mb = 386 if model.embedding_dim == 768 else 115 if model.vggt else 108
    estimated_mb = batch_size * activation_bytes(model, 2, "gpu") / 1e6 + gradients_mb
    assert estimated_mb == pytest.approx(planned_mb, rel=0.06)


def test_instructions_are_listed_where_there_are_many():
    few = MemoryEstimate(8 * 10**8, 10**8, 38 * 10**8, 10**8, instructions=4 * 10**6)
    parts = "state 0.80, gradients 0.10, activations 3.80, batches 0.10"
    assert str(few) == f"about 4.8 GB ({parts})"
    # 100,001 instructions of 16 tokens in T5-base.
    many = dataclasses.replace(few, instructions=100_001 * 16 * 768 * 4)
    assert str(many) == f"about 9.7 GB ({parts}, instructions 4.92)"
    assert many.total == 48 * 10**8 + 4_915_249_152
