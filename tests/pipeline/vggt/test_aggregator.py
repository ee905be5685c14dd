"""The aggregator against what the public code gave with the same weights and images."""

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipeline.vggt import blocks
from pipeline.vggt.aggregator import Aggregator, resize_grid, to_patches
from tests.rounding import assert_equal_but_for_rounding

CASES = {
    "dino518_s1_56": "dino518",
    "dino518_s2_70": "dino518",
    "dino70_s1_70_nointerp": "dino70",
    "dino70_s1_98_upsample": "dino70",
    "conv_s2_56": "conv",
    "eps_s2_56": "eps",
}
CAPTURED = ("dino518_s1_56", "dino518_s2_70", "eps_s2_56")
"""Those of which the outputs of modules were recorded."""
TOLERANCE = 2e-6
"""Bound of the RMS of the differences over the deviation of the recorded values."""


def nrmse(found: Any, recorded: np.ndarray) -> float:
    assert found.shape == recorded.shape
    difference = np.asarray(found, np.float64) - recorded
    return float(np.sqrt(np.mean(difference**2)) / recorded.std())


def images(recorded: dict[str, np.ndarray]) -> np.ndarray:
    return recorded["images_u8"].astype(np.float32) / np.float32(255)


@pytest.fixture(scope="session")
def run(golden_model: Callable, golden_case: Callable) -> Callable[..., tuple[Any, Any]]:
    """The tokens of every layer of a case, or of some, and every module's output if asked for.

    A program that returns every module's output takes twice as long to compile.
    """

    def apply(
        case: str, layers: tuple[int, ...] | None = None, *, captures: bool = False, **settings: Any
    ) -> Any:
        model = golden_model(CASES[case])
        module = Aggregator(model.config, layers or tuple(range(model.config.num_layers)))
        module = module.clone(**settings)
        captured: Any = functools.partial(
            module.apply, capture_intermediates=captures, mutable=["intermediates"]
        )
        with jax.default_matmul_precision("highest"):
            outputs, state = jax.jit(captured)(
                {"params": first(model.params, module.layers[-1] + 1)},
                images(golden_case(case)),
            )
        return jax.device_get((outputs, state.get("intermediates")))

    return apply


@pytest.fixture(scope="session")
def whole(run: Callable) -> Callable[[str], tuple[Any, Any]]:
    """`run` of every layer of a case, once, with the outputs that were recorded."""
    return functools.cache(lambda case: run(case, captures=case in CAPTURED))


def first(params: dict[str, Any], num_layers: int) -> dict[str, Any]:
    return params | {"blocks": jax.tree.map(lambda leaf: leaf[:num_layers], params["blocks"])}


def errors(outputs: dict[int, np.ndarray], recorded: dict[str, np.ndarray]) -> list[float]:
    return [nrmse(outputs[layer], recorded[f"output_list/{layer:02}"]) for layer in outputs]


@pytest.mark.parametrize("case", CASES)
def test_every_layer_is_the_recorded_one(case: str, whole: Callable, golden_case: Callable) -> None:
    recorded = golden_case(case)
    outputs, _ = whole(case)
    assert len(outputs) == len([name for name in recorded if name.startswith("output_list")])
    assert all(tokens.dtype == np.float32 for tokens in outputs.values())
    assert max(errors(outputs, recorded)) < TOLERANCE


@pytest.mark.parametrize("case", CAPTURED)
def test_what_lies_between_is_the_recorded_one(
    case: str, whole: Callable, golden_case: Callable
) -> None:
    recorded, captured = golden_case(case), whole(case)[1]
    backbone, pairs = captured["patch_embed"], captured["blocks"]

    def output(of: Any, *names: str) -> Any:
        for name in names:
            of = of[name]
        return of["__call__"][0]

    found = {
        "dino/conv_tokens": output(backbone, "patch_embed"),
        "dino/x_norm": output(backbone, "norm"),
        "patch_tokens": output(backbone),
    }
    for number, tokens in enumerate(output(backbone, "blocks", "block")):
        found[f"dino/block_{number:02}"] = tokens
    for kind in ("frame", "global"):
        found[f"{kind}0/attn_out"] = output(pairs, kind, "attn")[0]
        for part in ("q", "k"):
            heads = output(pairs, kind, "attn", f"{part}_norm")[0]
            found[f"{kind}0/{part}_after_norm"] = heads.swapaxes(1, 2)
    missing = {name for name in recorded if "/" in name} - {*found}
    assert {name.partition("/")[2] for name in missing if not name.startswith("output")} == {
        *("pos", "q_after_rope", "k_after_rope", "pos_embed_interp")
    }
    for name, tokens in found.items():
        assert nrmse(tokens, recorded[name]) < TOLERANCE, name


@pytest.mark.parametrize("case", CAPTURED)
def test_positions_are_resized_as_recorded(
    case: str, golden_model: Callable, golden_case: Callable
) -> None:
    positions = golden_model(CASES[case]).params["patch_embed"]["pos_embed"]
    recorded = golden_case(case)["dino/pos_embed_interp"]
    side = int(np.sqrt(recorded.shape[1] - 1))
    resized = resize_grid(jnp.asarray(positions[:, 1:]), side, side)
    assert nrmse(resized, recorded[:, 1:]) < TOLERANCE
    np.testing.assert_array_equal(positions[:, :1], recorded[:, :1])


