"""What a sample costs by LeRobot's own DataLoader, and by the loader of the converted set.

    python3.12 -m venv lerobot_env && lerobot_env/bin/pip install 'lerobot[dataset]==0.6.1'
    octograin convert SRC DST --mapping MAPPING
    python -m benchmarks.lerobot_loader SRC DST --python lerobot_env/bin/python

Both yield batches of 16: two steps of every camera and of the state, four actions. They take turns,
each in a process of its own without worker processes. CPU time of all threads is counted, after 5
batches that are not. LeRobot's samples are decoded from the video, as float32 in [0, 1]; ours from
JPEG, as uint8. Neither resizes or augments: both leave that to the step.
"""

import dataclasses
import itertools
import os
import statistics

import tyro

from benchmarks import measuring
from octograin import open_loader
from pipeline.errors import UserError, user_errors_exit

_BATCH_SIZE = 16
_WARM_UP = 5
_LEROBOT = """
import itertools, json, sys, time
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
root, num_batches = sys.argv[1], int(sys.argv[2])
dataset = LeRobotDataset("local/set", root=root)
frame = 1 / dataset.meta.fps
observed = [key for key in dataset.meta.features if key.startswith("observation.")]
times = {key: [-frame, 0.0] for key in observed} | {"action": [i * frame for i in range(4)]}
dataset = LeRobotDataset("local/set", root=root, delta_timestamps=times)
loader = torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True, drop_last=True)
batches = itertools.chain.from_iterable(itertools.repeat(loader))
for _ in range(5):
    next(batches)
started = time.process_time()
for _ in range(num_batches):
    next(batches)
print(json.dumps((time.process_time() - started) / (num_batches * 16) * 1e3))
"""


@dataclasses.dataclass(frozen=True)
class Args:
    """Compares LeRobot's DataLoader with the loader of the same set, converted."""

    src: tyro.conf.Positional[str]
    """LeRobot directory."""
    dst: tyro.conf.Positional[str]
    """The dataset directory that was converted from it."""
    python: str = ""
    """Python of an environment with lerobot."""
    rounds: int = 3
    """Times that each is measured."""
    num_batches: int = 20
    """Batches that are counted."""
    only: bool = False
    """Measure the loader of DST in this process; prints milliseconds of CPU per sample."""


def main() -> None:
    """Parses the command line and prints one JSON object."""
    with user_errors_exit():
        args = tyro.cli(Args, prog="python -m benchmarks.lerobot_loader")
        measuring.print_figures(_ours(args) if args.only else _compared(args))


def _compared(args: Args) -> dict[str, float]:
    if not args.python:
        raise UserError(
            where="--python",
            expected="the Python of an environment with lerobot",
            found="none",
            remedy="See the head of this file for how to make one.",
        )
    theirs, ours = [], []
    for _ in range(args.rounds):
        count = str(args.num_batches)
        theirs.append(_run([args.python, "-c", _LEROBOT, args.src, count]))
        own = ("benchmarks.lerobot_loader", args.src, args.dst, "--only", "--num_batches", count)
        ours.append(_run(measuring.module(*own)))
    return {
        "lerobot_cpu_ms_per_sample": round(statistics.median(theirs), 2),
        "octograin_cpu_ms_per_sample": round(statistics.median(ours), 2),
        **measuring.ratios(theirs, ours),
    }


def _run(command: list[str]) -> float:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    return measuring.in_a_process(command, environment)


def _ours(args: Args) -> float:
    with open_loader(args.dst, _BATCH_SIZE, window_size=2, action_horizon=4) as loader:
        batches = iter(loader)
        for _ in itertools.islice(batches, _WARM_UP):
            pass
        timed = itertools.islice(batches, args.num_batches)
        _, cpu_s, _ = measuring.timed(lambda: [None for _ in timed])
    return cpu_s / (args.num_batches * _BATCH_SIZE) * 1e3


if __name__ == "__main__":
    main()
