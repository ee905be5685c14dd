"""Describes a run: to a person when it starts, and to whoever reads its directory later."""

import importlib.metadata
import logging
import pathlib
import platform
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from pipeline.bundled import VERSION
from pipeline.checksums import write_json
from pipeline.data.dataset import excluded_note
from pipeline.files import to_json_values, write_text_atomically, writing
from pipeline.loading.batch import table
from pipeline.loading.device import DATA_AXIS, FSDP_AXIS
from pipeline.parts.part import fields_of_parts
from pipeline.parts.part_copies import write_copies
from pipeline.terminal import shortened
from train.checkpoints.run_directory import ENVIRONMENT_NAME
from train.flags import Flags
from train.octo.token_groups import draw_parameters, draw_tokens
from train.run_setup import Setup
from train.train_config import TrainConfig
from train.update.optimizer import learning_rate, split_frozen
from train.update.train_state import count_parameters

DESCRIPTION_NAME = "description.txt"
_MOST_LISTED = 4
"""Datasets, changed settings and truncated instructions that the start of a run lists; the
description has all of them."""
_MAX_VALUE = 400
"""Maximum number of characters of a setting."""
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_TIMEOUT_S = 5.0
_log = logging.getLogger("train.run")


def write_description(directory: pathlib.Path, flags: Flags, setup: Setup) -> None:
    """Writes what explains a run into its directory: settings, data, weights and environment."""
    report = setup.account()
    if report is not None:
        _write_json(directory / "load_report.json", to_json_values(report))
    _write_json(directory / "datasets.json", setup.loader.describe_datasets())
    _write_json(directory / ENVIRONMENT_NAME, describe_environment(setup.mesh))
    write_copies(setup.config, directory)
    # Atomically, since another command may read the directory while the run starts.
    with writing(directory / DESCRIPTION_NAME):
        write_text_atomically(directory / DESCRIPTION_NAME, describe_fully(flags, setup))


def log_start(flags: Flags, setup: Setup, position: int | None) -> None:
    """Logs what a run is about to do, and warns of a learning rate that only rises."""
    if flags.verbose:
        _log.info("%s", describe_fully(flags, setup))
    _log.info("%s", describe_start(flags, setup, position))
    short_warmup = describe_short_warmup(setup.config)
    if short_warmup is not None:
        _log.warning("%s", short_warmup)


def describe_start(flags: Flags, setup: Setup, position: int | None) -> str:
    """Returns at most 20 lines, printed before the training step is compiled.

    Args:
      flags: The flags of the command line.
      setup: The set-up run.
      position: Training steps of the last checkpoint of a resumed run; None: the run is new.
    """
    config = setup.config
    resumed = "" if position is None else f", resumed at {position}"
    report = setup.account()
    step = "" if config.pretrained_step is None else f", step {config.pretrained_step}"
    source = f"{config.weights_source}{step}"
    lines = [
        (
            "run",
            f"{config.save_dir}: {config.num_steps} training steps{resumed}; batch "
            f"{config.batch_size}; a checkpoint every {config.save_interval}",
        ),
        *(("set by flags", text) for text in _listed(changed_settings(config, flags.unchanged))),
        *(("data", text) for text in _listed(list(_datasets(setup)))),
        *(("truncated", text) for text in _truncated(setup)),
        ("model", describe_model(setup)),
        ("weights", "random" if report is None else f"{report.summary()} ({source})"),
        ("devices", describe_devices(setup.mesh)),
        ("memory", f"device {setup.estimate_memory()}; loader {setup.loader.memory}"),
        ("details", f"{pathlib.Path(config.save_dir, DESCRIPTION_NAME)}, or --verbose"),
        ("stop", "Ctrl-C saves a checkpoint; the same command with --resume continues from it"),
    ]
    return labelled(lines)


def describe_fully(flags: Flags, setup: Setup) -> str:
    """Returns every setting, batch leaf, dataset, token group and parameter group of a run."""
    parts = {
        "config (* set by a flag)": describe_config(setup.config, flags.unchanged),
        "datasets": "\n".join(_datasets(setup)),
        "truncated instructions": "\n".join(setup.loader.tasks.truncated),
        "excluded": "\n".join(
            f"{dataset.path}: {reason}"
            for dataset in setup.config.data.datasets
            for reason in dataset.excluded
        ),
        "batch": table(setup.loader.spec),
        "tokens": draw_tokens(setup.config.model, setup.config.data.window_size),
        "parameters": draw_parameters(setup.state.params),
    }
    return "\n\n".join(f"{title}:\n{text}" for title, text in parts.items() if text) + "\n"


def describe_config(config: TrainConfig, unchanged: TrainConfig | None) -> str:
    """Returns one line per field; those changed by a flag are marked, with the file's value.

    Args:
      config: The config of the run.
      unchanged: The config in its file; None: nothing is marked.
    """
    changed = changed_settings(config, unchanged)
    return "\n".join(
        f"* {setting}" if setting in changed else f"  {setting}"
        for setting in _settings(config, unchanged)
    )


