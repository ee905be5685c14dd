"""Compiled programs that all processes of the tests share, in one folder."""

import functools
import os
import pathlib
import tempfile

from jax._src.lru_cache import LRUCache


@functools.cache
def write_programs_whole() -> None:
    """Lets other processes read the folder of compiled programs while this one writes.

    JAX writes a program into its file in place, so that another process could read half of it.
    """
    write = LRUCache.put

    def put(cache: LRUCache, key: str, value: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=cache.path) as folder:
            write(LRUCache(folder, max_size=-1), key, value)
            for file in pathlib.Path(folder).iterdir():
                os.replace(file, pathlib.Path(cache.path) / file.name)

    LRUCache.put = put
