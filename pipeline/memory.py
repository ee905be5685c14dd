"""The memory of a process: what the loader will take of it, and what becomes of freed memory."""

import ctypes
import dataclasses

from pipeline.errors import UserError

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 64 << 20
_LARGEST_MMAP_THRESHOLD = 32 << 20
_GB = 1e9
_BATCHES_IN_USE = 3


@dataclasses.dataclass(frozen=True)
class LoaderMemory:
    """What a loader takes at most, beside the libraries."""

    batch_bytes: int
    """Of one batch, in this process."""
    num_batches: int
    """Batches at once: made ahead or under way, one handed over, one on its way to the device and
    one in use."""
    num_threads: int
    """Threads that make batches."""
    other_bytes: int
    """Records that are being decoded."""

    @classmethod
    def predict(
        cls, *, batch_bytes: int, record_bytes: int, num_threads: int, prefetch_batches: int
    ) -> "LoaderMemory":
        """From sizes that are known before anything is read.

        Args:
          batch_bytes: Of one batch, in this process.
          record_bytes: Of the largest record, on average over its shard.
          num_threads: Threads that make batches.
          prefetch_batches: Batches made ahead.
        """
        ahead = prefetch_batches if num_threads else 1  # without threads, the one that is made
        return cls(
            batch_bytes=batch_bytes,
            num_batches=ahead + _BATCHES_IN_USE,
            num_threads=num_threads,
            other_bytes=2 * max(num_threads, 1) * record_bytes,
        )

    @property
    def num_bytes(self) -> int:
        """Of all together."""
        return self.num_batches * self.batch_bytes + self.other_bytes

    def check(self, budget_gb: float | None) -> None:
        """Raises `UserError` where a budget is too small."""
        if budget_gb is None or self.num_bytes <= budget_gb * _GB:
            return
        fitting = int((budget_gb * _GB - self.other_bytes) // self.batch_bytes) - _BATCHES_IN_USE
        if fitting > 0:
            threads = f" and data.num_threads to {fitting}" if fitting < self.num_threads else ""
            remedy = f"Lower data.prefetch_batches to {fitting}{threads}, or raise the budget."
        else:
            remedy = "Lower batch_size, read fewer observations, or raise the budget."
        raise UserError(
            where=f"data.ram_budget_gb {budget_gb}",
            expected=f"at least {self.num_bytes / _GB:.3f}",
            found=str(self),
            remedy=remedy,
        )

    def __str__(self) -> str:
        """Such as `6 batches x 46.8 MB + 4.3 MB = 285.1 MB`."""
        batch, other, total = (
            f"{n / 1e6:.1f} MB" for n in (self.batch_bytes, self.other_bytes, self.num_bytes)
        )
        return f"{self.num_batches} batches x {batch} + {other} = {total}"


def keep_freed_memory() -> None:
    """Lets the C library keep up to 64 MB that were freed, for the next record.

    glibc gives large blocks back to the system at once, and takes a page fault for every 4 KB of
    the next one: 28,000 faults, a third of the CPU time, for a conversion of 77 MB, and 1.35 ms for
    reading 1.07 MB of tokens that takes 0.34 ms without (2 cores of an AMD EPYC). A setting of the
    whole process, so command lines and worker processes choose it, no library function does.
    Nothing happens where the C library has no `mallopt`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def release_freed_memory() -> None:
    """Gives freed memory back to the system: what a compiler took, between other blocks.

    After compiling the step of octo-small and making its parameters, 1.4 of 2.4 GB. Nothing happens
    where the C library has no `malloc_trim`.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
