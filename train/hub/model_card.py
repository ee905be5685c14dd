"""The model card of a policy on the hub: how to use it, how well it does, and its data."""

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.bundled import VERSION
from pipeline.data.schema import ACTION
from pipeline.hub.card_text import code, header, plain, signed, table
from pipeline.hub.hub_address import DATASETS, SCHEME, is_dataset_address, without_revision
from pipeline.inspection.feature_names import split_unit
from pipeline.parts.part import files_of_parts
from pipeline.terminal import count
from train.hub.published_run import PublishedRun
from train.policy.observations import TASKS, describe_one
from train.policy.policy_spec import PolicySpec, datasets_to_choose
from train.report.html_page import percent, three_digits
from train.report.report_inputs import NUM_LAST_STEPS, UNTRAINED
from train.report.report_page import UNITS, dataset_row, describe_origin
from train.update.train_state import count_parameters


def model_card(run: PublishedRun, *, figure: str | None, report: str | None) -> str:
    """Returns the README.md of a policy on the hub.

    Args:
      run: What is published.
      figure: Name of the figure beside it; None: there is none.
      report: Name of the report beside it; None: there is none.
    """
    sections = [
        _header(run),
        f"# {plain(run.address.rpartition('/')[2])}",
        _summary(run),
        "## Use it",
        *_usage(run),
        "## How well it does",
        *(_figure(run, figure) if figure else []),
        *_quality(run),
        "## Data",
        *_data(run),
        "## Versions",
        _versions(run, report),
    ]
    return signed("\n\n".join(sections) + "\n")


def _figure(run: PublishedRun, name: str) -> Iterator[str]:
    yield f"![Loss and action error over the training]({name})"
    episode = run.files.episode
    if episode is not None:
        held_out = "held out from training" if episode.is_held_out else "which was trained on"
        yield (
            f"Below loss and error: the actions of episode {episode.episode}, {held_out}, and the "
            "chunks that the policy predicts along it, in the dataset's units."
        )


def _header(run: PublishedRun) -> str:
    sources = [_source(*pair) for pair in run.files.datasets.items()]
    base = run.checkpoint.config.pretrained_path or ""
    return header(
        {
            "license": run.licence,
            "library_name": "octograin",
            "pipeline_tag": "robotics",
            "tags": ["robotics", "octo", "jax"],
            "datasets": [_repository(s, DATASETS) for s in sources if s.startswith(DATASETS)],
            "base_model": _repository(base, SCHEME) if base.startswith(SCHEME) else None,
        }
    )


def _repository(address: str, scheme: str) -> str:
    """Returns owner/name of an address on the hub."""
    return "/".join(without_revision(address).removeprefix(scheme).split("/")[:2])


def _source(path: str, dataset: Mapping[str, Any]) -> str:
    """Returns where a dataset is on the hub, or else the address or name of its source."""
    if is_dataset_address(path):
        return path
    provenance = dataset.get("provenance", {})
    return str(provenance.get("address") or provenance.get("source") or "")


def _summary(run: PublishedRun) -> str:
    checkpoint = run.checkpoint
    return (
        f"{plain(describe_origin(run.files))} This is the policy at training step "
        f"{checkpoint.step:,} of {checkpoint.config.num_steps:,}: "
        f"{count_parameters(checkpoint.params):,} parameters."
    )


def _usage(run: PublishedRun) -> Iterator[str]:
    choices = datasets_to_choose(run.checkpoint)
    dataset = choices[0] if choices else None
    spec = PolicySpec.of(run.checkpoint, dataset)
    parts = sorted(set(files_of_parts(run.config)))
    yield f"With octograin {VERSION} or later and its extra `hub`:"
    yield "\n".join(["```python", *_example(run, spec, parts, dataset), "```"])
    yield "Or as a server of openpi's websocket protocol, with the extra `serve`:"
    flags = [*(f"--parts {shlex.quote(part)}" for part in parts)]
    flags += [f"--dataset {shlex.quote(dataset)}"] if dataset else []
    yield " ".join([f"    octograin serve {run.address} --port 8000", *flags])
    if parts:
        yield (
            f"The run uses classes of its author, which you need as files: "
            f"{', '.join(map(code, parts))}. The folder `parts` has copies to read; nothing from a "
            "hub is ever executed."
        )
    if choices:
        yield (
            "Its datasets differ in statistics or conventions. Choose the one that is like your "
            f"robot's: {', '.join(map(code, choices))}."
        )
    yield from _encoders(run)
    yield table(["it reads", "type of one step"], list(_observed(spec)))
    yield _predicted(spec)


def _example(
    run: PublishedRun, spec: PolicySpec, parts: list[str], dataset: str | None
) -> Iterator[str]:
    """Yields the lines of Python that act with the policy."""
    chosen = f", dataset={json.dumps(dataset)}" if dataset else ""
    yield f"from octograin import Policy{', load_parts' if parts else ''}"
    yield ""
    if parts:
        yield f"load_parts({', '.join(map(json.dumps, parts))})"
    yield f'policy = Policy.from_run("{run.address}"{chosen})'
    if spec.data.conditioning == "image_conditioned":
        yield "policy.reset(0, goal={...})  # images of the goal by camera"
    else:
        last = run.files.last_validation
        known = [text for text in (last.by_task if last else ()) if text.isprintable() and text]
        text = known[0] if known else "open the drawer"
        yield f"policy.reset(0, {json.dumps(text, ensure_ascii=False)})"
    yield "actions = policy.infer({0: policy.example_observation()})[0]"


