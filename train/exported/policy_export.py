"""Exports the policy of a checkpoint to one file that runs with jax and numpy alone."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.export
import numpy as np

from pipeline.bundled import VERSION
from pipeline.config_checks import Problem, check, check_positive
from pipeline.errors import UserError
from pipeline.loading.transforms.normalize_transforms import Normalize
from train.checkpoints.checkpoint_store import Checkpoint
from train.exported.code_bundle import PACKAGE, SettingsSource, bundle_code
from train.exported.export_check import example_of, largest_difference
from train.exported.export_file import check_free, write_file
from train.exported.exported_settings import ExportedSettings
from train.exported.policy_file import (
    ARRAYS,
    EXECUTABLE,
    META,
    PROGRAM,
    machine,
    save_compiled,
    split_program,
    structs_to_json,
)
from train.exported.program_export import ExportedProgram, export_program, text_rows
from train.policy.observations import TASKS
from train.policy.policy import Policy, PolicyConfig
from train.policy.policy_spec import PolicySpec

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_GOAL = TASKS["image_conditioned"][0]
_INIT = f'''"""The policy of this file: `from {PACKAGE} import ExportedPolicy`."""

from {PACKAGE}.train.exported.exported_policy import ExportedPolicy, main

__all__ = ["ExportedPolicy", "main"]
'''
_MAIN = f"from {PACKAGE} import main\n\nmain()\n"


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What an exported policy can do."""

    instructions: tuple[str, ...] = ()
    """Instructions that it takes; none are needed if the model reads none."""
    batch_size: int = 1
    """Environments per batch: fewer are padded, more are split into several batches."""
    platforms: tuple[str, ...] = ()
    """Platforms of jax that its program is lowered for; empty: the one of this process."""

    def __post_init__(self) -> None:
        """Checks the fields."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields each problem of the fields."""
        yield from check_positive(self, "batch_size")
        if not all(self.instructions):
            yield Problem("instructions", "texts", "an empty one", "Leave it out.")
        unknown = [name for name in self.platforms if name not in PLATFORMS]
        if unknown:
            yield Problem(
                "platforms",
                f"some of {', '.join(PLATFORMS)}",
                ", ".join(unknown),
                "GPUs are cuda (NVIDIA) or rocm (AMD).",
            )


@dataclasses.dataclass(frozen=True)
class Export:
    """What was exported."""

    num_bytes: int
    """Size of the file."""
    num_parameters: int
    """Parameters in it; those of a language encoder are left out."""
    difference: float
    """Largest difference between a chunk of the file's program and one of the policy; 0: they are
    bitwise identical. NaN: the program is not for this platform."""


def export_policy(
    checkpoint: Checkpoint,
    path: pathlib.Path,
    config: ExportConfig = ExportConfig(),
    dataset: str | None = None,
    *,
    overwrite: bool = False,
) -> Export:
    """Exports the policy of a checkpoint.

    Args:
      checkpoint: Checkpoint of a run.
      path: The file to write; it is complete or absent.
      config: What the exported policy can do.
      dataset: Path or name of the dataset whose statistics and conventions are used; None: any, if
        they are the same for all.
      overwrite: Whether an exported policy that stands there is replaced.

    Raises:
      UserError: The path is in use or cannot be written; or the policy has something that the file
        cannot hold.
    """
    check_free(path, overwrite=overwrite)
    spec = PolicySpec.of(checkpoint, dataset)
    texts = _texts(spec, config)
    _check_inputs(spec)
    source = SettingsSource()
    # What may be refused comes before what takes a minute to compile.
    source.text((spec.data.transforms, spec.data.gripper_rules))
    code = bundle_code(source.classes.values())
    policy = Policy(checkpoint, dataset, PolicyConfig(config.batch_size))
    settings = _settings(policy, config, texts)
    code["settings.py"] = source.module("SETTINGS", settings)
    rows = text_rows(spec, checkpoint.params, texts)
    platforms = config.platforms or (jax.export.default_export_platform(),)
    program = export_program(spec, checkpoint.params, rows, config.batch_size, platforms)
    compiled, difference = program.compile(), math.nan
    if compiled is not None:
        difference = largest_difference(policy, program, compiled, settings, rows)
    arrays = {f"parameters/{n}": one for n, one in enumerate(program.parameters)} | rows
    members: dict[str, str | bytes] = {f"{PACKAGE}/{name}": text for name, text in code.items()}
    members |= {"__main__.py": _MAIN, f"{PACKAGE}/__init__.py": _INIT}
    members |= {PROGRAM: program.exported.mlir_module_serialized}
    if compiled is not None:
        members[EXECUTABLE] = save_compiled(compiled)
    members[META] = json.dumps(_meta(program, arrays), indent=1)
    members |= {f"{ARRAYS}{name}": np.asarray(one).tobytes() for name, one in arrays.items()}
    write_file(path, members)
    num_parameters = sum(one.size for one in program.parameters)
    return Export(path.stat().st_size, num_parameters, difference)


