"""The file of an exported policy and the program in it; an exported policy holds this code.

__main__.py           `python POLICY.zip` prints what the policy reads and predicts
exported_policy/      code, and `settings.py`: what the policy reads and predicts
program.stablehlo     the model as a portable StableHLO artifact; parameters are arguments
meta.json             types of the program's arguments and of the arrays
arrays/NAME           raw arrays: parameters, and the rows of the instructions
executable.bin        the program as compiled at export, for the machine in meta.json
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.experimental import serialize_executable

META, PROGRAM, EXECUTABLE = "meta.json", "program.stablehlo", "executable.bin"
ARRAYS = "arrays/"
_CORRUPT = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, KeyError)
"""What reading a corrupt zip, or JSON, raises."""

Structs = dict[str, Any]
"""Types of a program's arguments: nested dicts and lists of `jax.ShapeDtypeStruct`."""


@dataclasses.dataclass(frozen=True)
class PolicyFile:
    """The content of the file of an exported policy."""

    path: pathlib.Path
    """Where it was read."""
    meta: Mapping[str, Any]
    """The parsed `meta.json`."""
    members: Mapping[str, bytes]
    """The content of every member, by name."""

    def array(self, name: str) -> np.ndarray:
        """Returns an array by its name; read-only."""
        leaf = structs_from_json(self.meta["arrays"][name])
        return np.frombuffer(self.members[ARRAYS + name], leaf.dtype).reshape(leaf.shape)


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program with its parameters."""

    call: Callable[..., jax.Array]
    """The compiled program."""
    parameters: Sequence[jax.Array]
    """Its parameters, on the device."""
    origin: str
    """Where it was compiled: `at export` or `here`."""

    def __call__(self, inputs: Structs) -> np.ndarray:
        """Returns normalised chunks, float32 (b h a), for all arguments but the parameters."""
        return np.asarray(self.call(parameters=self.parameters, **inputs))


def read_file(path: pathlib.Path) -> PolicyFile:
    """Reads the file of an exported policy, and compares the zip's checksum of every member.

    Raises:
      ValueError: It cannot be read, or is corrupt.
    """
    try:
        with zipfile.ZipFile(path) as opened:
            members = {name: opened.read(name) for name in opened.namelist()}
        return PolicyFile(path, json.loads(members[META]), members)
    except OSError as error:
        raise ValueError(
            f"{path}: expected an exported policy; found: {error.strerror or error}."
        ) from None
    except _CORRUPT as error:
        raise ValueError(
            f"{path}: expected an exported policy; found a corrupt file: {error}. Copy it again, "
            "or export it again."
        ) from None


def load_program(file: PolicyFile) -> Program:
    """Loads the program as it was compiled at export; on another kind of machine, compiles it.

    Raises:
      ValueError: The program is not for this platform, or not for the jax that is installed.
    """
    structs, device = structs_from_json(file.meta["inputs"]), jax.devices()[0]
    call, origin = None, "at export"
    if EXECUTABLE in file.members and file.meta["machine"] == machine():
        try:
            call = load_compiled(file.members[EXECUTABLE], structs)
        except Exception as error:  # noqa: BLE001  (jax and XLA raise types of their own)
            warnings.warn(f"{file.path}: {EXECUTABLE} is not used: {error}", stacklevel=2)
    if call is None:
        call, origin = _compile(file, structs), "here"
    names = file.meta["parameters"]
    return Program(call, [jax.device_put(file.array(name), device) for name in names], origin)


def _compile(file: PolicyFile, structs: Structs) -> jax.stages.Compiled:
    meta = file.meta
    try:
        output = structs_from_json(meta["output"])
        return compile_program(
            join_program(meta["program"], file.members[PROGRAM], structs, output), structs
        )
    except Exception as error:
        found = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{file.path}: expected a program that jax {jax.__version__} compiles for "
            f"{jax.default_backend()}; found one for {', '.join(meta['program']['platforms'])} by "
            f"jax {meta['machine']['jax']}: {found:.200}"
        ) from error


def split_program(exported: jax.export.Exported) -> dict[str, Any]:
    """Returns what `join_program` needs beside the types and the StableHLO, as JSON values."""
    return {
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "module_kept_var_idx": list(exported.module_kept_var_idx),
        "uses_global_constants": exported.uses_global_constants,
    }


def join_program(
    values: Mapping[str, Any], stablehlo: bytes, structs: Structs, output: jax.ShapeDtypeStruct
) -> jax.export.Exported:
    """Returns the program of `jax.export.export` from its parts.

    `Exported.serialize` needs flatbuffers, which neither jax nor numpy installs. So a function with
    the same types is exported here, and the documented attributes of the program replace its own.

    Args:
      values: What `split_program` returned.
      stablehlo: The program's `mlir_module_serialized`.
      structs: Types of its keyword arguments.
      output: Type of what it returns.

    Raises:
      ValueError: The jax that is installed does not know the program's calling convention.
    """
    version = values["calling_convention_version"]
    oldest = jax.export.minimum_supported_calling_convention_version
    newest = jax.export.maximum_supported_calling_convention_version
    if not oldest <= version <= newest:
        raise ValueError(f"calling convention {version} is not one of {oldest} to {newest}")

    def same_types(**arguments: Any) -> jax.Array:
        del arguments
        return jnp.zeros(output.shape, output.dtype)

    blank = jax.export.export(jax.jit(same_types), platforms=values["platforms"])(**structs)
    return dataclasses.replace(
        blank,
        mlir_module_serialized=stablehlo,
        calling_convention_version=version,
        module_kept_var_idx=tuple(values["module_kept_var_idx"]),
        uses_global_constants=values["uses_global_constants"],
    )


def compile_program(exported: jax.export.Exported, structs: Structs) -> jax.stages.Compiled:
    """Compiles a program for the first device of this machine."""
    return jax.jit(exported.call).lower(**structs).compile()


def save_compiled(compiled: jax.stages.Compiled) -> bytes:
    """Returns a compiled program as bytes, for `load_compiled`."""
    return serialize_executable.serialize(compiled)[0]


def load_compiled(data: bytes, structs: Structs) -> jax.stages.Compiled:
    """Loads a compiled program; only a machine with the same `machine()` can."""
    in_tree, out_tree = jax.tree.structure(((), structs)), jax.tree.structure(0)
    device = jax.devices()[0]
    return serialize_executable.deserialize_and_load(
        data, in_tree, out_tree, device.client, [device]
    )


def machine() -> dict[str, str]:
    """Describes all that a compiled program depends on beside its StableHLO."""
    device = jax.devices()[0]
    return {
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "platform": device.platform,
        "platform_version": device.client.platform_version,
        "device": device.device_kind,
        "cpu": _cpu() if device.platform == "cpu" else "",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _cpu() -> str:
    """Hashes the cores and their instructions, without all of which a program could crash."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [str(cores), platform.system(), platform.machine(), platform.processor()]
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        kinds = ("model name", "flags", "Features", "CPU part")
        found += sorted({x for x in cpuinfo.read_text().splitlines() if x.startswith(kinds)})
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def structs_to_json(structs: Any) -> Any:
    """Returns types as JSON values, each as a text such as `float32[1,2,8]`."""
    if isinstance(structs, dict):
        return {name: structs_to_json(one) for name, one in structs.items()}
    if isinstance(structs, list):
        return [structs_to_json(one) for one in structs]
    return f"{structs.dtype}[{','.join(map(str, structs.shape))}]"


def structs_from_json(values: Any) -> Any:
    """Inverts `structs_to_json`."""
    if isinstance(values, dict):
        return {name: structs_from_json(one) for name, one in values.items()}
    if isinstance(values, list):
        return [structs_from_json(one) for one in values]
    dtype, _, sizes = values.removesuffix("]").partition("[")
    shape = tuple(int(size) for size in sizes.split(",") if size)
    return jax.ShapeDtypeStruct(shape, np.dtype(dtype))
