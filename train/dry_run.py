"""Checks config, data, weights and machine against each other, for `--dry_run`."""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Literal, TypeVar

import jax
import numpy as np

from pipeline.config_checks import all_problems
from pipeline.data.dataset import excluded_note
from pipeline.data.schema import ACTION
from pipeline.data.token_provenance import check_same_encoders
from pipeline.errors import EXIT_USER_ERROR, UserError, install_extra
from pipeline.hub.hub_address import is_dataset_address
from pipeline.hub.hub_transfer import size
from pipeline.loading import device
from pipeline.loading.reading.store_speed import measure_store
from pipeline.loading.samples.step_choice import choice_problems
from pipeline.loading.text import describe_texts
from pipeline.sharing.pull import check_room
from pipeline.terminal import show
from train.checkpoints import run_directory
from train.checkpoints.checkpoint_store import (
    DIRECTORY as CHECKPOINTS,
    check_arrays,
    checkpoint_bytes,
    last_step,
    read_datasets,
)
from train.checkpoints.initial_weights import RunCheckpoint, find_source
from train.checkpoints.run_directory import resume_position
from train.flags import Flags, check_flags
from train.hub_datasets import pin_datasets, to_fetch
from train.metrics.wandb_log import import_wandb
from train.run_description import (
    changed_settings,
    describe_config,
    describe_devices,
    describe_model,
    describe_short_warmup,
)
from train.run_setup import Inputs, Setup, open_inputs, set_up
from train.train_config import TrainConfig