def _texts(spec: PolicySpec, config: ExportConfig) -> tuple[str, ...]:
    """Returns the texts that embeddings are stored of; empty if the model reads none."""
    kinds, named = TASKS[spec.data.conditioning], config.instructions
    takes_text = kinds != (_GOAL,)
    if takes_text != bool(named):
        raise UserError(
            where="export --to stablehlo, instructions",
            expected="the instructions that the policy will be given"
            if takes_text
            else "none, as the policy was trained on goal images",
            found=", ".join(map(repr, named)) or "none",
            remedy="Name each: --instruction 'open the drawer'." if takes_text else "Leave it out.",
        )
    if spec.model.language is None:
        return ()
    # The text of an environment whose task is a goal image.
    blank = ("",) if _GOAL in kinds else ()
    return tuple(dict.fromkeys((*named, *blank)))


def _check_inputs(spec: PolicySpec) -> None:
    """Raises a `UserError` if the policy reads what only this package can compute."""
    if spec.tokens:
        raise UserError(
            where="export --to stablehlo, " + ", ".join(map("observation/{}".format, spec.tokens)),
            expected="a model that reads images, vectors and instructions",
            found="one that reads tokens of an encoder, which the file does not hold",
            remedy="Serve the run with `octograin serve`.",
        )
    resized = [name for name in spec.resized if name in spec.observed]
    if resized:
        raise UserError(
            where="export --to stablehlo, " + ", ".join(map("observation/{}".format, resized)),
            expected="images that the loader reads in their stored size",
            found="some that it resizes with Pillow, which the file cannot import",
            remedy="Serve the run with `octograin serve`.",
        )


def _settings(policy: Policy, config: ExportConfig, texts: tuple[str, ...]) -> ExportedSettings:
    spec, data = policy.spec, policy.spec.data
    has_goals = data.has_goals
    transforms = [stage.transform for stage in spec.chain.stages]
    example = example_of(policy)
    return ExportedSettings(
        octograin=VERSION,
        step=policy.step,
        address=policy.address,
        dataset=spec.dataset,
        conditioning=data.conditioning,
        instructions=tuple(text for text in texts if text in config.instructions),
        texts=texts,
        conventions=spec.conventions,
        gripper_rules=data.gripper_rules,
        action_dims=spec.action_dims,
        window_size=policy.window_size,
        action_horizon=policy.action_horizon,
        batch_size=config.batch_size,
        expected=spec.observed,
        # Grey everywhere, or one metre.
        example={name: _shortened(one) for name, one in example.items()},
        goal_cameras=tuple(name for name in spec.cameras if has_goals and name in spec.observed),
        read=spec.read,
        before=spec.before,
        leaves=tuple(spec.leaves),
        transforms=data.transforms,
        normalizers={one.key: one.normalizer for one in transforms if isinstance(one, Normalize)},
        key_impl=str(jax.random.key_impl(jax.random.key(0))),
    )


def _shortened(array: np.ndarray) -> np.ndarray:
    """Returns the one value of an array that has the same everywhere; else the array."""
    first = array.reshape(-1)[:1].reshape(())
    return first if (array == first).all() else array


def _meta(program: ExportedProgram, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {
        "program": split_program(program.exported),
        "inputs": structs_to_json(program.structs),
        "output": structs_to_json(program.output),
        "machine": machine(),
        "parameters": [name for name in arrays if name.startswith("parameters/")],
        "arrays": {name: structs_to_json(one) for name, one in arrays.items()},
    }
