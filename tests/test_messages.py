"""Commands, flags and settings that messages name exist."""

import ast
import dataclasses
import functools
import importlib.util
import pathlib
import re
from collections.abc import Iterator

import pytest

from octograin.cli import VERBS
from pipeline.loading.data_config import DataConfig
from train.train_config import (
    AugmentConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
    WandbConfig,
)

ROOT = pathlib.Path(__file__).parents[1]
FOREIGN = {
    "--help",
    "--untracked-files",
    "--repo-type",
    "--local-dir",
    "--revision",
    "--default_sdk_harness_log_level",
    "--kill",
}
"""Flags of other programs' commands, and of every one."""
SETTINGS = {
    "config": TrainConfig,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "augment": AugmentConfig,
    "validation": ValidationConfig,
    "wandb": WandbConfig,
}


@functools.cache
def sources() -> list[tuple[pathlib.Path, ast.Module]]:
    """The packages' files, but for one whose custom properties of CSS look like flags."""
    folders = [ROOT / package for package in ("pipeline", "train", "converters")]
    paths = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    return [(path, ast.parse(path.read_text())) for path in paths if path.name != "styles.py"]


def texts() -> Iterator[tuple[str, str]]:
    """(place, text) of every string of the code that is no docstring."""
    for path, tree in sources():
        bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            value = node.value if isinstance(node, ast.Constant) and id(node) not in bare else None
            if isinstance(value, str):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", value


def flags() -> set[str]:
    """Fields of the classes that the command lines are made of."""
    fields = {"config"}
    for _, tree in sources():
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if "tyro" in names:
            classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
            assigned = (line for one in classes for line in one.body)
            fields |= {line.target.id for line in assigned if isinstance(line, ast.AnnAssign)}
    return {f"--{field}" for field in fields}


def unknown(text: str, known_flags: set[str]) -> list[str]:
    """What a text names that does not exist."""
    found = [
        name
        for name in re.findall(r"python -m ([\w.]+\w)", text)
        if name.split(".")[0] in ("pipeline", "train", "converters")
        and importlib.util.find_spec(name) is None
    ]
    found += [
        f"octograin {verb}"
        for verb in re.findall(r"`octograin ([a-z]+)", text)
        if verb not in VERBS
    ]
    found += [
        flag
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]+", text)
        if flag not in known_flags | FOREIGN
    ]
    for part, field in re.findall(
        r"(?<![\w./])(?:--config\.)?(\w+)\.(?!json|yaml|pkl)([a-z]\w+)", text
    ):
        if part in SETTINGS and field not in {f.name for f in dataclasses.fields(SETTINGS[part])}:
            found.append(f"{part}.{field}")
    return found


def test_what_messages_name_exists() -> None:
    known = flags()
    assert {"--resume", "--mapping", "--num_batches"} <= known
    named = {place: unknown(text, known) for place, text in texts()}
    assert {place: found for place, found in named.items() if found} == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("run `python -m converters.resize DST`.", ["converters.resize"]),
        ("run `octograin resize DST` or `octograin tokens DST`", ["octograin resize"]),
        ("add --resize to it", ["--resize"]),
        ("set data.image_size", ["data.image_size"]),
        ("add --config.data.sizes 3", ["data.sizes"]),
        ("octograin tokens DST --config.data.seed=3 --resume; data.datasets", []),
    ],
)
def test_what_does_not_exist_is_seen(text: str, found: list[str]) -> None:
    assert unknown(text, {"--resume", "--config"}) == found