def changed_settings(config: TrainConfig, unchanged: TrainConfig | None) -> list[str]:
    """Returns the fields that flags changed, such as `num_steps = 20  (file: 200)`."""
    return sorted(set(_settings(config, unchanged)) - set(_settings(config, None)))


def _settings(config: TrainConfig, unchanged: TrainConfig | None) -> list[str]:
    file = config if unchanged is None else unchanged
    now, before = (
        traverse_util.flatten_dict(fields_of_parts(to_json_values(each)), sep=".")
        for each in (config, file)
    )
    text = {key: f"{key} = {_value(now.get(key))}" for key in sorted(now.keys() | before.keys())}
    return [
        line if now.get(key) == before.get(key) else f"{line}  (file: {_value(before.get(key))})"
        for key, line in text.items()
    ]


def _value(value: object) -> str:
    # A list of episodes may have a million numbers; config.json has all of them.
    return "none" if value is None else shortened(str(value), _MAX_VALUE)


def describe_model(setup: Setup) -> str:
    """Returns the number of parameters and of tokens of a run's model."""
    _, held = split_frozen(setup.state.params, setup.config.frozen)
    layout = draw_tokens(setup.config.model, setup.config.data.window_size).splitlines()[0]
    return (
        f"{count_parameters(setup.state.params):,} parameters, {count_parameters(held):,} of them "
        f"frozen; {layout}"
    )


def describe_devices(mesh: jax.sharding.Mesh) -> str:
    """Returns a text such as `8 x NVIDIA H100 in 2 processes, mesh data 4 x fsdp 2`."""
    kind = jax.devices()[0].device_kind
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    shape = f"mesh data {mesh.shape[DATA_AXIS]} x fsdp {mesh.shape[FSDP_AXIS]}"
    return f"{jax.device_count()} x {kind}{processes}, {shape}"


def describe_short_warmup(config: TrainConfig) -> str | None:
    """Returns a warning if the run ends before its learning rate has risen; None if it does not."""
    warmup, num_steps = config.optimizer.warmup_steps, config.num_steps
    if warmup < num_steps:
        return None
    # NumPy's scalar as a Python float, for the format.
    last = np.asarray(learning_rate(config.optimizer, num_steps)(num_steps - 1)).item()
    return (
        f"optimizer.warmup_steps {warmup} is not below num_steps {num_steps}: the rate only "
        f"rises, to {last:.2g} of {config.optimizer.learning_rate:.2g} at the last step. That "
        "is enough to see a run work; to train, lower warmup_steps"
    )


def describe_environment(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Returns the JSON values of a run's `environment.json`."""
    return {
        "devices": describe_devices(mesh),
        "commit": find_commit(pathlib.Path(__file__).parents[1]),
        "python": platform.python_version(),
        # Of a checkout, which may be newer than its installation.
        "packages": {"octograin": VERSION} | {name: _version(name) for name in _PACKAGES},
    }


def find_commit(checkout: pathlib.Path) -> str | None:
    """Returns the commit of a checkout, with `+changes` if files differ; None without git."""
    # Not every checkout is one of git; a wheel has no commit.
    if not (checkout / ".git").exists():
        return None
    commit = _git(checkout, "rev-parse", "HEAD")
    # Untracked files are left out: they do not change what runs.
    status = ("status", "--porcelain", "--untracked-files=no")
    return (commit + ("+changes" if _git(checkout, *status) else "")) if commit else None


def labelled(lines: list[tuple[str, str]]) -> str:
    """Returns (label, text) pairs as lines; a label is written once for the lines that share it."""
    width = max(len(label) for label, _ in lines)
    before = [None, *(label for label, _ in lines)]
    return "\n".join(
        f"{'' if label == last else label:{width}}  {text}"
        for (label, text), last in zip(lines, before, strict=False)
    )


def _datasets(setup: Setup) -> Iterator[str]:
    mixture = setup.loader.state(0).mixture
    configs = setup.config.data.datasets
    for dataset, config, part in zip(setup.loader.datasets, configs, mixture, strict=True):
        choice = config.choice()
        yield (
            f"{dataset.path}: {dataset.num_episodes} episodes, {dataset.num_steps} steps"
            f"{excluded_note(dataset.manifest)}, "
            f"{len(dataset.manifest.tasks)} tasks, checksum {dataset.manifest.digest()}; "
            f"{part.steps} steps sampled ({100 * part.share:.1f}%)"
            f"{': ' if choice else ''}{choice}"
        )


def _truncated(setup: Setup) -> list[str]:
    texts = setup.loader.tasks.truncated
    more = f", and {len(texts) - 1} more" if len(texts) > 1 else ""
    return [f"to {setup.config.data.max_text_length} tokens: {texts[0]}{more}"] if texts else []


def _listed(texts: list[str]) -> list[str]:
    if len(texts) <= _MOST_LISTED:
        return texts
    return [*texts[: _MOST_LISTED - 1], f"{len(texts) - _MOST_LISTED + 1} more"]


def _write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    with writing(path):
        write_json(path, values)


def _git(checkout: pathlib.Path, *words: str) -> str:
    """Returns what git prints; empty if it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), *words],
            capture_output=True,
            text=True,
            # On a slow network disk git may take minutes.
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