def _encoders(run: PublishedRun) -> Iterator[str]:
    """Yields which weights compute the tokens that the policy reads, if it does."""
    weights = dict.fromkeys(weights for _, _, weights, _ in run.files.encoders)
    if weights:
        local = [one for one in weights if not one.startswith((SCHEME, "random:"))]
        named = [
            code(one.removesuffix(UNTRAINED)) + UNTRAINED * one.endswith(UNTRAINED)
            for one in weights
        ]
        where = " Say where they lie with `--weights PATH`, or `weights=PATH`." if local else ""
        yield (f"It computes tokens of its images, with the weights {'; '.join(named)}.{where}")


def _observed(spec: PolicySpec) -> Iterator[tuple[str, str]]:
    for name, leaf in spec.observed.items():
        dims = f": {', '.join(leaf.dims)}" if leaf.dims else ""
        yield code(name), code(describe_one(leaf)) + plain(dims)


def _predicted(spec: PolicySpec) -> str:
    """Returns what the policy is given and what it returns, in sentences."""
    dims = ", ".join(map(code, spec.action_dims))
    shape = f"{spec.model.head.action_horizon},{spec.features[ACTION].shape[0]}"
    grippers = spec.conventions.gripper_dim is not None or spec.conventions.grippers
    return (
        f"The task is {' or '.join(TASKS[spec.data.conditioning])}. The policy reads the last "
        f"{count(spec.data.window_size, 'step')} and predicts `float32[{shape}]`"
        f"{f': {dims}' if dims else ''}. Units are the dataset's."
        + (" A gripper is 1 = open, 0 = closed." if grippers else "")
    )


def _quality(run: PublishedRun) -> Iterator[str]:
    last, loss = run.files.last_validation, run.files.final_loss
    if loss is not None:
        averaged = min(len(run.files.metrics), NUM_LAST_STEPS)
        yield (
            f"The mean loss of the last {averaged} training steps is {three_digits(loss)}"
            + (f", that of the validation {three_digits(last.loss)}." if last else ".")
        )
    if last is None and loss is None:
        yield "No losses or validation are recorded with it."
    elif last is None:
        yield "It was not validated on held-out episodes."
    else:
        of = "held-out episodes" if run.files.holds_out else "episodes that it was trained on"
        # NaN: not measured, in files of version 0.1.0.
        constants = {"all dimensions": last.constant_error, **last.constant_by_dim}
        errors = {"all dimensions": last.action_error, **last.by_dim}
        yield table(
            ["error of actions", "this policy", "best constant action"],
            [
                (plain(split_unit(name)[0]), three_digits(error), _known(constants.get(name)))
                for name, error in errors.items()
            ],
        )
        unit = UNITS.get(str(run.files.setting("data.normalization")))
        yield (
            f"Mean absolute errors of predicted chunks at training step {last.step:,}, on "
            f"{count(last.num_samples, 'sample')} of {of}. They are normalised"
            f"{f': {unit}' if unit else ''}. A gripper counts from 0 to 1. The best constant "
            "action is the median: a policy below it has learned something."
        )
    yield from _successes(run)
    if run.dtype == "float16":
        yield (
            "The parameters are stored as float16. Losses, errors and successes are those of the "
            "run's float32 parameters."
        )


def _successes(run: PublishedRun) -> Iterator[str]:
    """Yields how often the policy succeeded in the simulator."""
    rows = []
    for results in run.evaluations:
        rate = results.rate()
        low, high = rate.interval
        rows.append(
            (
                code(results.settings.conditions),
                str(len(results.tasks)),
                f"{rate.num_successes} of {rate.num_trials}",
                f"{percent(rate.value)} ({percent(low)} to {percent(high)})",
                str(results.num_demonstrated),
                str(results.settings.execute_horizon),
            )
        )
    names = ["suite", "tasks", "successes", "rate (95 % interval)"]
    if rows:
        yield table([*names, "of demonstrated states", "actions executed of a chunk"], rows)
    else:
        yield (
            "It was not rolled out in a simulator. Errors of actions do not tell how often a robot "
            "succeeds."
        )


def _known(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else three_digits(value)


def _data(run: PublishedRun) -> Iterator[str]:
    names = ["dataset", "steps", "Hz", "images", "rotation", "no-ops", "grippers", "licence"]
    yield table(
        [*names, "from"],
        [
            [*map(plain, dataset_row(values)[:-1]), plain(_source(path, values))]
            for path, values in run.files.datasets.items()
        ],
    )
    if run.licence is None:
        yield "No licence was given for the policy. Those of its data are in the table."


def _versions(run: PublishedRun, report: str | None) -> str:
    environment = run.files.environment
    packages = ", ".join(f"{k} {v}" for k, v in environment.get("packages", {}).items() if v)
    trained = f"Trained with {packages}" if packages else f"Pushed with octograin {VERSION}"
    devices = environment.get("devices", "")
    more = (
        f" [{report}]({report}) has all figures of the run; download it to open it."
        if report
        else ""
    )
    return f"{plain(trained)}{f', on {plain(devices)}' if devices else ''}.{more}"
