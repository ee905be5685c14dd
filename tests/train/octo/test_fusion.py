"""Six ways for geometry tokens into the model: what each adds, starts from, reads and learns."""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from pipeline.errors import UserError
from pipeline.files import from_json_text, to_json_values
from tests.parameters import random_params
from tests.rounding import assert_equal_but_for_rounding
from train.flags import load_config
from train.octo.attention import READOUT, Kind
from train.octo.functional import init_params, input_spec, loss_fn, losses_fn, sample_actions
from train.octo.fusion import Alignment, PatchFusion
from train.octo.geometry_config import Fusion
from train.octo.model import OctoModule, OctoTransformer
from train.octo.octo_config import (
    ImageTokenizerConfig,
    LowdimTokenizerConfig,
    OctoConfig,
    RegressionConfig,
    TransformerConfig,
    VGGTTokenizerConfig,
)
from train.octo.released.config_differences import find_changed_meanings
from train.octo.released.weight_loading import Allowed, Pretrained, merge
from train.octo.released.weights_report import LoadRow
from train.octo.token_groups import TokenGroup, draw_tokens, group_spans
from train.octo.tokenizer_inputs import read_steps
from train.octo.vggt_tokens import TokenLearner, VGGTTokenizer, resize_grid
from train.train_config import AugmentConfig
from train.update.optimizer import learning_rate
from train.update.train_state import first_state
from train.update.train_step import make_train_step

STEM = (32,)
VGGT = VGGTTokenizerConfig(num_tokens=14, token_dim=8, grid=(3, 3))
BASE = OctoConfig(
    embedding_dim=16,
    max_horizon=2,
    transformer=TransformerConfig(num_layers=1, mlp_dim=32, num_heads=2),
    images=(ImageTokenizerConfig("primary", "image_primary", 4, STEM, stem_dim=8),),
    language=None,
    head=RegressionConfig(pooling="mean", action_horizon=2, action_dim=3),
)
"""A camera of 2 x 2 tokens."""
WRIST = ImageTokenizerConfig("wrist", "image_wrist", 2, STEM, stem_dim=8)
"""A camera of one token."""
FUSIONS: list[Fusion] = ["tokens", "features", "registers", "gated", "only", "align"]
GROUPED: list[Fusion] = ["tokens", "registers", "only"]
ADDED: list[Fusion] = ["features", "gated"]


def model(fusion: Fusion, **changes: Any) -> OctoConfig:
    vggt = dataclasses.replace(VGGT, fusion=fusion, **changes)
    return dataclasses.replace(BASE, vggt=vggt)


def make_batch(config: OctoConfig, samples: int = 2, window: int = 2, seed: int = 0) -> Any:
    """Random images, tokens and actions; all steps, tokens and actions are real."""
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.dtype == bool:
            return jnp.ones(leaf.shape, bool)
        if leaf.dtype == jnp.uint8:
            return jnp.asarray(rng.integers(0, 256, leaf.shape, np.uint8))
        return jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)

    batch = jax.tree.map(draw, input_spec(config, samples, window))
    present = {key: jnp.ones((samples, window), bool) for key in config.token_keys}
    return with_observation(batch, pad_mask_dict=present)


def with_observation(batch: Any, **changes: Any) -> Any:
    return batch | {"observation": batch["observation"] | changes}


def without_tokens(batch: Any) -> Any:
    kept = {k: v for k, v in batch["observation"].items() if k != "vggt_tokens"}
    return batch | {"observation": kept}


def perturbed(params: Any) -> Any:
    """Parameters none of which is zero: whatever is closed at the start is open."""
    rng = np.random.default_rng(7)
    return jax.tree.map(
        lambda x: jnp.asarray(x + np.float32(0.3 * rng.normal(size=x.shape))), params
    )


def readout(config: OctoConfig, params: Any, batch: Any) -> np.ndarray:
    return np.asarray(_outputs(config)(params, batch)[0])


def losses_of(config: OctoConfig, params: Any, batch: Any) -> Any:
    return _outputs(config)(params, batch)[1]


