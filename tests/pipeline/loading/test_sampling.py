import collections
from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.loading.samples.sampling import HostShard, SampleOrder, Turns, sample_draws
from pipeline.loading.samples.selection import Selection


def everything(*num_steps: int) -> list[Selection]:
    """Datasets all of whose steps are selected."""
    return [Selection(np.array([0]), np.array([0, n])) for n in num_steps]


def pairs(order: SampleOrder, num_batches: int, first: int = 0) -> list[tuple[int, int]]:
    """(dataset, step) of the samples of some batches."""
    batches = [order[first + i] for i in range(num_batches)]
    return [pair for b in batches for pair in zip(b.dataset.tolist(), b.step.tolist(), strict=True)]


def order_of(num_steps: Sequence[int], weights: Sequence[float], seed: int) -> SampleOrder:
    return SampleOrder(everything(*num_steps), weights, seed, batch_size=1)


def test_order_is_pinned() -> None:
    # May change with Grain's shuffle, with the turns or with the seeds of the datasets, only: a
    # resumed run would then read other steps than the one that it continues.
    single = order_of([100_000], [1.0], seed=7)
    assert [step for _, step in pairs(single, 8)] == [
        91767, 44960, 14772, 8158, 40679, 83276, 4602, 18235,
    ]  # fmt: skip
    mixed = order_of([5, 3], [1.0, 3.0], seed=42)
    assert pairs(mixed, 12) == [
        (1, 1), (0, 0), (1, 2), (1, 0), (1, 1), (0, 4), (1, 0), (1, 2), (1, 2), (0, 2), (1, 1),
        (1, 0),
    ]  # fmt: skip


def test_every_step_comes_once_an_epoch_in_another_order_each_time() -> None:
    order = order_of([50], [1.0], seed=0)
    epochs = [[step for _, step in pairs(order, 50, 50 * epoch)] for epoch in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(50))
    assert len(set(map(tuple, epochs))) == 4


def test_every_step_of_a_mixture_comes_once_an_epoch_of_its_dataset() -> None:
    steps: dict[int, list[int]] = {0: [], 1: []}
    for dataset, step in pairs(order_of([7, 11], [1.0, 2.0], seed=3), 54):
        steps[dataset].append(step)
    for dataset, size in ((0, 7), (1, 11)):
        for start in range(0, len(steps[dataset]) - size + 1, size):
            assert sorted(steps[dataset][start : start + size]) == list(range(size))


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ((1.0, 1.0, 2.0), (0.25, 0.25, 0.5)),
        ((3.0, 28.0), (3 / 31, 28 / 31)),
        ((102.0, 103.0), (102 / 205, 103 / 205)),
        ((52970.0, 66984.0, 52042.0, 101469.0), (0.1937, 0.24495, 0.1903, 0.37105)),
    ],
)
def test_shares_of_whole_weights_are_exact(weights: tuple, shares: tuple) -> None:
    turns = Turns(weights)
    np.testing.assert_allclose(turns.shares, shares, atol=1e-5)
    period = int(sum(weights)) // np.gcd.reduce(np.array(weights, int))
    datasets, _ = turns(np.arange(7, 7 + period))
    counts = np.bincount(datasets)
    np.testing.assert_array_equal(counts * sum(weights), np.array(weights) * period)


def test_other_shares_are_exact_to_a_millionth() -> None:
    turns = Turns((0.2, 0.5, 0.3))
    np.testing.assert_allclose(turns.shares, (0.2, 0.5, 0.3), atol=1e-6)
    datasets, _ = turns(np.arange(10_000_000, 10_100_000))
    np.testing.assert_allclose(np.bincount(datasets) / 100_000, (0.2, 0.5, 0.3), atol=1e-4)


def test_dataset_of_a_tiny_share_has_its_turn() -> None:
    datasets, _ = Turns((1e-9, 1.0))(np.arange(1 << 21))
    assert (datasets == 0).sum() >= 1


def test_datasets_take_turns_evenly() -> None:
    for start in (0, 1_000_000):
        datasets, _ = Turns((1.0, 3.0))(np.arange(start, start + 400))
        assert set(datasets.reshape(-1, 8).sum(1).tolist()) == {6}


def test_samples_of_each_dataset_are_numbered_without_a_gap() -> None:
    datasets, numbers = Turns((2.0, 3.0, 7.0))(np.arange(500))
    for dataset in range(3):
        own = numbers[datasets == dataset]
        np.testing.assert_array_equal(own, np.arange(len(own)))


def test_scale_of_the_weights_does_not_matter() -> None:
    small, large = (order_of([5, 9], weights, seed=1) for weights in ((1.0, 3.0), (10.0, 30.0)))
    assert pairs(small, 40) == pairs(large, 40)


def test_element_is_a_pure_function_of_its_index_and_the_seed() -> None:
    first, second = (order_of([20, 30], [2.0, 3.0], seed=5) for _ in range(2))
    forwards = [pairs(first, 1, i) for i in range(200)]
    backwards = [pairs(second, 1, i) for i in reversed(range(200))]
    assert forwards == backwards[::-1]
    other = order_of([20, 30], [2.0, 3.0], seed=6)
    assert forwards != [pairs(other, 1, i) for i in range(200)]


def test_datasets_of_one_size_have_their_own_orders() -> None:
    steps = collections.defaultdict(list)
    for dataset, step in pairs(order_of([100, 100], [1.0, 1.0], seed=0), 200):
        steps[dataset].append(step)
    assert steps[0] != steps[1]


def test_draws_are_pinned() -> None:
    # May change with the source of the draws only: resumed runs would draw other goals.
    expected = [
        [0.820198148, 0.189245624, 0.867660815, 0.39458147],
        [0.368128451, 0.434446254, 0.194635491, 0.062248211],
    ]
    np.testing.assert_allclose(sample_draws(42, 0, 2), expected, atol=1e-9)


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
    samples = order[2]
    np.testing.assert_array_equal(samples.index, [8, 9, 10, 11])
    found = list(zip(samples.dataset.tolist(), samples.step.tolist(), strict=True))
    assert found == pairs(order_of([5, 3], [1.0, 3.0], 42), 4, 8)
    np.testing.assert_array_equal(samples.draws, sample_draws(42, 8, 4))


def test_numbers_of_selected_steps_become_steps() -> None:
    selection = Selection(np.array([10, 50]), np.array([0, 2, 5]))
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


@pytest.mark.parametrize(("batch_size", "remedy"), [(10, 9), (2, 3)])
def test_processes_have_to_divide_the_batch(batch_size: int, remedy: int) -> None:
    message = f"multiple of 3, the number of processes; found {batch_size}. Take {remedy}."
    with pytest.raises(UserError, match=message):
        HostShard(0, 3).rows(batch_size)