Level = Literal["ok", "warning", "error"]
_MARKS = {"ok": "  ok     ", "warning": "  WARNING", "error": "  ERROR  "}
_SMALLEST_SCALE = 1e-3
"""Smallest std, or p99 - p01, that a dimension is divided by: below it, noise is amplified."""
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check."""

    level: Level
    """`error`: the run would not start, or would not train what its config asks for."""
    about: str
    """What was checked."""
    text: str
    """What was found and, unless it is `ok`, what to do."""


def examine(flags: Flags) -> int:
    """Prints every finding; returns the exit code: 0, or 2 if there is an error."""
    if flags.verbose:
        show(f"config (* set by a flag):\n{describe_config(flags.config, flags.unchanged)}\n\n")
    else:
        changed = changed_settings(flags.config, flags.unchanged)
        show("".join(f"  set by a flag: {setting}\n" for setting in changed))
    findings = diagnose(flags)
    for finding in findings:
        show(f"{_MARKS[finding.level]} {finding.about}: {finding.text}\n")
    errors = sum(finding.level == "error" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    verdict = "this run cannot start" if errors else "the same command without --dry_run trains"
    show(f"\n{_count(errors, 'error')}, {_count(warnings, 'warning')}: {verdict}\n")
    return EXIT_USER_ERROR if errors else 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def diagnose(flags: Flags) -> list[Finding]:
    """Checks a run without compiling it; returns all findings. It reads a few samples.

    Args:
      flags: The flags of the command line.
    """
    config = flags.config
    found = _Findings()
    # What the config, the flags and this machine say, before anything is opened.
    problems = all_problems(config)
    for problem in problems:
        found.add("error", "config", str(problem))
    found.attempt("flags", lambda: check_flags(flags))
    # The directory is checked, not changed.
    directory = found.attempt("run directory", lambda: check_directory(flags))
    continues = flags.resume and last_step(pathlib.Path(config.save_dir)) is not None
    if not problems:
        found.attempt("devices and batch", lambda: _check_batch(config), _describe_batch(config))
    if config.wandb.project is not None:
        found.attempt("wandb", import_wandb, config.wandb.project)
    _look_at_backend(found)
    fetched = _with_fetched_data(found, flags, has_problems=bool(problems))
    if fetched is None:
        return found.all
    flags, config = fetched, fetched.config
    # Opened as a run would, which lists every missing file.
    inputs = found.attempt(
        "datasets, vocabulary, weights", lambda: open_inputs(config, resume=continues), "found"
    )
    # What follows needs both; the findings so far are printed.
    if inputs is None or problems:
        return found.all
    setup = _set_up(found, config, inputs)
    if setup is None:
        return found.all
    # From here on nothing is missing: the rest looks for what trains badly.
    found.add("ok", "model", f"{describe_model(setup)}; {describe_devices(setup.mesh)}")
    found.attempt("weights", lambda: _account(setup))
    found.add("ok", "loader", f"{setup.loader.num_steps:,} steps; memory {setup.loader.memory}")
    if flags.step_s > 0:  # otherwise an error is listed already
        found.attempt("reads", lambda: _look_at_reads(found, flags.step_s, setup))
    _look_at_choice(found, setup)
    _look_at_schedule(found, config)
    _look_at_chunks(found, setup)
    _look_at_statistics(found, setup)
    _look_at_origin(found, setup)
    _look_at_texts(found, setup)
    _look_at_validation(found, setup)
    # An unusable directory is one finding: what follows from it would be others.
    if directory is not None:
        _look_at_directory(found, flags, setup, continues=continues)
    _look_at_memory(found, setup)
    return found.all


def _set_up(found: "_Findings", config: TrainConfig, inputs: Inputs) -> Setup | None:
    """Sets the run up; None after errors."""
    errors = [
        error
        for pair in zip(inputs.datasets, config.data.datasets, strict=True)
        for error in choice_problems(*pair)
    ]
    # Each is a finding; a run lists all of them in one error.
    for error in errors:
        found.add("error", "choice of steps", str(error))
    if errors:
        return None
    return found.attempt("config, data and model", lambda: set_up(config, inputs), "fit together")


class _Findings:
    """Collects findings; an error in one check does not hide the others."""

    def __init__(self) -> None:
        self.all: list[Finding] = []

    def add(self, level: Level, about: str, text: str) -> None:
        """Adds a finding; an error that two checks run into is added once."""
        # By text alone, because two checks name the same cause differently. Warnings of two
        # datasets may have the same text, and both count.
        if level != "error" or all((level, text) != (one.level, one.text) for one in self.all):
            self.all.append(Finding(level, about, text))

    def attempt(self, about: str, work: Callable[[], T], good: str | None = None) -> T | None:
        """Runs a check; its `UserError`, the text it returns, or `good` becomes a finding."""
        try:
            done = work()
        except UserError as error:
            self.add("error", about, str(error))
            return None
        text = done if isinstance(done, str) else good
        if text is not None:
            self.add("ok", about, text)
        return done


def check_directory(flags: Flags) -> str:
    """Returns the path of the run's directory.

    Raises:
      UserError: The run cannot use it.
    """
    run_directory.check(flags.config, resume=flags.resume, overwrite=flags.overwrite)
    run_directory.check_usable(flags.config)
    return flags.config.save_dir


def _look_at_directory(found: _Findings, flags: Flags, setup: Setup, *, continues: bool) -> None:
    """Checks the checkpoint that the run would resume from, and the room for others."""
    if continues:
        found.attempt("checkpoint", lambda: _check_checkpoint(flags, setup))
    elif flags.resume:
        found.add("warning", "checkpoint", "there is none yet: the run starts from scratch")
    _look_at_disk(found, setup)


def _check_checkpoint(flags: Flags, setup: Setup) -> str:
    """Reads the checkpoint that the run would resume from."""
    position = resume_position(flags.config, setup.loader, new_mixture=flags.new_mixture)
    is_compared = check_arrays(pathlib.Path(flags.config.save_dir))
    arrays = "match their checksums" if is_compared else "can be read; it has no checksums of them"
    return f"resumes after step {position}, whose arrays {arrays}"


def _check_batch(config: TrainConfig) -> None:
    mesh = device.make_mesh(config.fsdp_devices)
    sharding = device.batch_sharding(mesh, config.batch_size, config.optimizer.accumulation_steps)
    device.host_shard(sharding, config.batch_size)


def _describe_batch(config: TrainConfig) -> str:
    parts = config.optimizer.accumulation_steps
    in_parts = f" in {parts} micro-batches" if parts > 1 else ""
    share = config.batch_size // max(jax.device_count() * parts, 1)
    return (
        f"{jax.device_count()} x {jax.devices()[0].device_kind}: batch {config.batch_size}"
        f"{in_parts}, {share} samples per device at a time"
    )


def _look_at_backend(found: _Findings) -> None:
    if jax.default_backend() == "cpu" and shutil.which("nvidia-smi") is not None:
        found.add(
            "warning",
            "devices",
            "this machine has an NVIDIA driver, but jax sees only the CPU: "
            + install_extra("cuda"),
        )


def _account(setup: Setup) -> str:
    report = setup.account()
    if report is None:
        return "none are loaded: all parameters are random, the language encoder's too"
    return f"{setup.config.weights_source}: {report.summary()}"


def _look_at_reads(found: _Findings, step_s: float, setup: Setup) -> None:
    """Measures a few samples, and warns if the loader cannot keep up with a training step."""
    data = setup.config.data
    keeps_up, text = measure_store(setup.loader).advice(
        data.num_threads, data.prefetch_batches, step_s
    )
    found.add("ok" if keeps_up else "warning", "reads", text)


def _look_at_schedule(found: _Findings, config: TrainConfig) -> None:
    text = describe_short_warmup(config)
    if text is not None:
        found.add("warning", "learning rate", text)


def _look_at_chunks(found: _Findings, setup: Setup) -> None:
    """Warns about chunks longer than any episode: their last actions are never trained."""
    horizon = setup.config.data.action_horizon
    for number, dataset in enumerate(setup.loader.datasets):
        longest = setup.loader.longest_episode(number)
        what = "chosen part" if setup.config.data.datasets[number].has_parts else "episode"
        if longest < horizon:
            found.add(
                "warning",
                f"chunks of {dataset.path}",
                f"action_horizon {horizon} is beyond its longest {what}, of {longest} steps: the "
                f"last {horizon - longest} actions of a chunk are never trained on it",
            )


def _look_at_statistics(found: _Findings, setup: Setup) -> None:
    """Warns about dimensions that hardly vary, and lists the steps behind the statistics."""
    is_normal = setup.config.data.normalization == "normal"
    for key, of_each in setup.loader.statistics.items():
        normalizer = setup.loader.normalizers[key]
        for dataset, part, mask in zip(
            setup.loader.datasets, of_each, normalizer.mask, strict=True
        ):
            # What the values are divided by.
            name, scale = ("std", part.std) if is_normal else ("p99 - p01", part.p99 - part.p01)
            flat = np.flatnonzero((scale < _SMALLEST_SCALE) & mask)
            if len(flat):
                where = ", ".join(f"{key}[{dim}] ({name} {scale[dim]:.2g})" for dim in flat)
                found.add(
                    "warning",
                    f"statistics of {dataset.path}",
                    f"{where} hardly varies: normalised, its noise is as large as the others' "
                    "signal. Check that dimension at the source",
                )
    used = ", ".join(
        f"{d.path}: {s.count:,} steps"
        for d, s in zip(setup.loader.datasets, setup.loader.statistics[ACTION], strict=True)
    )
    found.add("ok", "statistics", f"{setup.config.data.normalization}, of {used}")
    transforms = setup.config.data.transforms
    if transforms:
        dims = ", ".join(setup.loader.spec[ACTION].dims)
        names = ", ".join(type(transform).__name__ for transform in transforms)
        found.add("ok", "transforms", f"{names}; the action is then {dims}")
    if setup.loader.raw:
        found.add("ok", "observations", f"not normalised: {', '.join(setup.loader.raw)}")


def _look_at_origin(found: _Findings, setup: Setup) -> None:
    """Warns if the run whose weights are loaded was trained on different data."""
    path = setup.config.pretrained_path
    # A resumed run has weights of its own, and fetches none.
    if path is None or setup.inputs.weights is None:
        return
    source = find_source(path, setup.config.pretrained_step)
    if not isinstance(source, RunCheckpoint):
        return
    kept = read_datasets(source.directory, source.step)
    before, ours = list(kept.values()), setup.loader.describe_datasets()
    try:
        check_same_encoders(kept, ours)
    except UserError as error:
        found.add("warning", "geometry tokens", f"not those of the run {path}: {error}")
    for where, now in ours.items():
        # What the weights learnt depends on these, not only on shapes.
        for field in ("conventions", "normalization"):
            theirs = [one[field] for one in before]
            if now[field] not in theirs:
                found.add(
                    "warning",
                    f"{field} of {where}",
                    f"{now[field]}, but the weights of {path} were trained with {theirs[0]}: what "
                    "they learnt does not apply to these values",
                )
        if now["statistics"] not in [one["statistics"] for one in before]:
            found.add(
                "warning",
                f"statistics of {where}",
                f"they differ from those of the run {path}: its actions mean other movements here. "
                "That is right for other data; for the same data, convert it the same way",
            )


def _look_at_texts(found: _Findings, setup: Setup) -> None:
    tasks = setup.loader.tasks
    for problem in describe_texts(tasks, setup.inputs.vocabulary.unk_id()):
        found.add("warning", "instruction", problem)
    without = int((~tasks.has_text).sum())
    # Goal images may stand in for an instruction.
    if without and not setup.config.data.has_goals:
        found.add(
            "warning",
            "instruction",
            "some steps have no instruction and no goal image: set data.conditioning",
        )


def _look_at_validation(found: _Findings, setup: Setup) -> None:
    fraction = setup.config.data.validation_fraction
    if setup.validator is None:
        found.add(
            "warning",
            "validation",
            "no episode is held out: set data.validation_fraction, such as 0.05",
        )
        return
    chance = f"{100 * fraction:.3g} %"
    found.add("ok", "validation", f"each episode is held out with a probability of {chance}")


def _look_at_choice(found: _Findings, setup: Setup) -> None:
    for dataset, part in zip(setup.loader.datasets, setup.config.data.datasets, strict=True):
        if choice := part.choice() + excluded_note(dataset.manifest):
            found.add("ok", f"choice of {dataset.path}", choice.removeprefix("; "))


def _with_fetched_data(found: _Findings, flags: Flags, *, has_problems: bool) -> Flags | None:
    """Returns the flags with the commits of datasets on the hub, or lists what has to be fetched.

    Returns None if there is anything to fetch, or where that cannot be said.
    """
    if not any(is_dataset_address(part.path) for part in flags.config.data.datasets):
        return flags
    if has_problems:
        return None
    pinned = found.attempt("hub", lambda: pin_datasets(flags))
    plans = pinned and found.attempt("hub", lambda: list(to_fetch(pinned.config)))
    for plan in plans or []:
        try:
            check_room(plan)
        except UserError as error:
            found.add("error", "to fetch", str(error))
            continue
        left = size(plan.num_bytes - plan.num_done)
        columns = dict.fromkeys(file.path.split("/")[0] for file in plan.files)
        text = f"{left} of {plan.dataset.repository}, columns {', '.join(columns)}, to "
        found.add("warning", "to fetch", f"{text}{plan.directory}; without them data is unchecked")
    return pinned if plans == [] else None


def _look_at_disk(found: _Findings, setup: Setup) -> None:
    """Checks that the disk has room for all checkpoints, including one being written."""
    config = setup.config
    one = checkpoint_bytes(setup.state)
    # Checkpoints that `keep_every` keeps forever.
    forever = 0 if config.keep_every is None else config.num_steps // config.keep_every
    # Rounded up: the last step is saved too.
    last = min(config.keep_checkpoints, -(-config.num_steps // config.save_interval))
    # One more, because the new one is written before the oldest is deleted.
    needed = one * (last + forever + 1)
    # The directory may not exist yet; its disk is that of the folder above.
    place = run_directory.existing_part(pathlib.Path(config.save_dir))
    # A run that is resumed or overwritten makes room by its own checkpoints.
    own = (path for path in pathlib.Path(config.save_dir, CHECKPOINTS).rglob("*") if path.is_file())
    free = shutil.disk_usage(place).free + sum(path.stat().st_size for path in own)
    text = (
        f"a checkpoint takes {one / 1e9:.2f} GB, all that are kept {needed / 1e9:.2f}; "
        f"{free / 1e9:.0f} GB are free"
    )
    if free < needed:
        found.add("error", "disk", f"{text}. Free space, or lower keep_checkpoints")
    else:
        found.add("ok", "disk", text)


def _look_at_memory(found: _Findings, setup: Setup) -> None:
    estimate = setup.estimate_memory()
    available = _device_bytes()
    text = f"{estimate} on each device"
    if available is None:
        found.add("ok", "memory", text)
    elif estimate.total > available:
        found.add(
            "warning",
            "memory",
            f"{text}, which has {available / 1e9:.1f} GB. Lower batch_size, raise "
            "optimizer.accumulation_steps, or set model.remat=True, "
            "model.compute_dtype=bfloat16 or fsdp_devices",
        )
    else:
        found.add("ok", "memory", f"{text}, which has {available / 1e9:.1f} GB")


def _device_bytes() -> int | None:
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    if jax.default_backend() != "cpu":
        return None
    # On a CPU all devices share the machine's memory.
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total // jax.local_device_count()