@functools.cache
def _outputs(config: OctoConfig) -> Any:
    """The readout and the losses, in one program: most of it is the transformer of both."""
    captured = functools.partial(
        OctoModule(config).apply,
        method="losses",
        capture_intermediates=lambda part, _: isinstance(part, OctoTransformer),
        mutable=["intermediates"],
    )

    def run(params: Any, batch: Any) -> Any:
        losses, state = captured({"params": params}, batch, None)
        (groups,) = state["intermediates"]["octo_transformer"]["__call__"]
        return groups[READOUT].tokens, losses

    return jax.jit(run)


@functools.cache
def _gradient(config: OctoConfig) -> Any:
    return jax.jit(jax.grad(lambda p, b: losses_fn(OctoModule(config), p, b, None)["loss"]))


@functools.cache
def fresh(config: OctoConfig) -> Any:
    return jax.jit(lambda key: init_params(config, key))(jax.random.key(1))


def flat(params: Any) -> dict[str, Any]:
    return dict(traverse_util.flatten_dict(params, sep="/"))


@pytest.fixture(scope="module")
def plain() -> Any:
    """Parameters of the model without geometry tokens."""
    return fresh(BASE)


def merged(config: OctoConfig, plain: Any) -> tuple[Any, tuple[LoadRow, ...]]:
    params, report = merge(
        config, fresh(config), Pretrained(BASE, plain), Allowed(("octo_transformer/*vggt*",))
    )
    return params, report.rows


@pytest.mark.parametrize("fusion", ["features", "gated", "align"])
def test_step_0_is_the_model_without_tokens(fusion: Fusion, plain: Any) -> None:
    config = model(fusion)
    params, rows = merged(config, plain)
    assert {row.status for row in rows if "vggt" in row.path} == {"new"}
    assert {row.status for row in rows if "vggt" not in row.path} == {"loaded"}
    batch = make_batch(config)
    expected = readout(BASE, plain, without_tokens(batch))
    assert_equal_but_for_rounding(readout(config, params, batch), expected)


@pytest.mark.parametrize("fusion", ["tokens", "registers"])
def test_tokens_that_are_attended_to_change_step_0(fusion: Fusion, plain: Any) -> None:
    config = model(fusion)
    params, _ = merged(config, plain)
    batch = make_batch(config)
    expected = readout(BASE, plain, without_tokens(batch))
    assert np.abs(readout(config, params, batch) - expected).max() > 1e-3


