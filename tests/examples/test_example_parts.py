"""The files of examples/parts: parts of a model that the library knows nothing of."""

import dataclasses
import importlib
import json
import pathlib
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pipeline.errors import UserError
from pipeline.files import from_json_text, to_json_values
from pipeline.parts.part_files import load_parts
from train.octo.functional import draw_by_sample, init_params, input_spec, losses_fn, sample_axes
from train.octo.model import OctoModule
from train.octo.octo_config import OctoConfig, TransformerConfig
from train.octo.protocols import HeadConfig, TokenizerConfig
from train.octo.token_groups import TokenGroup, draw_tokens

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "parts"
KEY = jax.random.key(0)


def part(name: str) -> types.ModuleType:
    load_parts(FOLDER / f"{name}.py")
    return importlib.import_module(name)


depth_tokenizer, force_torque, flow_matching_head = (
    part(name) for name in ("depth_tokenizer", "force_torque", "flow_matching_head")
)
DEPTH = depth_tokenizer.DepthTokenizerConfig(8, 12, patch=4, features=8)
WRENCH = force_torque.ForceTorqueConfig()
HEAD = flow_matching_head.FlowMatchingConfig(2, 3, hidden_dim=32)
MODEL = OctoConfig(
    embedding_dim=32,
    max_horizon=2,
    transformer=TransformerConfig(num_layers=1, mlp_dim=32, num_heads=2),
    images=(),
    language=None,
    head=HEAD,
    tokenizers=(DEPTH, WRENCH),
)


def tokens_of(config: TokenizerConfig, array: Any, **masks: Any) -> TokenGroup:
    """The tokens of an array (b w ...), whose steps are all real."""
    real = jnp.ones(array.shape[:2], bool)
    (key,) = config.inputs
    observation = {key: array, "timestep_pad_mask": real, "pad_mask_dict": masks}
    module = config.make_tokenizer("float32")
    return module.init_with_output(KEY, observation, {})[0]


def test_ours_and_theirs_are_of_one_kind() -> None:
    assert isinstance(HEAD, HeadConfig)
    assert all(isinstance(part, TokenizerConfig) for part in (DEPTH, WRENCH))
    assert MODEL.input_keys == ("depth_primary", "force_torque")
    assert [line.split()[1:3] for line in draw_tokens(MODEL, 2).splitlines()[3:]] == [
        ["obs_depth", "6"],
        ["obs_force_torque", "2"],
        ["readout_action", "1"],
    ]


def test_a_model_of_such_parts_is_read_as_it_was_written() -> None:
    values = to_json_values(MODEL)
    assert [part["part"] for part in values["tokenizers"]] == [
        "DepthTokenizerConfig",
        "ForceTorqueConfig",
    ]
    assert values["head"]["file"] == "flow_matching_head.py"
    assert from_json_text(OctoConfig, json.dumps(values), where="config.json", remedy="") == MODEL


def random_batch() -> dict[str, Any]:
    """A batch of 4 samples whose steps and actions are all real."""
    rng = np.random.default_rng(0)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        is_mask = leaf.dtype == bool
        return jnp.asarray(np.ones(leaf.shape) if is_mask else rng.normal(size=leaf.shape)).astype(
            leaf.dtype
        )

    return jax.tree.map(fill, input_spec(MODEL, 4, 2))


def test_a_model_of_such_parts_learns_and_acts() -> None:
    batch, module, adam = random_batch(), OctoModule(MODEL), optax.adam(3e-3)

    @jax.jit
    def run(key: jax.Array) -> Any:
        def step(state: Any, key: jax.Array) -> Any:
            noise = HEAD.draw_training_noise(key, (4, 2))
            losses = jax.value_and_grad(lambda p: losses_fn(module, p, batch, noise)["loss"])
            loss, gradient = losses(state[0])
            with jax.numpy_dtype_promotion("standard"):  # optax mixes Python and array scalars
                updates, optimizer = adam.update(gradient, state[1])
            return (optax.apply_updates(state[0], updates), optimizer), loss

        params = init_params(MODEL, key)
        state, losses = jax.lax.scan(step, (params, adam.init(params)), jax.random.split(key, 600))
        noise = draw_by_sample(HEAD, jax.random.split(key, 4), 2)
        inputs = batch["observation"], batch["task"], noise
        return losses, module.apply({"params": state[0]}, *inputs, method="sample_actions")

    losses, actions = run(KEY)
    assert losses[-50:].mean() < 0.3 * losses[:50].mean()
    # The four samples differ in depth and force alone, and each gets its own actions.
    wanted = batch["action"][:, -1]
    errors = np.abs(actions[:, None] - wanted[None]).mean(axis=(2, 3))
    assert errors.argmin(axis=1).tolist() == [0, 1, 2, 3]
    assert np.diag(errors).max() < 0.35


