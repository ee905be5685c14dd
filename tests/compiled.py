"""Compiled programs that all processes of the tests share, and compiling with less overhead."""

import functools
import gc
import os
import pathlib
import threading
from typing import Any

from jax._src.interpreters import mlir
from jax._src.lru_cache import LRUCache

_PROGRAMS_PER_CONTEXT = 100
"""A context keeps the constants of its programs, so that it is replaced from time to time."""


@functools.cache
def write_programs_whole() -> None:
    """Lets other processes read the folder of compiled programs while this one writes.

    JAX writes a program into its file in place, so that another process could read half of it.
    """

    def put(cache: LRUCache, key: str, value: bytes) -> None:
        path = pathlib.Path(cache.path) / f"{key}-cache"
        written = path.with_name(f"{key}.{os.getpid()}.{threading.get_ident()}")
        written.write_bytes(value)
        os.replace(written, path)

    LRUCache.put = put


@functools.cache
def share_contexts() -> None:
    """Lowers programs in a context that exists already: making one takes 5 ms of their 20 ms."""
    make = mlir.make_ir_context
    local = threading.local()

    def context() -> Any:
        left = getattr(local, "left", 0)
        if not left:
            local.context, left = make(), _PROGRAMS_PER_CONTEXT
        local.left = left - 1
        return local.context

    mlir.make_ir_context = context


def spare_garbage_collection() -> None:
    """Takes the modules out of the garbage collector's rounds, and lets these be fewer.

    Tracing makes millions of small objects, and each round would visit all that was imported: a
    tenth of the CPU time of a run as a command.
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
