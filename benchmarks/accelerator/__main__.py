"""The figures of one accelerator, in one command of at most eight minutes.

    python -m benchmarks.accelerator [--dataset data/libero_mini] [--output runs/accelerator]
    python -m benchmarks.accelerator --smoke

The dataset is a converted one with the cameras image_primary and image_wrist, such as the bundled:
`octograin convert octograin://libero_mini data/libero_mini`. `benchmarks/pack.py` collects it and
the wheels for a machine without a network. Neither tensorflow-datasets nor pyarrow is imported.

Cases are measured one after the other, each in a process of its own, the most important first:

- `card`: the machine, square matrix products, and a copy in its memory.
- `step:MODEL:TOKENS:VARIANT@BATCH_SIZE,...`: training steps in bfloat16, window 2, of octo-small
  or octo-base, with 0 or 261 geometry tokens per step. Variants: `plain`, `remat` (blocks are
  recomputed), `fused` (cuDNN's attention), `fused_remat`. Peak memory stands beside what XLA
  planned and what the dry run estimates. What does not fit is noted and passed over.
- `vggt`: frames per second of VGGT-1B with random weights, images of 224.
- `run:TOKENS:VARIANT`: a run of octo-small by `train.run` at batch 64: the share of its time that
  the devices wait for the loader. Without tokens also `policy`: the time of one prediction with the
  checkpoint of that run.
- `repeat:VARIANT`: whether 20 training steps give the same bits twice, and which kernels of a
  training step take the time.

`% of matmul rate` is the rate of a model's matrix products, which `model_flops.py` counts, over
that of square ones of the same dtype in the same run. On a CPU peaks are of the whole process.
"""

import contextlib
import dataclasses
import os
import pathlib
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from typing import Annotated, Any

import tyro

from benchmarks import measuring
from benchmarks.accelerator.case_runner import run_cases
from benchmarks.accelerator.figure_files import MARKDOWN_NAME, to_markdown, with_share, write_files
from benchmarks.accelerator.measured_cases import VARIANTS, Case, Sizes, full_sizes, smoke_sizes
from pipeline.errors import UserError, user_errors_exit