def test_only_leaves_the_camera_without_a_place_and_unread(plain: Any) -> None:
    config = model("only")
    with pytest.raises(UserError, match=r"the checkpoint has images\.primary, the"):
        merged(config, plain)
    allowed = Allowed(("octo_transformer/*vggt*", "octo_transformer/*primary*"))
    _, report = merge(config, fresh(config), Pretrained(BASE, plain), allowed)
    unused = {row.path.split("/")[1] for row in report.rows if row.status == "unused"}
    names = {"obs_primary_pos_embedding", "obs_primary_projection"}
    assert unused == names | {"observation_tokenizers_primary"}
    assert "image_primary" not in input_spec(config, 1, 1)["observation"]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_training_lowers_the_loss_and_moves_every_new_parameter(fusion: Fusion) -> None:
    """All samples share their images: except for `align`, only tokens distinguish their actions."""
    config = model(fusion)
    batch = make_batch(config, samples=4, window=1)
    if fusion != "align":
        images = {k: v * 0 + 100 for k, v in batch["observation"].items() if "image" in k}
        batch = with_observation(batch, **images)
    module, optimizer = OctoModule(config), optax.adam(3e-3)
    start = fresh(config)

    def step(carry: Any, _: Any) -> Any:
        def loss_of(params: Any) -> Any:
            losses = losses_fn(module, params, batch, None)
            return losses["loss"], losses

        params, state = carry
        (_, losses), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(params, updates), state), losses

    with jax.numpy_dtype_promotion("standard"):
        train = jax.jit(lambda carry: jax.lax.scan(step, carry, length=100))
        (params, _), losses = train((start, optimizer.init(start)))
    actions = np.asarray(batch["action"][:, 0])
    # The best prediction without tokens; the loss of the head has the factor action_dim.
    blind = 3 * np.abs(actions - np.median(actions, axis=0)).mean()
    assert losses["loss"][0] > 0.9 * blind
    assert losses["loss"][-1] < 0.6 * blind
    assert ("align_loss" in losses) == (fusion == "align")
    if fusion == "align":
        assert losses["align_loss"][-1] < losses["align_loss"][0] - 0.2
    before, after = flat(start), flat(params)
    new = [path for path in before if "vggt" in path]
    assert new
    assert all(np.abs(after[path] - before[path]).max() > 1e-3 for path in new)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_layout_and_model_agree_on_the_groups(fusion: Fusion) -> None:
    config = model(fusion)
    batch = make_batch(config)
    groups = jax.eval_shape(
        lambda p, b: OctoModule(config).apply({"params": p}, b["observation"], b["task"]),
        fresh(config),
        batch,
    )
    _, timestep = group_spans(config)
    assert {s.name: s.num_tokens for s in timestep} == {
        name: group.tokens.shape[2] for name, group in groups.items() if name != "obs"
    }
    assert ("obs_vggt" in groups) == (fusion in GROUPED)
    assert ("obs_primary" in groups) == (fusion != "only")
    is_drawn = f"vggt: {fusion} with obs_primary, no tokens" in draw_tokens(config, 2)
    assert is_drawn == (fusion not in GROUPED)


def test_registers_are_the_first_tokens_alone() -> None:
    config = model("registers")
    params, batch = perturbed(fresh(config)), make_batch(config)
    tokens = batch["observation"]["vggt_tokens"]
    patches, register = tokens.at[:, :, 5:].add(1), tokens.at[:, -1, 4, 0].add(1)
    plain, same, other = (
        readout(config, params, with_observation(batch, vggt_tokens=changed))
        for changed in (tokens, patches, register)
    )
    np.testing.assert_array_equal(plain, same)
    assert np.abs(plain - other).max() > 1e-4


@pytest.mark.parametrize("fusion", ADDED)
def test_a_patch_reaches_the_token_at_its_place_and_special_tokens_none(fusion: Fusion) -> None:
    vggt = dataclasses.replace(VGGT, fusion=fusion, num_tokens=9, grid=(2, 2))
    tokenizer, fuse = VGGTTokenizer(vggt), PatchFusion(fusion == "gated", (2, 2), (2, 2))
    camera = TokenGroup(jnp.ones((1, 1, 4, 6)), jnp.ones((1, 1, 4), bool), Kind.OBSERVATION)

    @jax.jit
    def run(params: Any, tokens: jax.Array) -> Any:
        observation = {"vggt_tokens": tokens, "timestep_pad_mask": jnp.ones((1, 1), bool)}
        patches, _ = tokenizer.init_with_output(jax.random.key(0), observation, {})
        if params is None:
            return fuse.init(jax.random.key(0), camera, patches)
        return fuse.apply(params, camera, patches).tokens

    tokens = np.random.default_rng(0).normal(size=(1, 1, 9, 8)).astype(np.float32)
    special, patch = tokens.copy(), tokens.copy()
    special[:, :, :5] += np.arange(8)
    patch[:, :, 7, 0] += 3
    params = perturbed(run(None, tokens))
    before, same, other = (np.asarray(run(params, one)) for one in (tokens, special, patch))
    np.testing.assert_array_equal(before, same)
    moved = np.abs(other - before).max((0, 1, 3))
    assert (moved > 1e-3).tolist() == [False, False, True, False]


