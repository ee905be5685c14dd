"""Parts of a user's own in a model: what is asked of them, and errors for what does not fit."""

import dataclasses
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from pipeline.config_checks import ConfigError
from pipeline.errors import UserError
from pipeline.loading.batch import LeafSpec
from train.octo.functional import init_params, input_spec, sample_actions
from train.octo.model import OctoModule
from train.octo.octo_config import (
    DiffusionConfig,
    ImageTokenizerConfig,
    OctoConfig,
    TransformerConfig,
)
from train.octo.released.config_differences import find_changed_meanings, find_differences
from train.octo.released.released_config import parts_without_counterpart
from train.octo.token_groups import TokenGroup
from train.octo.tokenizer_inputs import observation_mask
from train.update.step_memory import activation_bytes
from train.update.train_step import to_model_size


@dataclasses.dataclass(frozen=True)
class Mean:
    """Reads the mean colour of a camera as one token."""

    name: str = "colour"
    observation_key: str = "image_top"
    shape: tuple[int, ...] = (8, 12, 3)
    tokens_per_step: int = 1

    @property
    def inputs(self) -> dict[str, LeafSpec]:
        return {self.observation_key: LeafSpec("uint8", self.shape)}

    def make_tokenizer(self, dtype: str) -> Any:
        return MeanColour(self)


class MeanColour(nn.Module):
    config: Mean

    def __call__(self, observation: Any, task: Any) -> TokenGroup:
        key = self.config.observation_key
        colour = observation[key].astype(jnp.float32).mean(axis=(2, 3))
        return TokenGroup(colour[:, :, None], observation_mask(observation, key, 1))


@dataclasses.dataclass(frozen=True)
class Constant:
    """A head that learns one chunk; it may return arrays of other shapes."""

    action_horizon: int = 2
    action_dim: int = 3
    loss_shape: tuple[int, ...] = ()
    extra: int = 0

    def make_head(self) -> Any:
        return ConstantHead(self)

    def draw_training_noise(self, key: Any, shape: tuple[int, int]) -> None: ...

    def draw_sampling_noise(self, key: Any, shape: tuple[int, int]) -> None: ...


class ConstantHead(nn.Module):
    config: Constant

    def setup(self) -> None:
        shape = (self.config.action_horizon, self.config.action_dim + self.config.extra)
        self.chunk = self.param("chunk", nn.initializers.zeros, shape)

    def loss(self, readout: Any, action: Any, mask: Any, noise: None) -> jax.Array:
        return jnp.ones(self.config.loss_shape) * jnp.square(self.chunk).mean()

    def sample(self, readout: Any, noise: None) -> jax.Array:
        return jnp.broadcast_to(self.chunk[None], (len(readout), *self.chunk.shape))


MODEL = OctoConfig(
    embedding_dim=32,
    max_horizon=2,
    transformer=TransformerConfig(num_layers=1, mlp_dim=32, num_heads=2),
    images=(),
    language=None,
    head=Constant(),
    tokenizers=(Mean(),),
)


def shapes(model: OctoConfig) -> Any:
    """The chunks of a model (b h a), without computing them."""

    def run(batch: Any) -> jax.Array:
        params, key = init_params(model, jax.random.key(0)), jax.random.key(1)
        inputs = batch["observation"], batch["task"]
        return sample_actions(OctoModule(model), params, *inputs, key)

    return jax.eval_shape(run, input_spec(model, 4, 2))


def test_a_head_that_returns_other_arrays_is_reported() -> None:
    assert shapes(MODEL).shape == (4, 2, 3)
    wide = dataclasses.replace(MODEL, head=Constant(extra=1))
    message = "head, Constant, sample: expected float32[4, 2, 3]; found float32[4, 2, 4]. Return"
    with pytest.raises(UserError, match=re.escape(message)):
        shapes(wide)
    unreduced = dataclasses.replace(MODEL, head=Constant(loss_shape=(4,)))
    message = "head, Constant, loss: expected float32[]; found float32[4]. Return one loss"
    with pytest.raises(UserError, match=re.escape(message)):
        shapes(unreduced)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tokenizers": (Mean(tokens_per_step=0),)},
            r"tokenizers\.0\.tokens_per_step: expected at least 1; found 0 for 'colour'",
        ),
        (
            {"tokenizers": (Mean(), Mean("again", shape=(8, 8, 3)))},
            r"tokenizers: expected uint8\[8,12,3\] for image_top, .* uint8\[8,8,3\] for 'again'",
        ),
        (
            {"tokenizers": (Mean(), Mean())},
            r"lowdims, tokenizers, vggt: expected one name for each; found .*'colour', 'col",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(MODEL, **changes)


def test_two_tokenizers_may_read_one_camera_of_any_shape() -> None:
    camera = ImageTokenizerConfig("top", "image_square", 8, (32,), 8)
    model = dataclasses.replace(MODEL, images=(camera,), tokenizers=(Mean(), Mean("again")))
    assert model.input_keys == ("image_square", "image_top")
    assert model.image_shapes == {"image_square": (8, 8), "image_top": (8, 12)}
    assert model.image_sizes == {"image_square": 8}
    stored = jnp.zeros((1, 2, 16, 16, 3), jnp.uint8)
    observation = {"image_square": stored, "image_top": stored, "depth": stored}
    resized = jax.eval_shape(
        lambda o: to_model_size({"observation": o, "task": {}}, model), observation
    )
    sizes = {name: leaf.shape[2:4] for name, leaf in resized["observation"].items()}
    assert sizes == {"image_square": (8, 8), "image_top": (8, 12), "depth": (16, 16)}
    blind = dataclasses.replace(model, images=())
    more = activation_bytes(model, 2, "cpu") - activation_bytes(blind, 2, "cpu")
    assert more > 2 * 8 * 8  # the pixels of the camera, and its tokens


def test_differences_of_such_parts_are_found() -> None:
    other = dataclasses.replace(
        MODEL, tokenizers=(Mean(observation_key="image_side"),), head=Constant(3, 2)
    )
    assert find_differences(MODEL, other)["tokenizers.colour.observation_key"] == (
        "image_top",
        "image_side",
    )
    assert find_changed_meanings(MODEL, other) == {
        "tokenizers.colour.observation_key": ("image_top", "image_side"),
        "head.(action_horizon, action_dim) of 6 numbers": ((2, 3), (3, 2)),
    }
    assert parts_without_counterpart(MODEL) == ["Mean 'colour'", "Constant"]
    model = dataclasses.replace(MODEL, head=DiffusionConfig(prediction="action"))
    found = parts_without_counterpart(model)
    assert found == ["Mean 'colour'", "DiffusionConfig that predicts the action"]
