"""Measures one call on a dataset of very many episodes, in this process; prints seconds and MB.

    python -m benchmarks.episode_costs "first batch" DST

Imports, and what comes before the call, are not counted; `benchmarks.million_episodes` runs all.
"""

import dataclasses
import itertools
import resource
from collections.abc import Callable
from typing import Any

import tyro

from benchmarks import measuring
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.errors import user_errors_exit
from pipeline.hub.hub_address import parse_repository
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.loader import Loader
from pipeline.loading.loader_opening import open_loader
from pipeline.loading.samples.splits import select
from pipeline.sharing.dataset_card import write_card

Work = Callable[[], object]
_BATCH_SIZE = 64
_NUM_BATCHES = 100
_SPLIT = {"split": "train", "validation_fraction": 0.02}
_CHOICES = {
    "all": {},
    "instructions": {"tasks": ("*soup*",)},
    "weights": {"task_weights": (("*soup*", 2.0), ("*milk*", 0.5))},
    "trim": {"trim": (1, 0)},
    "list of episodes": {"episode_list": tuple(range(0, 1000, 2))},
}
"""Settings of a dataset by which steps are chosen."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Measures one call."""

    call: tyro.conf.Positional[str]
    """One of the calls that `benchmarks.million_episodes` lists."""
    dst: tyro.conf.Positional[str]
    """Dataset directory."""


def main() -> None:
    """Parses the command line and prints one JSON object."""
    with user_errors_exit():
        args = tyro.cli(Args, prog="python -m benchmarks.episode_costs", use_underscores=True)
        work = CALLS[args.call](args.dst)
        _, cpu_s, _ = measuring.timed(work)
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        measuring.print_figures({"cpu_s": cpu_s, "peak_mb": peak_kb / 1e3})


def _config(dst: str, changes: dict[str, Any], **fields: Any) -> DataConfig:
    part = DatasetConfig(dst, **changes)
    return DataConfig((part,), vocabulary="", observations=("image_primary",), **fields)


def _loader(dst: str, **fields: Any) -> Loader:
    return open_loader(_config(dst, {}, **fields), _BATCH_SIZE)


def _select(dst: str, changes: dict[str, Any], **fields: Any) -> Work:
    config, dataset = _config(dst, changes, **fields), open_dataset(dst)
    return lambda: select(dataset, config.datasets[0], config)


def _order(dst: str) -> Work:
    order = _loader(dst).order()
    return lambda: [order[number] for number in range(_NUM_BATCHES)]


def _batches(dst: str, number: int) -> Work:
    def load() -> None:
        with _loader(dst, num_threads=0) as loader:
            for _ in itertools.islice(loader, number):
                pass

    return load


def _state(dst: str) -> Work:
    loader = _loader(dst)
    return lambda: loader.state(0)


def _card(dst: str) -> Work:
    dataset = open_dataset(dst)
    return lambda: write_card(dataset, parse_repository("hf://datasets/owner/name"))


def _read(dst: str) -> Work:
    """Reads and decodes every record, which `octograin verify` does too."""
    dataset = open_dataset(dst)
    return lambda: _read_all(dataset)


def _read_all(dataset: Dataset) -> None:
    for column in dataset.manifest.schema.columns:
        reader = dataset.columns[column.name]
        for index in range(sum(shard.records for shard in dataset.manifest.shards[column.name])):
            reader.read(index)


CALLS: dict[str, Callable[[str], Work]] = {
    "open_dataset": lambda dst: lambda: open_dataset(dst),
    "open_loader": lambda dst: lambda: _loader(dst),
    "open_loader with a split": lambda dst: lambda: _loader(dst, **_SPLIT),
    **{
        f"select: {name}": lambda dst, changes=changes: _select(dst, changes)
        for name, changes in _CHOICES.items()
    },
    "select: split": lambda dst: _select(dst, {}, **_SPLIT),
    "opening and one batch": lambda dst: _batches(dst, 1),
    f"order of {_NUM_BATCHES} batches": _order,
    "state of a loader": _state,
    "card of the dataset": _card,
    "reading every record": _read,
}
"""What is measured by name: each prepares the call that is timed."""


if __name__ == "__main__":
    main()