@pytest.mark.parametrize(
    ("case", "layers", "kept", "part"),
    [
        ("conv_s2_56", (0,), "special", slice(5)),
        ("conv_s2_56", (1,), "patches", slice(5, None)),
        ("dino518_s1_56", (0, 2), "all", slice(None)),
    ],
)
def test_layers_and_tokens_that_are_not_asked_for_leave_no_trace(
    case: str,
    layers: tuple[int, ...],
    kept: str,
    part: slice,
    run: Callable,
    golden_case: Callable,
) -> None:
    outputs, _ = run(case, layers, kept=kept)
    assert tuple(outputs) == layers
    for layer, tokens in outputs.items():
        recorded = golden_case(case)[f"output_list/{layer:02}"]
        assert nrmse(tokens, recorded[:, :, part]) < TOLERANCE


def test_images_need_not_be_square(golden_model: Callable) -> None:
    """Turned on their side, and their rows and columns swapped in the model, they are the same."""
    model = golden_model("conv")
    config, params = model.config, first(model.params, 1)
    wide = np.random.default_rng(0).random((1, 2, 28, 70, 3), np.float32)
    apply = jax.jit(Aggregator(config, (0,)).apply)
    tokens = np.asarray(apply({"params": params}, wide)[0])
    assert tokens.shape == (1, 2, 5 + 2 * 5, 64)
    swapped = jax.tree.map(np.array, params)
    kernel = swapped["patch_embed"]["proj"]["kernel"]
    kernel[...] = kernel.reshape(14, 14, 3, -1).swapaxes(0, 1).reshape(kernel.shape)
    for block in swapped["blocks"].values():
        attention = block["attn"]
        for leaf in jax.tree.leaves([attention["q_norm"], attention["k_norm"]]):
            leaf[...] = swap_halves(leaf)
        for leaf in attention["qkv"].values():
            leaf[...] = np.concatenate(
                [*map(swap_heads, np.split(leaf, 3, -1)[:2]), np.split(leaf, 3, -1)[2]], -1
            )
    tall = np.asarray(apply({"params": swapped}, wide.swapaxes(2, 3))[0])
    assert_equal_but_for_rounding(tall[:, :, :5], tokens[:, :, :5])
    turned = tall[:, :, 5:].reshape(1, 2, 5, 2, -1).swapaxes(2, 3).reshape(1, 2, 10, -1)
    assert_equal_but_for_rounding(turned, tokens[:, :, 5:])


def swap_halves(heads: np.ndarray) -> np.ndarray:
    return np.concatenate(np.split(heads, 2, -1)[::-1], -1)


def swap_heads(leaf: np.ndarray) -> np.ndarray:
    return swap_halves(leaf.reshape(*leaf.shape[:-1], 2, -1)).reshape(leaf.shape)


def test_a_grid_is_resized_row_by_row() -> None:
    rows = jnp.asarray(np.arange(4, dtype=np.float32).repeat(4).reshape(1, 16, 1))
    resized = np.asarray(resize_grid(rows, 8, 3)).reshape(8, 3)
    assert_equal_but_for_rounding(resized, resized[:, :1].repeat(3, axis=1), terms=32)
    assert (np.diff(resized[:, 0]) > 0).all()


def test_patches_are_rows_of_pixels() -> None:
    images = np.arange(28 * 42 * 3, dtype=np.float32).reshape(1, 28, 42, 3)
    patches = np.asarray(to_patches(jnp.asarray(images)))
    assert patches.shape == (1, 6, 588)
    np.testing.assert_array_equal(patches[0, 1], images[0, :14, 14:28].ravel())
    np.testing.assert_array_equal(patches[0, 3], images[0, 14:, :14].ravel())


MUTATIONS = {
    "backbone_epsilon": (mock.patch("pipeline.vggt.aggregator.DINO_EPSILON", 1e-5), "eps_s2_56"),
    "epsilon": (mock.patch("pipeline.vggt.aggregator.EPSILON", 1e-6), "eps_s2_56"),
    "head_epsilon": (mock.patch.object(blocks, "EPSILON", 1e-6), "eps_s2_56"),
    "tanh": (mock.patch.object(nn, "gelu", lambda x, approximate: jax.nn.gelu(x)), "conv_s2_56"),
    "base": (mock.patch.object(blocks, "_BASE", 1e4), "conv_s2_56"),
    "first_view": (mock.patch("numpy.minimum", lambda a, _: a * 0), "conv_s2_56"),
    "positions": (
        mock.patch("pipeline.vggt.aggregator.view_angles", lambda *a: blocks.view_angles(*a) * 0),
        "conv_s2_56",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_detail_is_seen(name: str, run: Callable, golden_case: Callable) -> None:
    """What the tolerance is worth: each of these would pass an eye."""
    mutation, case = MUTATIONS[name]
    with mutation:
        assert max(errors(run(case)[0], golden_case(case))) > 20 * TOLERANCE
