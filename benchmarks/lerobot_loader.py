"""What a sample costs by our loader, and by LeRobot's own DataLoader of the same steps exported.

    python3.12 -m venv lerobot_env && lerobot_env/bin/pip install 'lerobot[dataset]==0.6.1'
    python -m benchmarks.lerobot_loader DST --python lerobot_env/bin/python

DST is exported with images and with videos, which is measured too. Both loaders yield the same
batches of 16: two steps of every camera and of the state, four actions. They take turns, each in a
process of its own without worker processes. CPU time of all threads is counted, after 5 batches
that are not; torch has one thread, as in a worker of its DataLoader, since several would wait for
each other on a busy machine. LeRobot's images are float32 in [0, 1], ours uint8. Neither resizes or
augments: both leave that to the training step.

The arrays of the first batch are compared: actions and states as they are stored, images in grey
levels. Ours decodes JPEG by the fast transform, LeRobot by the accurate one.
"""

import dataclasses
import itertools
import json
import os
import pathlib
import statistics
import tempfile
from typing import Any

import numpy as np
import tyro

from benchmarks import measuring
from converters.export.lerobot.lerobot_columns import ExportedFeature, Storage, exported_schema
from converters.export.lerobot.lerobot_writer import export_lerobot
from octograin import Loader, open_dataset, open_loader
from pipeline.data.schema import ACTION
from pipeline.errors import UserError, user_errors_exit

_BATCH_SIZE = 16
_WARM_UP = 5
_STORAGES: tuple[Storage, ...] = ("image", "video")
_LEROBOT = """
import json, sys, time
import numpy as np, torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
root, steps, first, backend = sys.argv[1:]
torch.set_num_threads(1)
frame = 1 / LeRobotDataset("local/set", root=root).meta.fps
features = LeRobotDataset("local/set", root=root).meta.features
observed = [key for key in features if key.startswith("observation.")]
times = {key: [-frame, 0.0] for key in observed} | {"action": [i * frame for i in range(4)]}
dataset = LeRobotDataset(
    "local/set", root=root, delta_timestamps=times, video_backend=backend or None
)
batches = json.loads(open(steps).read())
loader = iter(torch.utils.data.DataLoader(dataset, batch_sampler=batches))
batch = next(loader)
np.savez(first, **{key: batch[key].numpy() for key in [*observed, "action"]})
for _ in range(4):
    next(loader)
started = time.process_time()
count = sum(len(batch["index"]) for batch in loader)
print(json.dumps((time.process_time() - started) / count * 1e3))
"""


@dataclasses.dataclass(frozen=True)
class Args:
    """Compares our loader with LeRobot's DataLoader of the same steps, exported."""

    dst: tyro.conf.Positional[str]
    """Dataset directory."""
    python: str = ""
    """Python of an environment with lerobot."""
    backend: str = ""
    """Decoder of LeRobot's videos, such as pyav; the one that it chooses by default."""
    rounds: int = 3
    """Times that each is measured."""
    num_batches: int = 20
    """Batches that are counted."""
    only: bool = False
    """Measure our loader in this process; prints milliseconds of CPU per sample."""


def main() -> None:
    """Parses the command line and prints one JSON object."""
    with user_errors_exit():
        args = tyro.cli(Args, prog="python -m benchmarks.lerobot_loader", use_underscores=True)
        measuring.print_figures(_ours(args) if args.only else _compared(args))


def _compared(args: Args) -> dict[str, Any]:
    if not args.python:
        raise UserError(
            where="--python",
            expected="the Python of an environment with lerobot",
            found="none",
            remedy="See the head of this file for how to make one.",
        )
    with tempfile.TemporaryDirectory() as folder:
        return {storage: _of(args, storage, pathlib.Path(folder)) for storage in _STORAGES}


def _of(args: Args, storage: Storage, folder: pathlib.Path) -> dict[str, float]:
    dataset = open_dataset(args.dst)
    root = folder / storage
    _, export_s, _ = measuring.timed(lambda: export_lerobot(dataset, str(root), storage=storage))
    num_bytes = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    files = [folder / f"{storage}_{name}" for name in ("steps.json", "first.npz")]
    with _loader(args) as loader:
        order = [loader.order()[n].step.tolist() for n in range(_WARM_UP + args.num_batches)]
        files[0].write_text(json.dumps(order))
    theirs, ours = [], []
    for _ in range(args.rounds):
        theirs.append(
            _run([args.python, "-c", _LEROBOT, str(root), *map(str, files), args.backend])
        )
        count = str(args.num_batches)
        own = ("benchmarks.lerobot_loader", args.dst, "--only", "--num_batches", count)
        ours.append(_run(measuring.module(*own)))
    return {
        "export_cpu_s_per_1000_steps": round(export_s / dataset.num_kept_steps * 1e3, 2),
        "export_mb": round(num_bytes / 1e6, 1),
        "lerobot_cpu_ms_per_sample": round(statistics.median(theirs), 2),
        "octograin_cpu_ms_per_sample": round(statistics.median(ours), 2),
        **measuring.ratios(theirs, ours),
        **_differences(args, storage, files[1]),
    }


def _run(command: list[str]) -> float:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    return measuring.in_a_process(command, environment)


def _features(args: Args, storage: Storage) -> list[ExportedFeature]:
    """The observations that both read."""
    schema = exported_schema(open_dataset(args.dst, keys=()).manifest, storage)
    return [one for one in schema.features if one.feature.key.startswith("observation/")]


def _loader(args: Args) -> Loader:
    observed = [one.feature.key.removeprefix("observation/") for one in _features(args, "image")]
    return open_loader(
        args.dst, _BATCH_SIZE, observations=observed, window_size=2, action_horizon=4
    )


def _differences(args: Args, storage: Storage, file: pathlib.Path) -> dict[str, float]:
    """How far the arrays of the first batch are apart."""
    with _loader(args) as loader:
        batch = next(iter(loader))
        state = {
            one: loader.unnormalize(one.feature.key, _value(batch, one.feature.key))
            for one in _features(args, storage)
            if one.storage == "values"
        }
        action = loader.unnormalize(ACTION, batch["action"][:, -1])
        grippers = [g.dim for g in loader.datasets[0].manifest.conventions.all_grippers]
    with np.load(file) as recorded:
        theirs = {name: recorded[name] for name in recorded.files}
    # Grippers of a batch are in [0, 1], by their conventions.
    arm = np.delete(np.arange(action.shape[-1]), grippers)
    numbers = [np.abs(theirs["action"] - action)[..., arm].max()]
    numbers += [np.abs(theirs[one.name] - value).max() for one, value in state.items()]
    images = [
        np.abs(np.moveaxis(theirs[one.name], 2, -1) * 255 - _value(batch, one.feature.key)).mean()
        for one in _features(args, storage)
        if one.is_camera
    ]
    return {
        "numbers_apart": float(f"{max(numbers):.1e}"),
        "grey_levels_apart": round(float(np.mean(images)), 2),
    }


def _value(batch: dict[str, Any], key: str) -> Any:
    for part in key.split("/"):
        batch = batch[part]
    return batch


def _ours(args: Args) -> float:
    with _loader(args) as loader:
        batches = iter(loader)
        for _ in itertools.islice(batches, _WARM_UP):
            pass
        timed = itertools.islice(batches, args.num_batches)
        _, cpu_s, _ = measuring.timed(lambda: [None for _ in timed])
    return cpu_s / (args.num_batches * _BATCH_SIZE) * 1e3


if __name__ == "__main__":
    main()
