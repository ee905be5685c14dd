"""`octograin VERB`: every command of the project under one name."""

import argparse
import importlib
import os
import pathlib
import sys
from collections.abc import Sequence

from octograin import __version__
from pipeline.errors import UserError, nearest_name, user_errors_exit
from pipeline.terminal import show

VERBS = {
    "convert": ("converters.job.convert_command", "convert robot episodes to a dataset directory"),
    "verify": ("converters.verify.__main__", "check a dataset, alone or against its source"),
    "inspect": (
        "pipeline.inspection.__main__",
        "show a dataset as text, JSON, images or a Rerun recording",
    ),
    "edit": ("converters.edit", "exclude episodes, correct instructions and conventions"),
    "export": (None, "write a dataset as RLDS or LeRobot, or a run as a policy or for Octo"),
    "pull": (None, "fetch a dataset or a policy from the Hugging Face hub"),
    "push": (None, "put a dataset or a policy on the Hugging Face hub"),
    "tokens": ("converters.vggt.__main__", "compute VGGT tokens of the images of a dataset"),
    "train": ("train.run", "finetune Octo on datasets"),
    "evaluate": ("train.evaluate.evaluate_command", "run a policy in the LIBERO simulator"),
    "serve": ("train.serve.__main__", "serve the policy of a run over a websocket"),
    "parity": ("train.policy.parity", "compare the inputs of a policy with those of its training"),
    "report": ("train.report.__main__", "write the report of a run again"),
    "benchmark": ("pipeline.benchmark.__main__", "measure how fast batches of a dataset load"),
    "demo": (None, "convert the bundled data and finetune a small Octo on it"),
}
"""The module whose `main` a verb runs, where it is one alone, and what the verb does."""
FORMATS = {
    "rlds": "converters.export.rlds_export",
    "lerobot": "converters.export.lerobot_export",
    "octo": "train.checkpoints.export_run",
    "stablehlo": "train.exported.stablehlo_command",
    "policy": "train.exported.policy_command",
}
"""What `octograin export` writes, and the module that does."""
HUB = {
    ("pull", "hf://datasets/"): "pipeline.sharing.pull_command",
    ("push", "hf://datasets/"): "pipeline.sharing.push_command",
    ("pull", "hf://"): "train.hub.pull_run",
    ("push", "hf://"): "train.hub.push_run",
}
"""The module for a verb and the start of an address on the hub; of several, the longest counts."""


def main() -> None:
    """Runs the command of a verb with the rest of the command line."""
    with user_errors_exit():
        verb, *arguments = sys.argv[1:] or ["--help"]
        match verb:
            case "-h" | "--help":
                lines = [f"  {name:10} {text}\n" for name, (_, text) in VERBS.items()]
                show("usage: octograin [-h] [--version] VERB ...\n\nverbs:\n" + "".join(lines))
                show("\n`octograin VERB --help` lists the options of a verb.\n")
            case "--version":
                show(f"octograin {__version__}\n")
            case "export":
                _export(arguments)
            case "pull" | "push":
                _share(verb, arguments)
            case "demo":
                _demo(arguments)
            case "inspect" if any(word.split("=")[0] == "--run" for word in arguments):
                # A policy predicts beside the data; without one, inspect imports no jax.
                _run("train.policy.episode_chunks", "octograin inspect", arguments)
            case "train" if {"-h", "--help"} & {*arguments}:
                # The flags alone: jax and the rest of a run take two seconds to import.
                sys.argv = ["octograin train", *arguments]
                importlib.import_module("train.flags").parse_flags(arguments)
            case _:
                _run(_module(verb), f"octograin {verb}", arguments)


def _module(verb: str) -> str:
    """The module of a verb, or an error that names the nearest one."""
    module, _ = VERBS.get(verb, (None, ""))
    if module is None:
        nearest = nearest_name(verb, VERBS)
        raise UserError(
            where="octograin",
            expected="a verb: " + ", ".join(VERBS),
            found=verb,
            remedy=f"Did you mean `octograin {nearest}`?" if nearest else "See `octograin --help`.",
        )
    return module


