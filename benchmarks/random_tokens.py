"""Adds a column of random tokens to a copy of a dataset: what a full token column costs to read.

    python -m benchmarks.random_tokens data/libero_sim data/libero_sim_tokens

makes `vggt_tokens`, float16 261x2048 a step: 1.07 MB, as large as one layer of VGGT.
"""

import dataclasses
import shutil

import numpy as np
import tyro
from etils import epath

from pipeline.data.dataset import Dataset, open_dataset
from pipeline.data.dataset_writer import ShardWriter, write_manifest
from pipeline.data.manifest import Shard
from pipeline.data.record import RecordLayout
from pipeline.data.schema import EPISODES, Column, Feature, Schema
from pipeline.errors import user_errors_exit

_COLUMN = "vggt_tokens"


@dataclasses.dataclass(frozen=True)
class Args:
    """Adds a column of random tokens to a copy of a dataset."""

    src: tyro.conf.Positional[str]
    """Dataset directory."""
    dst: tyro.conf.Positional[str]
    """Directory to make."""
    num_tokens: int = 261
    """Tokens a step."""
    token_dim: int = 2048
    """Numbers a token."""


def main() -> None:
    """Parses the command line and writes."""
    with user_errors_exit():
        add_tokens(tyro.cli(Args, prog="python -m benchmarks.random_tokens", use_underscores=True))


def add_tokens(args: Args) -> None:
    """Copies the dataset, and writes the column."""
    dataset = open_dataset(args.src)
    shutil.copytree(args.src, args.dst, ignore=shutil.ignore_patterns("dataset.json"))
    _add(dataset, args)


def _add(dataset: Dataset, args: Args) -> None:
    shape = (args.num_tokens, args.token_dim)
    feature = Feature(f"observation/{_COLUMN}", "tensor", shape, "float16", "float16", "random")
    column = Column(_COLUMN, "step", (feature,))
    manifest = dataset.manifest
    columns = (*(c for c in manifest.schema.columns if c.name != _COLUMN), column)
    schema = Schema(columns)
    shards = dict(manifest.shards) | {_COLUMN: _write(dataset, column, args)}
    added = dataclasses.replace(
        manifest,
        schema=schema,
        schema_hash=schema.hash(),
        shards=shards,
        licences=dict(manifest.licences) | {_COLUMN: "none: random numbers"},
    )
    write_manifest(epath.Path(args.dst), added, dataset.statistics)


def _write(dataset: Dataset, column: Column, args: Args) -> tuple[Shard, ...]:
    layout = RecordLayout(column)
    (feature,) = column.features
    rng = np.random.default_rng(0)
    episodes = dataset.manifest.shards[EPISODES]
    written = []
    first = 0
    for number, shard in enumerate(episodes):
        steps = dataset.episode_starts[first + shard.records] - dataset.episode_starts[first]
        first += shard.records
        file = f"{_COLUMN}/{number:05}-of-{len(episodes):05}.arrayrecord"
        with ShardWriter(epath.Path(args.dst), file) as writer:
            for place in range(int(steps)):
                tokens = rng.standard_normal(feature.shape, np.float32).astype(np.float16)
                writer.write(layout.encode((number, place), 1, {feature.key: tokens}))
        written.append(writer.finished())
    return tuple(written)


if __name__ == "__main__":
    main()
