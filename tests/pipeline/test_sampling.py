import collections

import numpy as np
import pytest

from pipeline.sampling import HostShard, SampleOrder, index_stream, sample_draws
from pipeline.selection import Selection


def everything(*num_steps: int) -> list[Selection]:
    """Datasets of one episode each, all of whose steps are selected."""
    return [
        Selection(np.array([0]), np.array([0, n]), np.array([], np.int64), 2, np.array([0, n]))
        for n in num_steps
    ]


def test_order_is_pinned() -> None:
    # May change with Grain's shuffle or mix, or with the seeds of the datasets, only: a resumed
    # run would then read other steps than the one that it continues.
    single = index_stream([100_000], [1.0], seed=7)
    assert [single[i][1] for i in range(8)] == [
        91767, 44960, 14772, 8158, 40679, 83276, 4602, 18235,
    ]  # fmt: skip
    mixed = index_stream([5, 3], [1.0, 3.0], seed=42)
    assert [mixed[i] for i in range(12)] == [
        (0, 0), (1, 1), (1, 2), (1, 0), (0, 4), (1, 1), (1, 0), (1, 2), (0, 2), (1, 2), (1, 1),
        (1, 0),
    ]  # fmt: skip


def test_every_step_comes_once_an_epoch_in_another_order_each_time() -> None:
    stream = index_stream([50], [1.0], seed=0)
    epochs = [[stream[50 * epoch + i][1] for i in range(50)] for epoch in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(50))
    assert len(set(map(tuple, epochs))) == 4


def test_every_step_of_a_mixture_comes_once_an_epoch_of_its_dataset() -> None:
    stream = index_stream([7, 11], [1.0, 2.0], seed=3)
    steps: dict[int, list[int]] = {0: [], 1: []}
    for i in range(3 * 18):
        dataset, step = stream[i]
        steps[dataset].append(step)
    for dataset, size in ((0, 7), (1, 11)):
        for start in range(0, len(steps[dataset]) - size + 1, size):
            assert sorted(steps[dataset][start : start + size]) == list(range(size))


@pytest.mark.parametrize(
    ("weights", "shares"), [((1.0, 1.0, 2.0), (25, 25, 50)), ((0.2, 0.5, 0.3), (20, 50, 30))]
)
def test_datasets_take_their_shares(weights: tuple, shares: tuple) -> None:
    stream = index_stream([3, 100, 10], weights, seed=1)
    for start in (0, 1_000_000):
        counts = collections.Counter(stream[start + i][0] for i in range(100))
        assert all(abs(counts[number] - share) <= 1 for number, share in enumerate(shares))


def test_scale_of_the_weights_does_not_matter() -> None:
    small, large = (index_stream([5, 9], weights, seed=1) for weights in ((1.0, 3.0), (10.0, 30.0)))
    assert [small[i] for i in range(40)] == [large[i] for i in range(40)]


def test_element_is_a_pure_function_of_its_index_and_the_seed() -> None:
    first, second = (index_stream([20, 30], [2.0, 3.0], seed=5) for _ in range(2))
    forwards = [first[i] for i in range(200)]
    backwards = [second[i] for i in reversed(range(200))]
    assert forwards == backwards[::-1]
    assert forwards != [index_stream([20, 30], [2.0, 3.0], seed=6)[i] for i in range(200)]


def test_datasets_of_one_size_have_their_own_orders() -> None:
    stream = index_stream([100, 100], [1.0, 1.0], seed=0)
    steps = [[s for d, s in map(stream.__getitem__, range(200)) if d == n] for n in (0, 1)]
    assert steps[0] != steps[1]


def test_draws_are_pinned() -> None:
    # May change with the source of the draws only: resumed runs would draw other goals.
    np.testing.assert_allclose(
        sample_draws(42, 0, 2),
        [
            [0.820198148, 0.189245624, 0.867660815, 0.39458147],
            [0.368128451, 0.434446254, 0.194635491, 0.062248211],
        ],
        atol=1e-9,
    )


def test_draws_belong_to_a_sample_wherever_a_batch_begins() -> None:
    whole = sample_draws(7, 0, 100)
    assert whole.shape == (100, 4)
    assert whole.min() >= 0
    assert whole.max() < 1
    np.testing.assert_array_equal(sample_draws(7, 37, 10), whole[37:47])
    assert not np.isin(sample_draws(8, 0, 100), whole).any()


def test_draws_are_uniform_and_independent() -> None:
    draws = sample_draws(0, 10**12, 40_000)
    np.testing.assert_allclose(draws.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(np.corrcoef(draws.T), np.eye(4), atol=0.02)


def test_batch_says_where_its_samples_come_from() -> None:
    order = SampleOrder(everything(5, 3), [1.0, 3.0], seed=42, batch_size=4)
    stream = index_stream([5, 3], [1.0, 3.0], seed=42)
    samples = order[2]
    np.testing.assert_array_equal(samples.index, [8, 9, 10, 11])
    pairs = list(zip(samples.dataset.tolist(), samples.step.tolist(), strict=True))
    assert pairs == [stream[i] for i in range(8, 12)]
    np.testing.assert_array_equal(samples.draws, sample_draws(42, 8, 4))


def test_numbers_of_selected_steps_become_steps() -> None:
    selection = Selection(
        np.array([10, 50]), np.array([0, 2, 5]), np.array([], np.int64), 2, np.array([0, 90])
    )
    order = SampleOrder([selection], [1.0], seed=0, batch_size=5)
    assert sorted(order[0].step.tolist()) == [10, 11, 50, 51, 52]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_batch_is_the_same_on_any_number_of_hosts(count: int) -> None:
    whole = SampleOrder(everything(50, 70), [1.0, 2.0], seed=3, batch_size=8)
    parts = [
        SampleOrder(everything(50, 70), [1.0, 2.0], 3, 8, HostShard(index, count))
        for index in range(count)
    ]
    for batch in (0, 1, 999):
        for field in ("index", "dataset", "step", "draws"):
            united = np.concatenate([getattr(part[batch], field) for part in parts])
            np.testing.assert_array_equal(united, getattr(whole[batch], field))