def _run(module: str, name: str, arguments: Sequence[str]) -> None:
    """Runs the `main` of a module, which reads `sys.argv` and calls itself by its first word."""
    sys.argv = [name, *arguments]
    importlib.import_module(module).main()


def _export(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="octograin export",
        add_help=False,
        allow_abbrev=False,
        usage="octograin export SOURCE [OUT] --to {rlds,lerobot,octo,stablehlo,policy} ...",
        description="Writes a dataset as RLDS or LeRobot 3.0, a run as a checkpoint of the "
        "original Octo, its policy as one file that runs with jax and numpy alone (stablehlo), or "
        "as a small run directory to hand on (policy); "
        "`octograin export --to FORMAT --help` lists what each takes.",
    )
    parser.add_argument("--to", choices=tuple(FORMATS), required=True)
    if not any(word.split("=")[0] == "--to" for word in arguments) and {"-h", "--help"} & {
        *arguments
    }:
        show(parser.format_help())
        return
    known, rest = parser.parse_known_args(arguments)
    _run(FORMATS[known.to], f"octograin export --to {known.to}", rest)


def _share(verb: str, arguments: Sequence[str]) -> None:
    """Runs the command for what an address on the hub holds."""
    modules = {start: module for (of, start), module in HUB.items() if of == verb}
    addresses = [word for word in arguments if word.startswith("hf://")]
    starts = [start for start in modules if addresses and addresses[0].startswith(start)]
    is_help = bool({"-h", "--help"} & {*arguments})
    if not starts and is_help:
        known = " or ".join(f"{start}owner/name" for start in modules)
        order = "ADDRESS DIR" if verb == "pull" else "DIR ADDRESS"
        show(f"usage: octograin {verb} {order} [OPTIONS]\n\n{VERBS[verb][1]}\n\n")
        show(f"ADDRESS is {known}.\n`octograin {verb} ADDRESS --help` lists the options of each.\n")
        return
    if not starts:
        raise UserError(
            where=f"octograin {verb}",
            expected="an address: " + " or ".join(f"{start}owner/name" for start in modules),
            found=addresses[0] if addresses else " ".join(arguments) or "none",
            remedy=f"See `octograin {verb} --help`.",
        )
    # Alone, or the help would leave out what is given.
    _run(modules[max(starts, key=len)], f"octograin {verb}", ["--help"] if is_help else arguments)


def _demo(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="octograin demo",
        description="Converts the bundled LIBERO episodes, computes tokens of their images with "
        "untrained weights, and finetunes a small Octo on them: two minutes on a laptop.",
    )
    parser.add_argument(
        "dir", nargs="?", default=".", help="where data/ and runs/ are written; default: here"
    )
    parser.add_argument("--num_steps", type=int, default=200, help="training steps; default: 200")
    args = parser.parse_args(arguments)
    directory = pathlib.Path(args.dir)
    directory.mkdir(parents=True, exist_ok=True)
    os.chdir(directory)
    data, steps = "data/libero_mini", args.num_steps
    show(f"==> converting the bundled RLDS set to {directory / data}\n")
    _step("convert", "octograin://libero_mini", data, "--overwrite")
    show("==> computing tokens of its images, with untrained weights\n")
    _step("tokens", data, "--name", "vggt_tiny", "--weights", "random:tiny", "--size", "56")
    show(f"==> finetuning on it for {steps} steps\n")
    lengths = {"num_steps": steps, "optimizer.decay_steps": steps}
    lengths["optimizer.warmup_steps"] = steps // 10
    flags = [f"--config.{name}={length}" for name, length in lengths.items()]
    _step("train", "--config", "libero_vggt:demo", *flags, "--overwrite")
    show(f"==> the report: {directory / 'runs/demo/report.html'}\n")


def _step(verb: str, *arguments: str) -> None:
    _run(_module(verb), f"octograin {verb}", arguments)