def test_a_patch_without_a_reading_is_masked_and_a_far_one_reads_as_none() -> None:
    depth = np.full((1, 1, 8, 12, 1), 1.0, np.float32)
    depth[0, 0, :4, :4] = 0  # the first patch of six
    depth[0, 0, 4:, 8:] = 2.5  # the last, beyond max_depth_m
    group = tokens_of(DEPTH, jnp.asarray(depth))
    assert group.tokens.shape == (1, 1, 6, 8)
    assert group.mask[0, 0].tolist() == [False, True, True, True, True, False]
    np.testing.assert_array_equal(group.tokens[0, 0, 0], group.tokens[0, 0, 5])
    np.testing.assert_array_equal(group.tokens[0, 0, 1], group.tokens[0, 0, 2])
    assert np.abs(group.tokens[0, 0, 0] - group.tokens[0, 0, 1]).max() > 1e-3
    missing = tokens_of(DEPTH, jnp.asarray(depth), depth_primary=jnp.zeros((1, 1), bool))
    assert not missing.mask.any()
    with pytest.raises(UserError, match=r"patch: expected a number that divides 8 and 12.*found 5"):
        dataclasses.replace(DEPTH, patch=5)


def test_a_wrench_becomes_directions_and_the_logarithms_of_its_magnitudes() -> None:
    wrench = jnp.array([[[3.0, 0.0, 4.0, 0.0, 0.0, 0.0], [30.0, 0.0, 40.0, 0.0, -0.05, 0.0]]])
    tokens = tokens_of(WRENCH, wrench).tokens
    assert tokens.shape == (1, 2, 2, 4)
    np.testing.assert_allclose(tokens[0, :, 0, :3], [[0.6, 0, 0.8]] * 2, atol=1e-6)
    np.testing.assert_allclose(tokens[0, :, 0, 3], np.log([6.0, 51.0]), rtol=1e-6)
    np.testing.assert_array_equal(tokens[0, 0, 1], 0)  # no torque has no direction
    np.testing.assert_allclose(tokens[0, 1, 1], [0, -1, 0, np.log(2)], rtol=1e-6)


class KnownVelocity(flow_matching_head.FlowMatchingHead):
    """A head whose velocity leads straight to an action of 0.5."""

    def velocity(self, readout: jax.Array, x: jax.Array, time: jax.Array) -> jax.Array:
        return (0.5 - x) / (1 - time)


def test_the_right_velocity_has_no_loss_and_leads_from_noise_to_the_action() -> None:
    head = KnownVelocity(HEAD)
    readout, action = jnp.zeros((2, 2, 1, 4)), jnp.full((2, 2, 2, 3), 0.5)
    mask = jnp.ones(action.shape, bool).at[..., 2].set(False)
    noise = HEAD.draw_training_noise(KEY, (2, 2))
    unused = action.at[..., 2].set(3.0)  # it has no weight
    loss = head.apply({}, readout, unused, mask, noise, method="loss")
    np.testing.assert_allclose(loss, 0, atol=1e-8)
    start = draw_by_sample(HEAD, jax.random.split(KEY, 2), 2)
    sampled = head.apply({}, readout, start, method="sample")
    np.testing.assert_allclose(sampled, action[:, -1], atol=1e-5)
    # To another action the velocity is wrong by (0.5 - action) / (1 - time), at every time.
    wrong = head.apply({}, readout, action - 2.0, mask, noise, method="loss")
    np.testing.assert_allclose(wrong, jnp.square(2.0 / (1 - noise.time)).mean(), rtol=1e-4)


def test_the_noise_of_a_head_of_ones_own_is_laid_out_as_it_likes() -> None:
    assert sample_axes(HEAD.draw_training_noise, 2) == (0, 0)
    assert sample_axes(HEAD.draw_sampling_noise, 2) == 0
