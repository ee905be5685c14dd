"""Predicts how much memory the loader takes, and controls what happens to freed memory."""

import ctypes
import dataclasses
import os

from pipeline.errors import UserError

KEEP_FREED_MEMORY = "OCTOGRAIN_KEEP_FREED_MEMORY"
"""Environment variable; with 0, `keep_freed_memory` does nothing."""
REUSE_ARRAYS = "OCTOGRAIN_REUSE_ARRAYS"
"""Environment variable; with 0, every array of a batch is allocated by the C library."""

# Numbers of `mallopt` parameters, from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 64 << 20
# The largest value that glibc accepts.
_LARGEST_MMAP_THRESHOLD = 32 << 20
_GB = 1e9
# Handed over, in transfer, and in use.
_BATCHES_IN_USE = 3


@dataclasses.dataclass(frozen=True)
class LoaderMemory:
    """Upper bound of a loader's memory, without the libraries."""

    batch_bytes: int
    """Size of this process's part of a batch."""
    num_batches: int
    """Batches in memory at once: those prefetched or being made, one handed over, one being
    transferred to the device and one in use."""
    record_bytes: int
    """Largest mean record size of any shard."""
    num_records: int
    """Records being decoded, each of which is in memory twice."""

    @classmethod
    def predict(
        cls, *, batch_bytes: int, record_bytes: int, num_threads: int, prefetch_batches: int
    ) -> "LoaderMemory":
        """Predicts the memory from sizes that are known before anything is read.

        Args:
          batch_bytes: Size of this process's part of a batch.
          record_bytes: Largest mean record size of any shard.
          num_threads: Threads that read samples.
          prefetch_batches: Batches made ahead.
        """
        ahead = prefetch_batches if num_threads else 1  # without threads, the one that is made
        return cls(
            batch_bytes=batch_bytes,
            num_batches=ahead + _BATCHES_IN_USE,
            record_bytes=record_bytes,
            num_records=max(num_threads, 1),
        )

    def with_settings(self, num_threads: int, prefetch_batches: int) -> "LoaderMemory":
        """Returns the memory of the same loader with other settings.

        Args:
          num_threads: Threads that read samples.
          prefetch_batches: Batches made ahead.
        """
        return LoaderMemory.predict(
            batch_bytes=self.batch_bytes,
            record_bytes=self.record_bytes,
            num_threads=num_threads,
            prefetch_batches=prefetch_batches,
        )

    @property
    def other_bytes(self) -> int:
        """Size of the records being decoded."""
        return 2 * self.num_records * self.record_bytes

    @property
    def num_bytes(self) -> int:
        """Total size of batches and records."""
        return self.num_batches * self.batch_bytes + self.other_bytes

    def check(self, budget_gb: float | None) -> None:
        """Raises a `UserError` if the budget is too small."""
        if budget_gb is None or self.num_bytes <= budget_gb * _GB:
            return
        # Solves the inequality of `num_bytes` for the number of batches.
        fitting = int((budget_gb * _GB - self.other_bytes) // self.batch_bytes) - _BATCHES_IN_USE
        if fitting > 0:
            remedy = f"Lower data.prefetch_batches to {fitting}, or raise the budget."
        else:
            remedy = "Lower batch_size, read fewer observations, or raise the budget."
        raise UserError(
            where=f"data.ram_budget_gb {budget_gb}",
            expected=f"at least {self.num_bytes / _GB:.3f}",
            found=str(self),
            remedy=remedy,
        )

    def __str__(self) -> str:
        """Formats the sum, such as `6 batches x 46.8 MB + 4.3 MB = 285.1 MB`."""
        batch, other, total = (
            f"{n / 1e6:.1f} MB" for n in (self.batch_bytes, self.other_bytes, self.num_bytes)
        )
        return f"{self.num_batches} batches x {batch} + {other} = {total}"


def is_on(switch: str) -> bool:
    """Whether a mechanism is used: unless its environment variable is 0."""
    return os.environ.get(switch) != "0"


def keep_freed_memory() -> None:
    """Lets the C library keep up to 64 MB of freed memory for the next record.

    By default glibc returns large blocks to the system at once, and the next block causes a page
    fault for every 4 KB: 1,470 faults for a sample with tokens, whose loading then takes 7.7 CPU
    ms instead of 5.0. A conversion takes 4 to 8 % more (benchmarks/RESULTS.md).

    The setting affects the whole process, so only command lines and worker processes call this, no
    library function does. It does nothing where the C library has no `mallopt`, or where the
    environment variable `OCTOGRAIN_KEEP_FREED_MEMORY` is 0.
    """
    if not is_on(KEEP_FREED_MEMORY):
        return
    # None on macOS and musl.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # Setting either turns off glibc's own adaptation of both.
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def release_freed_memory() -> None:
    """Returns freed memory to the system, such as what a compiler used.

    After compiling the training step of octo-small and initialising its parameters this frees 1.4
    of 2.4 GB. It does nothing where the C library has no `malloc_trim`.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        # 0: keep no room at the top of the heap.
        malloc_trim(0)
