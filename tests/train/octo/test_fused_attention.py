"""Attention in one kernel: cuDNN needs a GPU, and `xla` takes the same arguments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipeline.errors import UserError
from train.octo.attention import Kind, Span, attention_mask, rule_mask
from train.octo.octo_config import octo_small
from train.octo.transformer import EncoderBlock, _attend, attend_fused

SPANS = [Span("image", Kind.OBSERVATION, 3), Span("readout_action", Kind.READOUT, 1)]


@pytest.mark.parametrize("num_task_tokens", [2, 3])  # 10 and 11 tokens
def test_fused_attention_and_its_gradients_are_those_of_plain_attention(num_task_tokens):
    rules = rule_mask([Span("task", Kind.TASK, num_task_tokens)], SPANS, window=2)
    # The first step of the first sample is padding, and so is all that its own tokens attend to.
    real = np.ones((2, len(rules)), bool)
    real[0, : num_task_tokens + 3] = False
    mask = attention_mask(rules, jnp.asarray(real))
    assert not np.asarray(mask).any(-1).all()
    rng = np.random.default_rng(0)
    inputs = [jnp.asarray(rng.standard_normal((2, len(rules), 2, 8)), jnp.float32) for _ in "qkvw"]
    # A query that may attend to nothing has any finite output: no other token reads it.
    counts = jnp.asarray(mask.any(-1)[:, 0, :, None, None], jnp.float32)

    def loss(attend, q, k, v, weights):
        return jnp.sum(attend(q, k, v) * weights * counts)

    def fused(q, k, v):
        return attend_fused(q, k, v, mask=mask, implementation="xla")

    def plain(q, k, v):
        return _attend(q, k, v, mask=mask)

    found, expected = (
        jax.value_and_grad(lambda *qkv, attend=attend: loss(attend, *qkv, inputs[3]), (0, 1, 2))(
            *inputs[:3]
        )
        for attend in (fused, plain)
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), found, expected
    )
    assert np.isfinite(fused(*inputs[:3])).all()


def test_fused_attention_is_chosen_on_a_gpu_alone(monkeypatch):
    block = EncoderBlock(octo_small().transformer, "bfloat16", "fused")
    assert block._attention() is _attend
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert block._attention() is attend_fused


def test_fused_attention_in_float32_is_an_error() -> None:
    with pytest.raises(UserError, match=r"(?s)attention.*float32.*set compute_dtype to bfloat16"):
        dataclasses.replace(octo_small(), attention="fused")
    assert dataclasses.replace(octo_small(), attention="fused", compute_dtype="bfloat16")
