import os
import subprocess
import sys

import pytest

from pipeline.errors import UserError
from pipeline.memory import KEEP_FREED_MEMORY, LoaderMemory

_FAULTS = """
import resource, sys
from pipeline.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
bytes(bytearray(8_000_000))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    bytes(bytearray(8_000_000))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(argument: str, switch: str = "1") -> int:
    command = [sys.executable, "-c", _FAULTS, argument]
    env = os.environ | {KEEP_FREED_MEMORY: switch}
    return int(subprocess.run(command, capture_output=True, check=True, env=env).stdout)


def test_memory_that_was_freed_is_used_again_without_a_fault_for_every_page() -> None:
    assert faults("given back") > 20 * 8_000_000 / 4096
    assert faults("kept") < 100
    assert faults("kept", switch="0") > 20 * 8_000_000 / 4096


def memory(num_threads: int = 2, prefetch_batches: int = 4) -> LoaderMemory:
    return LoaderMemory.predict(
        batch_bytes=50_000_000,
        record_bytes=1_000_000,
        num_threads=num_threads,
        prefetch_batches=prefetch_batches,
    )


@pytest.mark.parametrize(
    ("num_threads", "prefetch_batches", "num_bytes"),
    [(2, 4, 7 * 50e6 + 4e6), (4, 8, 11 * 50e6 + 8e6), (0, 4, 4 * 50e6 + 2e6)],
)
def test_memory_is_that_of_the_batches_under_way(
    num_threads: int, prefetch_batches: int, num_bytes: float
) -> None:
    assert memory(num_threads, prefetch_batches).num_bytes == num_bytes


def test_memory_is_reported_as_a_sum() -> None:
    assert str(memory()) == "7 batches x 50.0 MB + 4.0 MB = 354.0 MB"


@pytest.mark.parametrize(
    ("budget_gb", "remedy"),
    [
        (0.32, "Lower data.prefetch_batches to 3, or"),
        (0.21, "Lower data.prefetch_batches to 1, or"),
        (0.12, "Lower batch_size, read fewer"),
    ],
)
def test_budget_that_is_too_small_is_refused_with_what_would_fit(
    budget_gb: float, remedy: str
) -> None:
    message = rf"ram_budget_gb {budget_gb}: expected at least 0.354; found 7 batches.*{remedy}"
    with pytest.raises(UserError, match=message):
        memory().check(budget_gb)


@pytest.mark.parametrize("budget_gb", [None, 0.354, 10.0])
def test_budget_that_suffices_passes(budget_gb: float | None) -> None:
    memory().check(budget_gb)