@pytest.mark.parametrize("fusion", ADDED)
@pytest.mark.parametrize("padding", ["missing", "padded"])
def test_missing_tokens_add_nothing_even_if_they_are_nan(fusion: Fusion, padding: str) -> None:
    config = model(fusion)
    params, batch = perturbed(fresh(config)), make_batch(config)
    none = jnp.zeros((2, 2), bool)
    key = "timestep_pad_mask" if padding == "padded" else "pad_mask_dict"
    mask = none if padding == "padded" else {"vggt_tokens": none}
    garbage = batch["observation"]["vggt_tokens"] * jnp.nan
    missing = with_observation(batch, vggt_tokens=garbage, **{key: mask})
    shared = {k: v for k, v in flat(params).items() if "vggt" not in k}
    expected = readout(
        BASE,
        traverse_util.unflatten_dict(shared, sep="/"),
        without_tokens(with_observation(batch, **{key: mask})),
    )
    assert_equal_but_for_rounding(readout(config, params, missing), expected)
    assert np.abs(readout(config, params, batch) - expected).max() > 1e-2
    gradient = _gradient(config)(params, missing)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("fusion", GROUPED)
def test_missing_tokens_of_a_group_are_masked_whatever_they_are(fusion: Fusion) -> None:
    config = model(fusion)
    params, batch = perturbed(fresh(config)), make_batch(config)
    tokens = batch["observation"]["vggt_tokens"]
    mask = {"vggt_tokens": jnp.zeros((2, 2), bool)}
    zeros, garbage = (
        readout(config, params, with_observation(batch, vggt_tokens=t, pad_mask_dict=mask))
        for t in (tokens * 0, tokens * jnp.nan)
    )
    np.testing.assert_array_equal(zeros, garbage)
    assert np.abs(zeros - readout(config, params, batch)).max() > 1e-2


@pytest.mark.parametrize("fusion", FUSIONS)
def test_tokens_of_the_current_step_alone_are_those_of_a_window_that_lacks_the_others(
    fusion: Fusion,
) -> None:
    config = model(fusion)
    params, batch = perturbed(fresh(config)), make_batch(config)
    tokens = batch["observation"]["vggt_tokens"]
    current = with_observation(batch, vggt_tokens=tokens[:, -1:])
    present = {"vggt_tokens": jnp.array([[False, True]] * 2)}
    lacking = with_observation(batch, pad_mask_dict=present)
    found, expected, whole = (losses_of(config, params, one) for one in (current, lacking, batch))
    assert found.keys() == expected.keys()
    assert_equal_but_for_rounding(found, expected)
    assert abs(float(found["loss"] - whole["loss"])) > 1e-4


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_missing_column_is_an_error_with_its_remedy(fusion: Fusion) -> None:
    config = model(fusion)
    params, batch = fresh(config), without_tokens(make_batch(config))
    message = "expected 'vggt_tokens', which the tokenizer 'vggt' reads; .* Add 'vggt_tokens'"
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda p: losses_fn(OctoModule(config), p, batch, None), params)


def test_tokens_of_another_window_are_an_error() -> None:
    config = model("gated")
    params = fresh(config)
    batch = make_batch(dataclasses.replace(config, max_horizon=3), window=2)
    tokens = jnp.zeros((2, 3, 14, 8), jnp.float16)
    batch = with_observation(batch, vggt_tokens=tokens)
    with pytest.raises(
        UserError, match=r"vggt_tokens: expected at most the 2 steps of the .* found 3"
    ):
        jax.eval_shape(lambda p: losses_fn(OctoModule(config), p, batch, None), params)


def test_an_aligned_model_acts_and_is_validated_without_tokens(plain: Any) -> None:
    config = model("align")
    params, _ = merged(config, plain)
    batch, key = make_batch(config), jax.random.key(0)
    bare = without_tokens(batch)

    def run(config: OctoConfig, params: Any) -> Any:
        module = OctoModule(config)

        @jax.jit
        def both(params: Any) -> Any:
            actions = sample_actions(module, params, bare["observation"], {}, key)
            return actions, loss_fn(module, params, bare, None)

        return both(params)

    (found, loss), (expected, plain_loss) = run(config, params), run(BASE, plain)
    assert_equal_but_for_rounding((found, loss), (expected, plain_loss))
    losses = losses_of(config, params, batch)
    assert_equal_but_for_rounding(losses["loss"], loss + 0.5 * losses["align_loss"])