@dataclasses.dataclass(frozen=True)
class Args:
    """Measures an accelerator; start it in the folder of the checkout."""

    dataset: str = "data/libero_mini"
    """Converted dataset with the cameras image_primary and image_wrist."""
    output: str = "runs/accelerator"
    """Folder of the results, accelerator.json and accelerator.md, written after each figure, and of
    the logs."""
    minutes: float = 8.0
    """Time for everything. Cases that no longer fit are skipped, the least important last."""
    cases: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(all)")] = ()
    """Cases to measure, such as `card step:small:0:fused@64,plain@64`, in this order."""
    compilation_cache: str | None = "~/.cache/octograin"
    """Folder of compiled programs, which a second run does not compile again."""
    smoke: bool = False
    """Measures everything at tiny sizes in this process: a test of this command on a CPU."""
    work: Annotated[str | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Folder of a measurement in progress, which the command passes to its own processes."""
    only: Annotated[str | None, tyro.conf.arg(help_behavior_hint="")] = None
    """The one case that such a process measures."""


def main() -> None:
    """Parses the command line; prints one JSON object per figure and, at the end, the tables."""
    # Or else the process of a case would keep measuring after this one has been terminated.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with user_errors_exit():
        measure_all(tyro.cli(Args, prog="python -m benchmarks.accelerator", use_underscores=True))


def measure_all(args: Args) -> list[dict[str, Any]]:
    """Measures all cases and writes the files; returns the figures."""
    sizes = smoke_sizes() if args.smoke else full_sizes(os.cpu_count() or 1)
    if args.only is not None and args.work is not None:  # a process of the command below
        for row in _measure(args, args.only, sizes, args.work):
            measuring.print_figures(row)
        return []
    output = pathlib.Path(args.output)
    (output / "logs").mkdir(parents=True, exist_ok=True)
    cases = _chosen(args, sizes)
    rows: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="accelerator_") as work,
        # Closed at once by Ctrl-C and SIGTERM as well, which ends the process of a case.
        contextlib.closing(_rows(args, cases, sizes, work)) as found,
    ):
        for row in found:
            rows.append(with_share(row, rows))
            measuring.print_figures(rows[-1])
            write_files(output, rows)
    skipped = [row["measurement"] for row in rows if "skipped" in row.get("failed", "")]
    sys.stdout.write(f"\n{to_markdown(rows)}\nThe same is in {output / MARKDOWN_NAME}.\n")
    if skipped:
        more = ["--dataset", args.dataset, "--output", "ANOTHER", "--cases", "card", *skipped]
        sys.stdout.write(
            "Skipped for want of time; measure them by: "
            f"{shlex.join(measuring.module('benchmarks.accelerator', *more))}\n"
        )
    return rows


def _chosen(args: Args, sizes: Sizes) -> tuple[Case, ...]:
    """Returns the plan, or the cases that are asked for.

    Raises:
      UserError: There is no such case.
    """
    if not args.cases:
        return sizes.cases
    planned = {case.name: case for case in sizes.cases}
    unknown = [name for name in args.cases if name not in planned and not _is_step(name, sizes)]
    if unknown:
        raise UserError(
            where="--cases",
            expected=f"{', '.join(planned)}, or another step:MODEL:TOKENS:VARIANT@BATCH_SIZE,...",
            found=", ".join(unknown),
            remedy="Name cases of the plan.",
        )
    return tuple(planned.get(name, Case(name, 60)) for name in args.cases)


def _is_step(name: str, sizes: Sizes) -> bool:
    match name.split(":"):
        case ["step", model, tokens, programs]:
            pairs = [program.partition("@") for program in programs.split(",")]
            known = model in sizes.models and tokens in ("0", str(sizes.tokens.num_tokens))
            return known and all(
                variant in VARIANTS and size.isdecimal() and int(size) > 0
                for variant, _, size in pairs
            )
    return False


def _rows(
    args: Args, cases: tuple[Case, ...], sizes: Sizes, work: str
) -> Generator[dict[str, Any]]:
    total = sum(case.seconds for case in cases)
    yield {
        "measurement": "plan",
        "expected_s": {case.name: case.seconds for case in cases},
        "total_s": total,
        "allowed_s": 60 * args.minutes,
    }
    started = time.monotonic()
    if any(f":{sizes.tokens.num_tokens}:" in case.name for case in cases):
        yield from _add_tokens(args, sizes, work)
    if args.smoke:
        for case in cases:
            yield from _measure(args, case.name, sizes, work)
        return

    def command(case: Case) -> list[str]:
        options = ["--dataset", args.dataset, "--work", work, "--only", case.name]
        cache = str(args.compilation_cache)
        return measuring.module("benchmarks.accelerator", *options, "--compilation_cache", cache)

    left = 60 * args.minutes - (time.monotonic() - started)
    yield from run_cases(cases, command, left, pathlib.Path(args.output) / "logs")


def _add_tokens(args: Args, sizes: Sizes, work: str) -> Iterator[dict[str, Any]]:
    """Makes a copy of the dataset with random tokens, for the cases that have them."""
    # Late: this process has no use for JAX, and on a GPU must not take its memory.
    from benchmarks import random_tokens  # noqa: PLC0415

    _, _, seconds = measuring.timed(
        random_tokens.add_tokens,
        random_tokens.Args(
            args.dataset, f"{work}/tokens", sizes.tokens.num_tokens, sizes.tokens.token_dim
        ),
    )
    yield {"measurement": "case", "case": "random tokens", "s": round(seconds, 1)}


def _measure(args: Args, name: str, sizes: Sizes, work: str) -> Iterator[dict[str, Any]]:
    """Yields the figures of one case, measured in this process."""
    # Late, for the same reason.
    from benchmarks.accelerator import (  # noqa: PLC0415
        card_rates,
        repeated_steps,
        train_steps,
        training_run,
        vggt_frames,
    )

    places = train_steps.Places(args.dataset, f"{work}/tokens", work, args.compilation_cache)
    match name.split(":"):
        case ["card"]:
            yield from card_rates.measure_card(sizes)
        case ["step", model, tokens, programs]:
            pairs = [program.partition("@") for program in programs.split(",")]
            steps = [
                (train_steps.StepCase(model, int(tokens), variant), int(size))
                for variant, _, size in pairs
            ]
            yield from train_steps.time_steps(steps, sizes, places)
        case ["vggt"]:
            yield from vggt_frames.measure_vggt(sizes)
        case ["run", tokens, variant]:
            case = train_steps.StepCase("small", int(tokens), variant)
            yield from training_run.measure_run(case, sizes, places)
            if case.num_tokens == 0:
                yield from training_run.measure_policy(sizes, places)
        case ["repeat", variant]:
            case = train_steps.StepCase("small", 0, variant)
            yield from repeated_steps.measure_repeat(case, sizes, places)
        case _:
            raise ValueError(f"no case is called {name}")


if __name__ == "__main__":
    main()
