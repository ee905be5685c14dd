import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from train.octo.attention import Kind, Rule, Span, attention_mask, layout, rule, rule_mask

TASK = Span("task_language", Kind.TASK, 2)
CAMERA = Span("obs_primary", Kind.OBSERVATION, 1)
WRIST = Span("obs_wrist", Kind.OBSERVATION, 2)
READOUT = Span("readout_action", Kind.READOUT, 1)
OTHER_READOUT = Span("readout_value", Kind.READOUT, 1)


@pytest.mark.parametrize(
    ("query", "key", "expected"),
    [
        (TASK, TASK, Rule.CAUSAL),
        (TASK, CAMERA, Rule.NEVER),
        (TASK, READOUT, Rule.NEVER),
        (CAMERA, TASK, Rule.CAUSAL),
        (CAMERA, WRIST, Rule.CAUSAL),
        (CAMERA, READOUT, Rule.NEVER),
        (READOUT, TASK, Rule.CAUSAL),
        (READOUT, CAMERA, Rule.CAUSAL),
        (READOUT, READOUT, Rule.CAUSAL),
        (READOUT, OTHER_READOUT, Rule.NEVER),
    ],
)
def test_rules_between_groups(query: Span, key: Span, expected: Rule) -> None:
    assert rule(query, key) is expected


def test_layout_is_the_prefix_and_then_step_after_step() -> None:
    groups, steps = layout([TASK], [CAMERA, WRIST], window=2)
    np.testing.assert_array_equal(groups, [0, 0, 1, 2, 2, 1, 2, 2])
    np.testing.assert_array_equal(steps, [-1, -1, 0, 0, 0, 1, 1, 1])


def test_mask_of_a_small_sequence_is_the_one_drawn_by_hand() -> None:
    expected = [  # task, task, camera 0, readout 0, camera 1, readout 1
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 1, 0],
        [1, 1, 1, 1, 1, 1],
    ]
    mask = rule_mask([TASK], [CAMERA, READOUT], window=2)
    np.testing.assert_array_equal(mask, np.array(expected, dtype=bool))


@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    window=st.integers(1, 4),
    prefix=st.integers(1, 3),
)
def test_no_token_sees_a_later_step_and_none_but_readouts_see_readouts(
    counts: list[int], window: int, prefix: int
) -> None:
    before = [Span("task", Kind.TASK, prefix)]
    spans = [Span(f"obs_{i}", Kind.OBSERVATION, n) for i, n in enumerate(counts)]
    groups, steps = layout(before, [*spans, READOUT], window)
    mask = rule_mask(before, [*spans, READOUT], window)
    is_readout = groups == 1 + len(spans)
    queries, keys = np.nonzero(mask)
    assert np.all(steps[keys] <= steps[queries])
    assert np.all(is_readout[queries] | ~is_readout[keys])
    # Without the readout the rest of the matrix is the same.
    without = rule_mask(before, spans, window)
    np.testing.assert_array_equal(mask[~is_readout][:, ~is_readout], without)


def test_padding_masks_keys_and_never_queries() -> None:
    rules = rule_mask([TASK], [CAMERA], window=1)
    real = jnp.array([[True, False, True], [False, False, False]])
    mask = attention_mask(rules, real)
    assert mask.shape == (2, 1, 3, 3)
    np.testing.assert_array_equal(mask[0, 0], [[1, 0, 0], [1, 0, 0], [1, 0, 1]])
    assert not mask[1].any()
