"""Octo's recorded inputs and outputs of a tiny model with proprioception and the L1 head."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from train.octo.functional import init_params, loss_fn, sample_actions
from train.octo.heads.regression import RegressionHead
from train.octo.model import OctoModule
from train.octo.octo_config import LowdimTokenizerConfig, OctoConfig, RegressionConfig

LAYER = 1e-5


@pytest.fixture(scope="module")
def regression(config: OctoConfig) -> OctoConfig:
    lowdim = LowdimTokenizerConfig("proprio", "proprio", num_dims=8)
    return dataclasses.replace(config, lowdims=(lowdim,), head=RegressionConfig())


@pytest.fixture(scope="module")
def b_params(golden_nest: Any) -> dict[str, Any]:
    return golden_nest("b/params")


@pytest.fixture(scope="module")
def b_batch(golden_nest: Any) -> dict[str, Any]:
    return golden_nest("b/batch")


@pytest.fixture(scope="module")
def b_recorded(golden_nest: Any) -> dict[str, Any]:
    return golden_nest("b/outputs")


@pytest.fixture(scope="module")
def outcome(regression: OctoConfig, b_params: dict, b_batch: dict) -> dict[str, Any]:
    """Groups, losses, gradients and actions of the recorded batch, by one program."""

    @jax.jit
    def run(params: Any, batch: Any, key: jax.Array) -> dict[str, Any]:
        module, inputs = OctoModule(regression), (batch["observation"], batch["task"])
        squared = dataclasses.replace(regression.head, error="mse")
        of_squares = OctoModule(dataclasses.replace(regression, head=squared))
        loss, grad = jax.value_and_grad(lambda p: loss_fn(module, p, batch, noise=None))(params)
        return {
            "groups": module.apply({"params": params}, *inputs),
            "l1": loss,
            "mse": loss_fn(of_squares, params, batch, noise=None),
            "grad": grad,
            "actions": sample_actions(module, params, *inputs, key),
        }

    return run(b_params, b_batch, jax.random.key(0))


def test_parameters_are_those_of_the_original(
    regression: OctoConfig, b_params: dict[str, Any]
) -> None:
    ours = jax.eval_shape(lambda: init_params(regression, jax.random.key(0)))
    shapes = [
        {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()}
        for tree in (ours, b_params)
    ]
    assert shapes[0] == shapes[1]


def test_every_group_is_the_recorded_one(outcome: dict[str, Any], b_recorded: dict) -> None:
    groups = outcome["groups"]
    assert set(groups) == set(b_recorded["out"])
    for name, expected in b_recorded["out"].items():
        np.testing.assert_allclose(groups[name].tokens, expected["tokens"], atol=LAYER, rtol=0)
        np.testing.assert_array_equal(groups[name].mask, expected["mask"].astype(bool))


def test_pooled_embedding_and_mean_are_the_recorded_ones(
    regression: OctoConfig, b_params: dict, b_recorded: dict
) -> None:
    assert isinstance(regression.head, RegressionConfig)
    head = RegressionHead(regression.head)
    variables = {"params": b_params["heads_action"]}
    tokens = jnp.asarray(b_recorded["out"]["readout_action"]["tokens"])
    apply = jax.jit(head.apply, static_argnames="method")
    embedding = apply(variables, tokens, method="embed")
    expected = b_recorded["head"]["map_embedding"][:, :, 0]
    np.testing.assert_allclose(embedding, expected, atol=LAYER, rtol=0)
    mean = apply(variables, tokens, method="predict")
    np.testing.assert_allclose(mean, b_recorded["head"]["mean"], atol=LAYER, rtol=0)


@pytest.mark.parametrize(("error", "name"), [("l1", "loss"), ("mse", "mse")])
def test_loss_is_the_recorded_one(
    outcome: dict[str, Any], b_recorded: dict, error: str, name: str
) -> None:
    np.testing.assert_allclose(outcome[error], b_recorded["loss"][name], rtol=LAYER)


def test_gradients_are_the_recorded_ones(outcome: dict[str, Any], b_recorded: dict) -> None:
    grad = outcome["grad"]
    flat = traverse_util.flatten_dict(grad, sep="/")
    norms = {path: np.linalg.norm(leaf) for path, leaf in flat.items()}
    total = np.sqrt(sum(norm**2 for norm in norms.values()))
    np.testing.assert_allclose(total, b_recorded["grad"]["global_norm"], rtol=1e-4)
    for path, expected in traverse_util.flatten_dict(b_recorded["grad_leaf_norm"], sep="/").items():
        np.testing.assert_allclose(norms[path], expected, rtol=1e-4, atol=1e-5, err_msg=path)


def test_predicted_actions_are_the_recorded_ones(outcome: dict[str, Any], b_recorded: dict) -> None:
    expected = b_recorded["head"]["predict_action"]
    np.testing.assert_allclose(outcome["actions"], expected, atol=LAYER, rtol=0)


def test_mean_pooling_has_no_parameters_of_its_own(regression: OctoConfig) -> None:
    head = dataclasses.replace(regression.head, pooling="mean")
    changed = dataclasses.replace(regression, head=head)
    params = jax.eval_shape(lambda: init_params(changed, jax.random.key(0)))
    assert set(params["heads_action"]) == {"mean_proj"}
