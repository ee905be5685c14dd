import pathlib
import time
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.slow_store import delayed_reads
from pipeline.data.column_reader import ColumnReader
from pipeline.loading.data_config import MAX_BATCHES, MAX_THREADS, DataConfig, DatasetConfig
from pipeline.loading.reading import store_speed
from pipeline.loading.reading.store_speed import ColumnReads, StoreSpeed, measure_store
from pipeline.loading.window_reader import WindowReader
from pipeline.memory import LoaderMemory

CAMERAS = ("image_primary", "image_wrist")
MEMORY = LoaderMemory.predict(
    batch_bytes=10_000_000, record_bytes=50_000, num_threads=2, prefetch_batches=4
)


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_speed, "num_cores", lambda: 2)


def speed(read_ms: float, cpu_ms: float = 1.0, batch_size: int = 64) -> StoreSpeed:
    columns = (ColumnReads("episodes", 1, read_ms / 1e3), ColumnReads("steps", 2, read_ms / 1e3))
    return StoreSpeed(columns, cpu_ms / 1e3, batch_size, MEMORY)


# 64 samples every 0.1 s, each 61 ms of a thread, and half as many threads again: 58.6. A batch
# takes 61 ms; with a stall of a second that is 11 steps, and 2 batches are ready.
@pytest.mark.parametrize(
    ("read_ms", "step_s", "num_threads", "prefetch_batches"),
    [
        (20, 0.1, 59, 13),
        (20, 1.0, 6, 4),
        (100, 0.1, 289, 16),
        (100, 1.0, 29, 4),
        (0.05, 0.1, 2, 13),
        (0.05, 1.0, 1, 4),
    ],
)
def test_settings_follow_from_the_time_of_a_read(
    read_ms: float, step_s: float, num_threads: int, prefetch_batches: int
) -> None:
    found = speed(read_ms).settings(step_s)
    assert (found.num_threads, found.prefetch_batches) == (num_threads, prefetch_batches)
    assert found.memory.num_bytes == (prefetch_batches + 3) * 10_000_000 + num_threads * 100_000
    assert speed(read_ms).shortest_step_s(num_threads, prefetch_batches) <= step_s
    if num_threads > 1:
        assert speed(read_ms).shortest_step_s(num_threads - 1, prefetch_batches) > step_s


def test_what_keeps_up_and_what_does_not_is_said_in_one_line() -> None:
    assert speed(20).advice(59, 4, 0.1) == (
        True,
        "a sample takes 61 ms: episodes 20 ms, steps 2 x 20 ms, 1 ms of CPU; 59 threads and 4 "
        "batches ahead keep up with training steps of 0.099 s or longer",
    )
    keeps_up, text = speed(20).advice(2, 4, 0.1)
    assert not keeps_up
    assert text.endswith(
        "; 2 threads and 4 batches ahead keep up with training steps of 2.9 s or longer. For steps "
        "of 0.1 s set data.num_threads=59 and data.prefetch_batches=13 (memory 16 batches x 10.0 "
        "MB + 5.9 MB = 165.9 MB)"
    )


def test_cores_that_are_too_few_are_reported() -> None:
    keeps_up, text = speed(0.05, cpu_ms=10).advice(32, 8, 0.1)
    assert not keeps_up
    assert text.endswith(". The 2 cores make a batch in 0.32 s at best")


def test_no_more_threads_are_predicted_than_there_can_be() -> None:
    slow = speed(100, cpu_ms=0.1, batch_size=512)
    assert slow.settings(0.1).num_threads == MAX_THREADS
    keeps_up, text = slow.advice(MAX_THREADS, 64, 0.1)
    assert not keeps_up
    assert "set data.num_threads=1024 and" in text
    assert text.endswith(". More threads are not possible; these keep up with steps of 0.23 s")


def test_no_more_batches_ahead_are_predicted_than_a_config_allows() -> None:
    found = speed(20, batch_size=1).settings(0.0005)
    assert found.prefetch_batches == MAX_BATCHES
    DataConfig((DatasetConfig("d"),), "", prefetch_batches=found.prefetch_batches)


def test_a_loader_without_threads_makes_every_training_step_wait() -> None:
    keeps_up, text = speed(20).advice(0, 4, 10.0)
    assert not keeps_up
    assert "; every training step waits 3.9 s for it. For steps of 10 s set data.num_thr" in text


def test_each_read_of_a_sample_is_measured(make_loader: Callable, mini_dataset: Any) -> None:
    loader = make_loader(mini_dataset, observations=(*CAMERAS, "vggt_tokens"), window_size=1)
    with delayed_reads(0.02):
        found = measure_store(loader)
    assert [(one.column, one.per_sample) for one in found.columns] == [
        ("episodes", 1),
        ("steps", 1),
        ("vggt_tokens", 1),
    ]
    assert all(0.02 <= one.read_s < 0.2 for one in found.columns)
    assert 0 < found.cpu_s < 0.06 <= found.sample_s
    assert found.batch_size == 4


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"conditioning": "multimodal"},
        {"window_size": 3, "current_only": ("vggt_tokens",)},
        {"conditioning": "image_conditioned", "windows": (("image_wrist", 1),)},
    ],
)
def test_the_listed_records_are_those_that_are_read(
    make_loader: Callable,
    mini_dataset: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict,
) -> None:
    loader = make_loader(
        mini_dataset, observations=(*CAMERAS, "vggt_tokens"), batch_size=32, **settings
    )
    reader, samples = loader.transforms()[0], loader.order()[0]
    assert isinstance(reader, WindowReader)
    windows = reader.locate(samples)
    listed = [one for sample in range(32) for one in reader.records(windows, sample)]
    names = {id(one): name for name, one in loader.datasets[0].columns.items()}
    read, record = [], ColumnReader.read
    monkeypatch.setattr(
        ColumnReader,
        "read",
        lambda self, n: (read.append((names[id(self)], n)), record(self, n))[1],
    )
    reader(samples)
    assert sorted(listed) == sorted(read)


def test_threads_read_a_slow_store_at_the_same_time_and_batches_stay_the_same(
    make_loader: Callable, mini_dataset: pathlib.Path
) -> None:
    seconds, fingerprints = [], []
    with delayed_reads(0.02):
        for num_threads in (1, 24):
            # 24 reads of a batch, one after the other or all of three batches together.
            loader = make_loader(
                mini_dataset, observations=CAMERAS, batch_size=8, num_threads=num_threads
            )
            started = time.perf_counter()
            batches = loader.batches()
            fingerprints.append([next(batches).fingerprint for _ in range(3)])
            seconds.append(time.perf_counter() - started)
            batches.close()
    assert fingerprints[0] == fingerprints[1]
    assert seconds[0] > 3 * 8 * 2 * 0.02
    assert seconds[0] > 2.5 * seconds[1]
