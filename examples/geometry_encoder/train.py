"""`python -m examples.geometry_encoder.train VIEWS RUN`: trains an encoder of VGGT's structure."""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from converters.mapping.mapping_registry import registered
from examples.geometry_encoder.training import WEIGHTS, EncoderRun, EncoderTraining, small
from examples.geometry_encoder.view_sets import ViewSets, init_of
from pipeline.errors import UserError, user_errors_exit
from pipeline.flag_help import joined_help
from pipeline.terminal import program, show

_INTERRUPTED = "interrupted; run the same command again to resume at the last checkpoint"
_LEAST = {
    "held_out": 1,
    "steps": 1,
    "num_images": 3,
    "weight_decay": 0.0,
    "dim": 32,
    "layers": 1,
    "dino_layers": 1,
    "interval": 1,
    "seed": 0,
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Trains an encoder of VGGT's structure on views with depth and poses.

    It resumes at its last checkpoint when the same command is run again.
    """

    views: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="VIEWS")]
    """Folder that `python -m examples.geometry_encoder.render` wrote."""
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of checkpoints, metrics.jsonl and the weights."""
    held_out: Annotated[int, tyro.conf.arg(metavar="K")] = 36
    """The first initial state of each task whose episodes are not trained on."""
    steps: Annotated[int, tyro.conf.arg(metavar="N")] = 8000
    """Training steps."""
    num_images: Annotated[int, tyro.conf.arg(metavar="N")] = 12
    """Images per training step, as sets of one, two or three."""
    learning_rate: Annotated[float, tyro.conf.arg(metavar="RATE")] = 5e-4
    """Largest learning rate."""
    weight_decay: Annotated[float, tyro.conf.arg(metavar="RATE")] = 0.01
    """Weight decay of AdamW."""
    dim: Annotated[int, tyro.conf.arg(metavar="N")] = 128
    """Size of a token inside, a multiple of 32; stored tokens are twice as wide."""
    layers: Annotated[int, tyro.conf.arg(metavar="N")] = 4
    """Pairs of blocks, one within views and one across them."""
    dino_layers: Annotated[int, tyro.conf.arg(metavar="N")] = 2
    """Blocks of the backbone before them."""
    interval: Annotated[int, tyro.conf.arg(metavar="N")] = 500
    """Training steps between checkpoints."""
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Seed of parameters, batches and augmentation."""
    licence: Annotated[str, tyro.conf.arg(metavar="TEXT")] = registered("libero").licence
    """Licence of the weights, as an SPDX identifier or in words; LIBERO's demonstrations'."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and trains."""
    with user_errors_exit(interrupted=_INTERRUPTED):
        name = program("examples.geometry_encoder.train")
        args = tyro.cli(joined_help(Args), prog=name, use_underscores=True)
        _check(args)
        sets, held_out = _views(args)
        training = EncoderTraining(
            num_moments=len(sets.images),
            model=small(sets.images.shape[2], args.dim, args.layers, args.dino_layers),
            num_steps=args.steps,
            num_images=args.num_images,
            learning_rate=args.learning_rate,
            weight_decay=args.weight_decay,
            seed=args.seed,
        )
        folder = pathlib.Path(args.run)
        show(f"{len(sets.images):,} moments to train on, {len(held_out.images):,} held out\n")
        EncoderRun(
            training, sets, held_out, folder, args.interval, licence=args.licence, show=show
        ).train()
        show(f"weights: {folder / WEIGHTS}\n")


def _check(args: Args) -> None:
    """Refuses numbers that have no meaning."""
    for name, least in _LEAST.items():
        # Written this way so that NaN fails too.
        if not getattr(args, name) >= least:
            raise _refused(f"--{name}", f"at least {least}", str(getattr(args, name)))
    if args.dim % _LEAST["dim"]:
        raise _refused("--dim", f"a multiple of {_LEAST['dim']}", str(args.dim))
    if not 0 < args.learning_rate < float("inf"):
        raise _refused("--learning_rate", "a positive number", str(args.learning_rate))


def _views(args: Args) -> tuple[ViewSets, ViewSets]:
    """The views to train on and those held out.

    Raises:
      UserError: There are none of one of them.
    """
    paths = sorted(pathlib.Path(args.views).glob("*.npz"))
    trained = [path for path in paths if init_of(path) < args.held_out]
    others = [path for path in paths if init_of(path) >= args.held_out]
    if not trained or not others:
        raise _refused(
            f"{args.views}, --held_out {args.held_out}",
            "episodes from initial states below it and others",
            f"{len(trained)} and {len(others)}",
        )
    return ViewSets.read(trained), ViewSets.read(others)


def _refused(where: str, expected: str, found: str) -> UserError:
    remedy = f"See `{program('examples.geometry_encoder.train')} --help`."
    return UserError(where=where, expected=expected, found=found, remedy=remedy)


if __name__ == "__main__":
    main()