def align(tokens: jax.Array, mask: jax.Array, observation: Any, params: Any = None) -> Any:
    """Loss and parameters of an alignment of a camera of 3 x 3 tokens."""
    group = TokenGroup(tokens, mask, Kind.OBSERVATION)
    init, apply = _alignment()
    if params is None:
        params = init(jax.random.key(0), group, observation)
    return apply(params, group, observation), params


@functools.cache
def _alignment() -> tuple[Any, Any]:
    module = Alignment(dataclasses.replace(VGGT, fusion="align"), (3, 3))
    return jax.jit(module.init), jax.jit(module.apply)


def test_alignment_is_one_less_the_cosine_of_the_real_tokens() -> None:
    rng = np.random.default_rng(0)
    tokens, wanted = (np.float32(rng.normal(size=(2, 1, n, 8))) for n in (9, 14))
    real = np.ones((2, 1), bool)
    observation = {
        "vggt_tokens": wanted,
        "timestep_pad_mask": real,
        "pad_mask_dict": {"vggt_tokens": real},
    }
    mask = np.ones((2, 1, 9), bool)
    whole, params = align(tokens, mask, observation)
    dense, last = (params["params"][f"Dense_{i}"] for i in range(2))
    normal = (tokens - tokens.mean(-1, keepdims=True)) / tokens.std(-1, keepdims=True)
    found = np.asarray(jax.nn.gelu(normal @ dense["kernel"]) @ last["kernel"])
    patches = wanted[:, :, 5:]
    patches = patches - patches.mean(-1, keepdims=True)
    cosine = (found * patches).sum(-1)
    cosine = cosine / np.linalg.norm(found, axis=-1) / np.linalg.norm(patches, axis=-1)
    np.testing.assert_allclose(whole, 1 - cosine.mean(), atol=1e-4)
    lacking = observation | {"pad_mask_dict": {"vggt_tokens": np.array([[True], [False]])}}
    np.testing.assert_allclose(
        align(tokens, mask, lacking, params)[0], 1 - cosine[0].mean(), atol=1e-4
    )
    unseen = mask & np.array([False, True])[:, None, None]
    np.testing.assert_allclose(
        align(tokens, unseen, observation, params)[0], 1 - cosine[1].mean(), atol=1e-4
    )
    np.testing.assert_allclose(align(tokens, unseen, lacking, params)[0], 0)


def test_a_grid_is_resized_as_an_image() -> None:
    ramp = jnp.arange(4.0)[None, None, :, None] + 10 * jnp.arange(4.0)[None, :, None, None]
    tokens = ramp.reshape(1, 1, 16, 1)
    assert resize_grid(tokens, (4, 4), (4, 4)) is tokens
    half = resize_grid(tokens, (4, 4), (2, 2))[0, 0, :, 0]
    # Each of the four is a mean with weights 3, 3, 1 of three rows, and of three columns.
    low, high = 5 / 7, 16 / 7
    expected = [11 * low, 10 * low + high, 10 * high + low, 11 * high]
    np.testing.assert_allclose(half, expected, rtol=1e-5)
    np.testing.assert_allclose(resize_grid(tokens, (2, 8), (1, 1)), [[[[16.5]]]], rtol=1e-5)


def reduced(**changes: Any) -> tuple[VGGTTokenizerConfig, TokenGroup, Any]:
    config = dataclasses.replace(VGGT, **changes)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.normal(size=(2, 2, 14, 8)), jnp.float32)
    observation = {"vggt_tokens": tokens, "timestep_pad_mask": jnp.ones((2, 2), bool)}
    tokenizer = VGGTTokenizer(config)
    init = jax.jit(tokenizer.init_with_output)
    group, variables = init(jax.random.key(0), observation, {})
    return config, group, variables["params"]


