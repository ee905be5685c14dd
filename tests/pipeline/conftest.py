"""Builders over the bundled dataset: corrupt copies, edited manifests, small loaders."""

import functools
import json
import math
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import sentencepiece

from pipeline.data.dataset import open_dataset
from pipeline.data.schema import Schema
from pipeline.files import from_json_text
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.loader import Loader
from pipeline.loading.samples.sampling import WHOLE_BATCH, HostShard
from pipeline.loading.text import Encode, load_vocabulary

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def copied(mini_dataset: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the bundled dataset, to be corrupted."""
    return pathlib.Path(shutil.copytree(mini_dataset, tmp_path / "copied"))


@pytest.fixture(scope="session")
def edit_json(reseal: Callable) -> Callable[[pathlib.Path, Edit], None]:
    """Changes the content of a JSON file of a dataset in place, as if it had been written so."""

    def edit(path: pathlib.Path, change: Edit) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        reseal(path.parent)

    return edit


@pytest.fixture(scope="session")
def edit_schema(edit_json: Callable) -> Callable[[pathlib.Path, Edit], None]:
    """Changes the manifest of a directory in place, as if it had been written with that schema."""

    def edit(directory: pathlib.Path, change: Edit) -> None:
        def change_and_hash(manifest: dict[str, Any]) -> None:
            change(manifest)
            text = json.dumps(manifest["schema"])
            schema = from_json_text(Schema, text, where="the changed schema", remedy="")
            manifest["schema_hash"] = schema.hash()

        edit_json(directory / "dataset.json", change_and_hash)
        edit_json(directory / "statistics.json", functools.partial(_fit, directory))

    return edit


def _fit(directory: pathlib.Path, statistics: dict[str, Any]) -> None:
    """Makes statistics those of the features that a manifest declares, of any values."""
    manifest = json.loads((directory / "dataset.json").read_text())
    features = manifest["schema"]["columns"][0]["features"]
    floats = {f["key"]: math.prod(f["shape"]) for f in features if f["dtype"] == "float32"}
    for key in statistics.keys() - floats.keys():
        del statistics[key]
    for key, of_feature in statistics.items():
        for name in of_feature.keys() - {"count"}:
            if len(of_feature[name]) != floats[key]:
                of_feature[name] = (of_feature[name] * floats[key])[: floats[key]]


@pytest.fixture(scope="session")
def vocabulary(vocabulary_path: pathlib.Path) -> sentencepiece.SentencePieceProcessor:
    return load_vocabulary(str(vocabulary_path))


@pytest.fixture(scope="session")
def make_loader(
    vocabulary: sentencepiece.SentencePieceProcessor, vocabulary_path: pathlib.Path
) -> Callable[..., Loader]:
    """A loader of directories, with every setting of `DataConfig` by name.

    `parts` has the fields of each `DatasetConfig`.
    """

    def make(
        *paths: pathlib.Path,
        weights: tuple[float, ...] | None = None,
        parts: tuple[dict[str, Any], ...] | None = None,
        kind: type[Loader] = Loader,
        encode: Encode = vocabulary.EncodeAsIds,
        shard: HostShard = WHOLE_BATCH,
        image_sizes: dict[str, int] | None = None,
        **settings: Any,
    ) -> Loader:
        names = map(str, paths)
        shares = weights or (None,) * len(paths)
        others = parts or ({},) * len(paths)
        batch_size = settings.pop("batch_size", 4)
        settings = {"num_threads": 0} | settings
        config = DataConfig(
            datasets=tuple(
                DatasetConfig(name, share, **other)
                for name, share, other in zip(names, shares, others, strict=True)
            ),
            vocabulary=str(vocabulary_path),
            **settings,
        )
        datasets = [open_dataset(d.path) for d in config.datasets]
        return kind(config, batch_size, datasets, encode, shard, image_sizes)

    return make
