"""A stream that any thread may close while another one iterates over it."""

import threading
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class ClosableStream(Generic[T]):
    """Iterates over what a generator yields, until any thread closes it.

    A generator itself can only be closed while it waits at a `yield`.
    """

    def __init__(self, items: Generator[T]) -> None:
        self._items = items
        # Held while the generator runs.
        self._lock = threading.Lock()
        self._is_closed = False

    def __iter__(self) -> Iterator[T]:
        """Yields each item; after `close`, no further one."""
        while True:
            with self._lock:
                try:
                    item = next(self._items)
                except StopIteration:
                    return
            if self._is_closed:
                self.close()
                return
            yield item

    def close(self) -> None:
        """Closes the generator, unless it runs; the loop over it then ends at its next item."""
        self._is_closed = True
        # Without waiting: a signal handler may interrupt the thread that has the lock.
        if self._lock.acquire(blocking=False):
            try:
                self._items.close()
            finally:
                self._lock.release()