@pytest.mark.parametrize(
    ("reduction", "size", "shape", "names"),
    [
        ("none", None, (14, 8), {"LayerNorm_0"}),
        ("project", 3, (14, 3), {"LayerNorm_0", "project"}),
        ("token_learner", 4, (4, 8), {"LayerNorm_0", "token_learner"}),
        ("pool", 4, (9, 8), {"LayerNorm_0"}),
    ],
)
def test_a_reduction_leaves_so_many_tokens_of_such_a_size(
    reduction: Any, size: int | None, shape: tuple[int, int], names: set[str]
) -> None:
    config, group, params = reduced(reduction=reduction, reduced_to=size)
    assert group.tokens.shape == (2, 2, *shape)
    assert group.mask.shape == group.tokens.shape[:-1]
    assert group.mask.all()
    assert set(params) == names
    assert config.tokens_per_step == shape[0]


def test_pooling_keeps_the_special_tokens_and_averages_the_patches() -> None:
    _, whole, _ = reduced()
    _, pooled, _ = reduced(reduction="pool", reduced_to=1)
    np.testing.assert_array_equal(pooled.tokens[:, :, :5], whole.tokens[:, :, :5])
    weights = np.outer([2, 3, 2], [2, 3, 2]).ravel() / 49
    expected = np.einsum("n,bwnd->bwd", weights, whole.tokens[:, :, 5:])
    np.testing.assert_allclose(pooled.tokens[:, :, 5], expected, atol=1e-5)


def test_a_learnt_token_is_a_mean_of_all() -> None:
    tokens = np.float32(np.random.default_rng(0).normal(size=(2, 1, 14, 8)))
    learner = TokenLearner(3)
    variables = perturbed(jax.jit(learner.init)(jax.random.key(1), tokens))
    learn = jax.jit(learner.apply)
    found = np.asarray(learn(variables, tokens))
    shifted = learn(variables, np.broadcast_to(tokens[:, :, :1], tokens.shape))
    expected = np.repeat(tokens[:, :, :1], 3, axis=2)
    np.testing.assert_allclose(shifted, expected, atol=1e-5)
    assert (found >= tokens.min(2, keepdims=True)).all()
    assert (found <= tokens.max(2, keepdims=True)).all()
    np.testing.assert_allclose(learn(variables, tokens[:, :, ::-1]), found, atol=1e-5)
    assert np.abs(found[:, :, 0] - found[:, :, 1]).max() > 0.01


def test_layers_are_normalised_each_by_itself_and_joined() -> None:
    config = dataclasses.replace(VGGT, more_layers=("deep",))
    rng = np.random.default_rng(0)
    first, deep = (jnp.asarray(rng.normal(size=(1, 1, 14, 8)), jnp.float32) for _ in range(2))
    observation = {"vggt_tokens": first, "deep": deep, "timestep_pad_mask": jnp.ones((1, 1), bool)}
    tokenizer = VGGTTokenizer(config)
    variables = jax.jit(tokenizer.init)(jax.random.key(0), observation, {})
    assert set(variables["params"]) == {"LayerNorm_0", "LayerNorm_1"}
    apply = jax.jit(tokenizer.apply)
    group = apply(variables, observation, {})
    loud = apply(variables, observation | {"deep": deep * 100}, {})
    assert group.tokens.shape == (1, 1, 14, 16)
    np.testing.assert_allclose(group.tokens, loud.tokens, atol=1e-4)
    np.testing.assert_allclose(group.tokens[..., 8:].std(-1), 1, atol=1e-3)
    absent = observation | {"pad_mask_dict": {"deep": jnp.zeros((1, 1), bool)}}
    assert not tokenizer.apply(variables, absent, {}).mask.any()
    one_step = {key: jnp.repeat(observation[key], 2, axis=1) for key in observation}
    one_step["deep"] = deep
    read = tokenizer.apply(variables, read_steps(one_step, config), {})
    np.testing.assert_array_equal(read.mask.all(-1), [[False, True]])
    # Two programs: one compiled as a whole, the other operation by operation.
    assert_equal_but_for_rounding(read.tokens[:, 1:], group.tokens)


