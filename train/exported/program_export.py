"""Exports the model of a policy as a program, with the parameters that acting needs."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from pipeline.data.schema import ACTION
from pipeline.errors import UserError
from pipeline.loading.text import tokenize
from train.exported.policy_file import Structs, compile_program, join_program, split_program
from train.octo.functional import InstructionEncoder, Params
from train.octo.octo_config import with_unused_dims
from train.policy.chunk_sampler import sample_chunks
from train.policy.policy_inputs import nest_inputs
from train.policy.policy_spec import PolicySpec


@dataclasses.dataclass(frozen=True)
class ExportedProgram:
    """A program of `jax.export`, and its parameters."""

    exported: jax.export.Exported
    """The program, with keyword arguments; see `export_program`."""
    structs: Structs
    """Types of its arguments."""
    parameters: Sequence[np.ndarray]
    """Values of its argument `parameters`."""

    @property
    def output(self) -> jax.ShapeDtypeStruct:
        """Returns the type of its result: normalised chunks (b h a)."""
        (out,) = self.exported.out_avals
        return jax.ShapeDtypeStruct(out.shape, out.dtype)

    def compile(self) -> jax.stages.Compiled | None:
        """Compiles what a file will hold of it; None if it is not for this process's platform."""
        if jax.export.default_export_platform() not in self.exported.platforms:
            return None
        stablehlo = self.exported.mlir_module_serialized
        joined = join_program(split_program(self.exported), stablehlo, self.structs, self.output)
        with _without_cache():
            return compile_program(joined, self.structs)


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """Compiles inside the block what the persistent compilation cache may have as well.

    With jaxlib 0.10.2 a program for a CPU that comes from the cache lacks functions when it is
    saved again: the first prediction of the process that loads it fails with NOT_FOUND.
    """
    directory = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    # jax keeps the cache that it has opened.
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", directory)
        compilation_cache.reset_cache()


def export_program(
    spec: PolicySpec,
    params: Params,
    rows: Mapping[str, np.ndarray],
    batch_size: int,
    platforms: Sequence[str],
) -> ExportedProgram:
    """Exports the model as a function of keyword arguments.

        parameters   list of arrays: the parameters that are used
        batch        dict of arrays: what the model reads, by path
        embeddings   (b n d): embedded instructions, if the model reads any
        key          uint32 (2): data of the key of the noise
        envs         uint32 (b): numbers of the environments
        counts       uint32 (b): chunks predicted in each since its reset

    Args:
      spec: What the model reads.
      params: Parameters of the model.
      rows: `text_rows` of the instructions.
      batch_size: Number of environments in every batch.
      platforms: Platforms of jax to lower it for.

    Raises:
      UserError: jax cannot lower the model for one of the platforms.
    """
    key = jax.random.key_data(jax.random.key(0))
    numbers = jax.ShapeDtypeStruct((batch_size,), jnp.uint32)
    leaves = jax.tree.leaves(params)
    structs: Structs = {
        "parameters": [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves],
        "batch": {
            name: jax.ShapeDtypeStruct((batch_size, *leaf.shape), np.dtype(leaf.dtype))
            for name, leaf in spec.leaves.items()
        },
        "key": jax.ShapeDtypeStruct(key.shape, key.dtype),
        "envs": numbers,
        "counts": numbers,
    }
    if rows:
        one = rows["embeddings"][0]
        structs["embeddings"] = jax.ShapeDtypeStruct((batch_size, *one.shape), one.dtype)
    whole = _lower(spec, params, range(len(leaves)), structs, platforms)
    # Arguments are sorted by name: the parameters are the last ones.
    first = len(whole.in_avals) - len(leaves)
    used = [number - first for number in whole.module_kept_var_idx if number >= first]
    structs["parameters"] = [structs["parameters"][number] for number in used]
    exported = _lower(spec, params, used, structs, platforms)
    return ExportedProgram(exported, structs, [np.asarray(leaves[number]) for number in used])


def _lower(
    spec: PolicySpec,
    params: Params,
    used: Sequence[int],
    structs: Structs,
    platforms: Sequence[str],
) -> jax.export.Exported:
    """Lowers the model as a function of some of its parameters; the others have to be unused."""
    leaves, tree = jax.tree.flatten(params)
    impl = jax.random.key_impl(jax.random.key(0))
    model = with_unused_dims(spec.model, spec.chain.spec[ACTION])

    def predict(
        *,
        parameters: list[jax.Array],
        batch: dict[str, jax.Array],
        key: jax.Array,
        envs: jax.Array,
        counts: jax.Array,
        embeddings: jax.Array | None = None,
    ) -> jax.Array:
        given = dict(zip(used, parameters, strict=True))
        unused = (jnp.zeros(leaf.shape, leaf.dtype) for leaf in leaves)
        every = [given.get(number, zeros) for number, zeros in enumerate(unused)]
        return sample_chunks(
            jax.tree.unflatten(tree, every),
            nest_inputs(batch),
            embeddings,
            jax.random.wrap_key_data(key, impl=impl),
            envs,
            counts,
            None,
            model=model,
            window_size=spec.data.window_size,
        )

    try:
        return jax.export.export(jax.jit(predict), platforms=platforms)(**structs)
    except (ValueError, NotImplementedError) as error:
        raise UserError(
            where=f"export --to stablehlo, platforms {', '.join(platforms)}",
            expected="a model that jax can export for each of them",
            found=f"{' '.join(str(error).split()):.300}",
            remedy="Export it for fewer platforms; --debug shows the whole error.",
        ) from error


def text_rows(spec: PolicySpec, params: Params, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the arrays with a row for each text; none if the model reads no language.

    Args:
      spec: What the model reads.
      params: Parameters of the model.
      texts: The texts, at least one.

    Returns:
      `has_text` bool (texts), `input_ids` and `attention_mask` int32 (texts n), and `embeddings`
      (texts n d).
    """
    language = spec.model.language
    if language is None:
        return {}
    table = tokenize(texts, spec.encode, language.max_length)
    embed = InstructionEncoder(spec.model, params, spec.encode)
    return {
        "has_text": table.has_text,
        "input_ids": table.input_ids,
        "attention_mask": table.attention_mask,
        "embeddings": np.stack([np.asarray(embed(text)) for text in texts]),
    }
