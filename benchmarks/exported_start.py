"""How long an exported policy takes from the start of a process to its first action.

    octograin export RUN policy.zip --to stablehlo
    python -m benchmarks.exported_start policy.zip [--rounds 3]

Each round starts two processes that can import nothing of this project. One loads the program as it
was compiled at export; the other compiles it, as on another kind of machine, which a flag of XLA
with its default value makes it. Prints medians of CPU seconds of all threads, and of seconds, up
to three points: jax is imported, the policy is loaded, the first action is there.
"""

import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
from typing import Annotated

import tyro

from pipeline.errors import user_errors_exit
from pipeline.terminal import show

_POINTS = ("jax imported", "policy loaded", "first action")
_FLAG = "--xla_force_host_platform_device_count=1"
_START = """
import sys, time
began = time.perf_counter()
times = []
def point():
    times.append((time.process_time(), time.perf_counter() - began))
sys.path.insert(0, sys.argv[1])
import jax
point()
from exported_policy import ExportedPolicy
policy = ExportedPolicy()
point()
policy.reset(0, policy.instructions[0] if policy.instructions else "")
policy.infer({0: policy.example_observation()})
point()
import json
print(json.dumps({"origin": policy.origin, "times": times}))
"""


@dataclasses.dataclass(frozen=True)
class Args:
    """Measures the start of an exported policy that takes instructions."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The exported policy."""
    rounds: int = 3
    """Processes of each kind."""


def main() -> None:
    """Starts the processes and prints a line for each kind and point."""
    with user_errors_exit():
        args = tyro.cli(Args, use_underscores=True)
        path = str(pathlib.Path(args.file).absolute())
        flags = os.environ.get("XLA_FLAGS", "")
        for same_flags in (True, False):
            given = flags if same_flags else f"{flags} {_FLAG}"
            found = [_start(path, given) for _ in range(args.rounds)]
            for number, point in enumerate(_POINTS):
                cpu, wall = (
                    statistics.median(one["times"][number][kind] for one in found)
                    for kind in (0, 1)
                )
                show(f"compiled {found[0]['origin']}, {point}: {cpu:.2f} CPU s, {wall:.2f} s\n")


def _start(path: str, flags: str) -> dict:
    """Runs one process; returns what it printed."""
    ran = subprocess.run(
        [sys.executable, "-I", "-c", _START, path],
        env=os.environ | {"XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(ran.stdout)


if __name__ == "__main__":
    main()