def test_two_cameras_and_a_column_used_twice() -> None:
    gated = dataclasses.replace(VGGT, fusion="gated")
    wrist = dataclasses.replace(
        VGGT, observation_key="wrist_tokens", name="vggt_wrist", fusion="features", camera="wrist"
    )
    registers = dataclasses.replace(VGGT, name="vggt_registers", fusion="registers")
    images = (*BASE.images, WRIST)
    config = dataclasses.replace(BASE, images=images, vggt=gated, more_vggt=(wrist, registers))
    assert config.token_keys == ("vggt_tokens", "wrist_tokens")
    params, batch = perturbed(random_params(config)), make_batch(config)
    new = {path.split("/")[1] for path in flat(params) if "vggt" in path}
    assert {"obs_vggt_fusion", "obs_vggt_wrist_fusion", "obs_vggt_registers_projection"} <= new
    before = readout(config, params, batch)
    for key in config.token_keys:
        changed = with_observation(batch, **{key: batch["observation"][key][::-1]})
        assert np.abs(readout(config, params, changed) - before).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_special": -1}, "num_special: expected at least 0; found -1"),
        ({"align_weight": 0.0}, "align_weight: expected a finite number above 0; found 0.0"),
        (
            {"fusion": "registers", "num_special": 0},
            "num_special: expected 1 to 14, .*; found 0 for",
        ),
        (
            {"fusion": "registers", "num_special": 15},
            "num_special: expected 1 to 14, .*; found 15 for",
        ),
        (
            {"fusion": "gated", "grid": None, "num_special": 4},
            "found 14 with num_special 4 for 'vggt': 10 patches, not a square",
        ),
        ({"fusion": "align", "grid": (2, 4)}, "9 patches, not grid 2 x 4. Set num_special or"),
        ({"fusion": "align", "grid": (-3, -3)}, "9 patches, not grid -3 x -3"),
        ({"reduction": "pool"}, "reduced_to: expected a size; found None with reduction 'pool'"),
        ({"reduced_to": 4}, "reduced_to: expected None; found 4 with reduction 'none'"),
        (
            {"reduction": "pool", "reduced_to": 3},
            "reduced_to: expected a square number, .*; found 3 for 'vggt'. Use 1",
        ),
        ({"reduction": "pool", "reduced_to": 0}, "reduced_to: expected at least 1; found 0"),
        (
            {"reduction": "token_learner", "reduced_to": 14},
            "less than the 14 that 'token_learner' starts with; found 14 for 'vggt'",
        ),
        ({"reduction": "project", "reduced_to": 8}, "less than the 8 that 'project' starts"),
        (
            {"fusion": "gated", "reduction": "pool", "reduced_to": 4},
            "expected none or project for the fusion 'gated'; found pool",
        ),
        (
            {"fusion": "align", "reduction": "project", "reduced_to": 4},
            "expected none for the fusion 'align'; found project",
        ),
        (
            {"more_layers": ("vggt_tokens",)},
            "more_layers: expected other keys than observation_key, each once",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(VGGT, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vggt": dataclasses.replace(VGGT, fusion="gated", camera="top")}, "the camera 'top'"),
        ({"more_vggt": (VGGT,)}, "more_vggt: expected none where vggt is None; found 1"),
        (
            {"vggt": VGGT, "more_vggt": (VGGT,)},
            "expected one name for each; found .*'vggt', 'vggt'",
        ),
        (
            {
                "vggt": dataclasses.replace(VGGT, fusion="only"),
                "more_vggt": (dataclasses.replace(VGGT, fusion="align", name="other"),),
            },
            "'primary' of 'other', whose fusion 'align' needs it; found fusion 'only'",
        ),
        (
            {
                "vggt": dataclasses.replace(VGGT, observation_key="proprio"),
                "lowdims": (LowdimTokenizerConfig("proprio", "proprio", 8),),
            },
            "expected one observation_key for each",
        ),
    ],
)
def test_a_model_whose_parts_do_not_meet_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASE, **changes)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_crop_beside_tokens_is_an_error_in_every_mode(
    fusion: Fusion, tiny_config_path: Any
) -> None:
    config = load_config(str(tiny_config_path))
    vggt = dataclasses.replace(config.model.vggt, fusion=fusion)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vggt=vggt))
    assert config.cropped == ()
    with pytest.raises(ValueError, match="the model reads precomputed vggt_tokens; found"):
        dataclasses.replace(config, augment=AugmentConfig(cropped=("image_primary",)))


