"""What a sample of openpi's batches costs: from LeRobot's dataset, and from the converted set.

    python3.12 -m venv lerobot_env && lerobot_env/bin/pip install 'lerobot[dataset]==0.6.1'
    octograin export DST SRC --to lerobot --video
    python -m benchmarks.openpi_batches SRC DST VOCABULARY --python lerobot_env/bin/python

Both yield batches of 32 for pi0.5: every camera of the current step as uint8 of 224x224, the state
and ten actions, normalised and padded to 32 numbers. LeRobot's samples go through the steps of
openpi's transforms, but their prompts are not tokenized; ours are. They take turns, each in a
process of its own without worker processes. CPU time of all threads is counted, after 5 batches
that are not.
"""

import dataclasses
import itertools
import os
import statistics

import tyro
from sentencepiece import SentencePieceProcessor

from benchmarks import measuring
from examples.openpi_loader.to_openpi import ToOpenpi
from octograin import DataConfig, DatasetConfig, open_loader

_BATCH_SIZE = 32
_HORIZON = 10
_WARM_UP = 5
_LEROBOT = """
import itertools, json, sys, time
import numpy as np, torch
from PIL import Image
from lerobot.datasets.lerobot_dataset import LeRobotDataset
root, num_batches, size, horizon = sys.argv[1], *map(int, sys.argv[2:])
dataset = LeRobotDataset("local/set", root=root)
cameras = [key for key in dataset.meta.features if key.startswith("observation.images.")]
times = {"action": [step / dataset.meta.fps for step in range(horizon)]}
dataset = LeRobotDataset("local/set", root=root, delta_timestamps=times)
stats = {key: dataset.meta.stats[key] for key in ("observation.state", "action")}

def image(value):
    pixels = (255 * value.numpy()).astype(np.uint8).transpose(1, 2, 0)
    scale = 224 / max(pixels.shape[:2])
    height, width = (int(side * scale) for side in pixels.shape[:2])
    out = Image.new("RGB", (224, 224))
    scaled = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    out.paste(scaled, ((224 - width) // 2, (224 - height) // 2))
    return np.asarray(out)

def vector(sample, key):
    low, high = stats[key]["q01"], stats[key]["q99"]
    values = (sample[key].numpy() - low) / (high - low + 1e-6) * 2 - 1
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, 32 - values.shape[-1])])

def collate(samples):
    arrays = {key: np.stack([image(s[key]) for s in samples]) for key in cameras}
    return arrays | {key: np.stack([vector(s, key) for s in samples]) for key in stats}

loader = torch.utils.data.DataLoader(
    dataset, batch_size=size, shuffle=True, drop_last=True, collate_fn=collate
)
batches = itertools.chain.from_iterable(itertools.repeat(loader))
for _ in range(5):
    next(batches)
started = time.process_time()
for _ in range(num_batches):
    next(batches)
print(json.dumps((time.process_time() - started) / (num_batches * size) * 1e3))
"""


@dataclasses.dataclass(frozen=True)
class Args:
    """Compares what a sample of openpi's batches costs from LeRobot and from our dataset."""

    src: tyro.conf.Positional[str]
    """LeRobot directory."""
    dst: tyro.conf.Positional[str]
    """Dataset directory of the same episodes."""
    vocabulary: tyro.conf.Positional[str]
    """PaliGemma's SentencePiece model."""
    python: str
    """Python of an environment with lerobot."""
    cameras: tuple[str, str, str] = ("image_primary", "image_wrist", "")
    """Cameras of DST for those of openpi."""
    rounds: int = 3
    """Times that each is measured."""
    num_batches: int = 20
    """Batches that are counted."""
    only: bool = False
    """Measure the loader of DST in this process; prints milliseconds of CPU per sample."""


def main() -> None:
    """Parses the command line and prints one JSON object."""
    args = tyro.cli(Args, prog="python -m benchmarks.openpi_batches", use_underscores=True)
    measuring.print_figures(_ours(args) if args.only else _compared(args))


def _compared(args: Args) -> dict[str, float]:
    sizes = [str(number) for number in (args.num_batches, _BATCH_SIZE, _HORIZON)]
    own = [args.src, args.dst, args.vocabulary, "--python", args.python, "--only"]
    own += ["--num_batches", sizes[0], "--cameras", *args.cameras]
    theirs, ours = [], []
    for _ in range(args.rounds):
        theirs.append(_run([args.python, "-c", _LEROBOT, args.src, *sizes]))
        ours.append(_run(measuring.module("benchmarks.openpi_batches", *own)))
    return {
        "lerobot_cpu_ms_per_sample": round(statistics.median(theirs), 2),
        "octograin_cpu_ms_per_sample": round(statistics.median(ours), 2),
        **measuring.ratios(theirs, ours),
    }


def _run(command: list[str]) -> float:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    return measuring.in_a_process(command, environment)


def _ours(args: Args) -> float:
    data = DataConfig(
        (DatasetConfig(args.dst),),
        vocabulary="",
        observations=(*filter(None, args.cameras), "proprio"),
        window_size=1,
        action_horizon=_HORIZON,
        normalization="quantile",
    )
    vocabulary = SentencePieceProcessor(model_file=args.vocabulary)
    with open_loader(data, _BATCH_SIZE) as loader:
        batches = iter(loader.map(ToOpenpi(loader, vocabulary, args.cameras)))
        for _ in itertools.islice(batches, _WARM_UP):
            pass
        timed = itertools.islice(batches, args.num_batches)
        _, cpu_s, _ = measuring.timed(lambda: [None for _ in timed])
    return cpu_s / (args.num_batches * _BATCH_SIZE) * 1e3


if __name__ == "__main__":
    main()
