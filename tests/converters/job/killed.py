"""`python killed.py SRC MAPPING OUT`: converts, is killed, and converts again, many times over.

A script of its own: it forks, so that a conversion starts in a millisecond, and forks only where no
library has started threads. Prints one JSON object.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable

import xxhash

from converters.job.convert import convert
from converters.mapping.mapping_registry import read_mapping
from converters.sources.open_source import open_source

_NUM_RANDOM = 30
_CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
"""What the interpreter tells its audit hooks before it touches a file."""


def main(src: str, mapping_file: str, out: pathlib.Path) -> None:
    source = open_source(src)
    mapping = read_mapping(mapping_file)

    def work() -> None:
        is_finished = (out / "dataset.json").exists()
        if not (is_finished and not (out / ".conversion" / "plan.json").exists()):
            convert(source, out, mapping)

    in_child(work)
    undisturbed = digests(out)
    shutil.rmtree(out)
    started = time.monotonic()
    changes = count_changes(work)
    seconds = time.monotonic() - started
    killed_at_change = sum(_survives(work, out, undisturbed, at_change(n)) for n in changes)
    rng = random.Random(0)
    killed_at_random = 0
    while killed_at_random < _NUM_RANDOM:
        moment = after(rng.uniform(0, seconds))
        killed_at_random += _survives(work, out, undisturbed, moment)
    result = {
        "changes": len(changes),
        "killed_at_change": killed_at_change,
        "killed_at_random": killed_at_random,
    }
    sys.stdout.write(json.dumps(result) + "\n")


def digests(directory: pathlib.Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): xxhash.xxh3_128(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def shown(files: dict[str, str]) -> dict[str, str]:
    """Those that are not hidden: what is left of a job may stay beside its finished dataset."""
    return {name: digest for name, digest in files.items() if not name.startswith(".")}


def _survives(
    work: Callable[[], None],
    out: pathlib.Path,
    undisturbed: dict[str, str],
    disturb: Callable[[], None],
) -> int:
    """1 where the kill came before the end; in any case a rerun gives the undisturbed files."""
    shutil.rmtree(out, ignore_errors=True)
    status = in_child(work, disturb)
    is_whole = (out / "dataset.json").exists()
    if is_whole and shown(digests(out)) != undisturbed:
        raise AssertionError("a dataset.json stands beside files that are not the undisturbed ones")
    is_finished = is_whole and not (out / ".conversion").exists()
    in_child(work)
    found = digests(out)
    if (shown(found) if is_finished else found) != undisturbed:
        raise AssertionError("the rerun gave other files")
    return status == -signal.SIGKILL


def at_change(n: int) -> Callable[[], None]:
    """Kills the process before it touches a file for the n-th time."""

    def disturb() -> None:
        count = 0

        def hook(event: str, arguments: object) -> None:
            nonlocal count
            if event in _CHANGES:
                count += 1
                if count == n:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    return disturb


def after(seconds: float) -> Callable[[], None]:
    """Kills the process after some time."""

    def disturb() -> None:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))

    return disturb


def count_changes(work: Callable[[], None]) -> range:
    """1 to the number of times that a conversion into a new directory touches a file."""
    read, write = os.pipe()
    if os.fork() == 0:
        count = 0

        def hook(event: str, arguments: object) -> None:
            nonlocal count
            count += event in _CHANGES

        sys.addaudithook(hook)
        work()
        os.write(write, str(count).encode())
        os._exit(0)
    os.wait()
    return range(1, int(os.read(read, 20)) + 1)


def in_child(work: Callable[[], None], disturb: Callable[[], None] = lambda: None) -> int:
    """The exit code of a forked process that does the work."""
    child = os.fork()
    if child == 0:
        try:
            disturb()
            work()
        except BaseException as error:  # noqa: BLE001  (reported to the parent by the exit code)
            sys.stderr.write(f"{error}\n")
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise AssertionError(f"the conversion ended with {code}")
    return code


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]))