def test_training_reads_what_an_alignment_needs_and_no_image_that_is_replaced(
    tiny_config_path: Any,
) -> None:
    config = load_config(str(tiny_config_path))

    def run(fusion: Fusion, *observations: str) -> None:
        vggt = dataclasses.replace(config.model.vggt, fusion=fusion)
        model = dataclasses.replace(config.model, vggt=vggt)
        data = dataclasses.replace(config.data, observations=observations)
        dataclasses.replace(config, model=model, data=data)

    run("only", "vggt_tokens")
    with pytest.raises(
        ValueError,
        match=r"data.observations: expected vggt_tokens, which the model reads; found only",
    ):
        run("align", "image_primary")


def test_the_step_logs_the_alignment_and_micro_batches_give_that_of_the_whole(
    tiny_config_path: Any,
) -> None:
    config = load_config(str(tiny_config_path))
    observations = ("image_primary", "vggt_tokens")
    data = dataclasses.replace(
        config.data,
        observations=observations,
        conditioning="image_conditioned",
        action_horizon=2,
    )
    config = dataclasses.replace(
        config,
        model=model("align"),
        data=data,
        augment=AugmentConfig(enabled=False),
    )
    batch = make_batch(config.model, samples=4)
    found = []
    for num_micro_batches in (1, 2):
        optimizer = dataclasses.replace(config.optimizer, accumulation_steps=num_micro_batches)
        part = dataclasses.replace(config, optimizer=optimizer)
        # Without Adam, whose program for each parameter takes as long to compile as the model.
        update = optax.clip_by_global_norm(1.0)
        step = make_train_step(part, update, learning_rate(part.optimizer, 20))
        state = jax.jit(functools.partial(first_state, part, update))(random_params(part.model))
        found.append(jax.jit(step)(state, batch, None)[1])
    assert 0 < found[0]["align_loss"] < 2
    assert found[0].keys() == found[1].keys()
    for name in ("loss", "align_loss", "grad_norm"):
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-4)


def test_a_config_of_before_fusion_still_loads() -> None:
    values = to_json_values(dataclasses.replace(BASE, vggt=VGGT))
    del values["more_vggt"]
    values["vggt"] = {"num_tokens": 14, "token_dim": 8}
    values["vggt"] |= {"observation_key": "vggt_tokens", "name": "vggt"}
    loaded = from_json_text(OctoConfig, json.dumps(values), where="x", remedy="x")
    assert loaded == dataclasses.replace(BASE, vggt=VGGTTokenizerConfig(14, 8))
    again = dataclasses.replace(BASE, vggt=dataclasses.replace(VGGT, fusion="gated"))
    text = json.dumps(to_json_values(again))
    assert from_json_text(OctoConfig, text, where="x", remedy="x") == again


def test_geometry_that_means_something_else_is_reported() -> None:
    gated = model("gated")
    assert find_changed_meanings(gated, model("features")) == {}
    both, vggt = (*BASE.images, WRIST), dataclasses.replace(VGGT, fusion="gated")
    ours, theirs = (
        dataclasses.replace(BASE, images=both, vggt=dataclasses.replace(vggt, camera=camera))
        for camera in ("primary", "wrist")
    )
    assert find_changed_meanings(ours, theirs) == {
        "vggt.vggt.camera of fusion 'gated'": ("primary", "wrist")
    }
    assert find_changed_meanings(gated, model("gated", num_special=2, grid=(3, 4))) == {
        "vggt.vggt.num_special of fusion 'gated'": (5, 2),
        "vggt.vggt.grid of fusion 'gated'": ((3, 3), (3, 4)),
    }
