"""Describes a run in lines for a person: short when it starts and ends, full in its directory."""

import pathlib
from collections.abc import Iterator

from pipeline.loading.batch import table
from train.flags import Flags
from train.octo.released.weights_report import LoadReport
from train.octo.token_layout import draw_parameters, draw_tokens
from train.report.report_inputs import read_run
from train.report.run_summary import NUM_LAST_STEPS, summarize
from train.run_directory.run_description import changed_settings, describe_config, describe_devices
from train.run_plan import Setup
from train.train_config import TrainConfig
from train.update.optimizer import split_frozen
from train.update.step_memory import estimate_memory
from train.update.train_state import count_parameters

DESCRIPTION_NAME = "description.txt"
_MOST_LISTED = 4
"""Datasets, changed settings and truncated instructions that the start of a run lists; the
description has all of them."""


def describe_start(
    flags: Flags, setup: Setup, report: LoadReport | None, position: int | None
) -> str:
    """Returns at most 20 lines, printed before the training step is compiled.

    Args:
      flags: The flags of the command line.
      setup: The set-up run.
      report: The account of the pretrained weights; None: the run starts from random ones.
      position: Training steps of the last checkpoint of a resumed run; None: the run is new.
    """
    config = setup.config
    lines = [
        ("run", _goal(config, position)),
        *(("set by flags", text) for text in _listed(changed_settings(config, flags.unchanged))),
        *(("data", text) for text in _listed(list(_datasets(setup)))),
        *(("truncated", text) for text in _truncated(setup)),
        ("model", _model(setup)),
        ("weights", "random" if report is None else f"{report.summary()} ({_source(config)})"),
        ("devices", describe_devices(setup.mesh)),
        ("memory", f"device {estimate_memory(setup)}; loader {setup.loader.memory}"),
        ("details", f"{pathlib.Path(config.save_dir, DESCRIPTION_NAME)}, or --verbose"),
        ("stop", "Ctrl-C saves a checkpoint; the same command with --resume continues from it"),
    ]
    return _table(lines)


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


def describe_end(directory: pathlib.Path) -> str:
    """Returns what a complete run reached, and what to do with it.

    Args:
      directory: The run directory.

    Raises:
      DataError: One of its files is corrupt.
    """
    summary = summarize(read_run(directory))
    reached = [f"{summary.steps} training steps"]
    if summary.loss is not None:
        last = min(NUM_LAST_STEPS, summary.steps or 0)
        reached.append(f"mean loss of the last {last}: {summary.loss:.3f}")
    if summary.action_error is not None:
        constant = summary.constant_error
        beside = "" if constant is None else f" (a constant action: {constant:.3f})"
        reached.append(f"action error on held-out episodes: {summary.action_error:.3f}{beside}")
    return _table(
        [
            ("reached", "; ".join(reached)),
            ("report", str(directory / "report.html")),
            ("next", f"octograin parity {directory}   compares its inputs with those of training"),
            ("", f"octograin serve {directory}   answers a robot over the network"),
            ("", f"octograin evaluate {directory}   rolls it out in the LIBERO simulator"),
        ]
    )


def _goal(config: TrainConfig, position: int | None) -> str:
    begin = "" if position is None else f", resumed at {position}"
    return (
        f"{config.save_dir}: {config.num_steps} training steps{begin}; batch {config.batch_size}; "
        f"a checkpoint every {config.save_interval}"
    )


def _datasets(setup: Setup) -> Iterator[str]:
    mixture = setup.loader.state(0).mixture
    for dataset, part in zip(setup.loader.datasets, mixture, strict=True):
        yield (
            f"{dataset.path}: {dataset.num_episodes} episodes, {dataset.num_steps} steps, "
            f"{len(dataset.manifest.tasks)} tasks, checksum {dataset.manifest.digest()}; "
            f"{part.steps} steps sampled ({100 * part.share:.1f}%)"
        )


def _truncated(setup: Setup) -> list[str]:
    texts = setup.loader.tasks.truncated
    length = setup.config.data.max_text_length
    return [f"to {length} tokens: {texts[0]}{_more(len(texts) - 1)}"] if texts else []


def _model(setup: Setup) -> str:
    _, held = split_frozen(setup.state.params, setup.config.frozen)
    layout = draw_tokens(setup.config.model, setup.config.data.window_size).splitlines()[0]
    return (
        f"{count_parameters(setup.state.params):,} parameters, {count_parameters(held):,} of them "
        f"frozen; {layout}"
    )


def _source(config: TrainConfig) -> str:
    step = "" if config.pretrained_step is None else f", step {config.pretrained_step}"
    return f"{config.pretrained_path}{step}"


def _listed(texts: list[str]) -> list[str]:
    if len(texts) <= _MOST_LISTED:
        return texts
    return [*texts[: _MOST_LISTED - 1], f"{len(texts) - _MOST_LISTED + 1} more"]


def _more(count: int) -> str:
    return f", and {count} more" if count > 0 else ""


def _table(lines: list[tuple[str, str]]) -> str:
    width = max(len(label) for label, _ in lines)
    shown = []
    before = None
    for label, text in lines:
        # A label is written once for the lines that share it.
        shown.append(f"{'' if label == before else label:{width}}  {text}")
        before = label
    return "\n".join(shown)
