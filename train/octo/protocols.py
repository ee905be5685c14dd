"""What the interchangeable parts of a model are: configs, of the library or in a user's own file.

A config is a frozen dataclass of hashable fields, since it decides a compiled program. It makes the
linen module that holds the parameters. `docs/architecture.md` shows where examples of each lie.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from pipeline.loading.batch import LeafSpec

Noise = Any
"""The random numbers of a head: arrays in any pytree, or None for a head that draws none. Each
array has one axis of samples, wherever it stands; see `functional.sample_axes`."""


@runtime_checkable
class TokenizerConfig(Protocol):
    """Config of an observation tokenizer: what it reads, how many tokens it makes, its module."""

    @property
    def name(self) -> str:
        """Returns the name of the input: its token group is `obs_<name>`."""
        ...

    @property
    def inputs(self) -> Mapping[str, LeafSpec]:
        """Returns the type of one step of each array that it reads, by name below `observation/`.

        A float stands for every float, since a column may be stored in another one. A uint8 array
        (y x 3) is a camera: its images are resized to that size, and augmented.
        """
        ...

    @property
    def tokens_per_step(self) -> int:
        """Returns the number of tokens per step in its group."""
        ...

    def make_tokenizer(self, dtype: str) -> Any:
        """Returns the linen module, whose `__call__(observation, task)` returns a `TokenGroup`.

        Its tokens are (b w n d) of any size d: the model projects them to the transformer's size
        and adds position embeddings. Its mask is bool (b w n), True where a token is real; see
        `tokenizer_inputs.observation_mask`.

        `observation` holds the arrays of `inputs` (b w ...), checked against their types, besides
        `timestep_pad_mask` and `pad_mask_dict`. `w` is the longest window of these arrays: an array
        with a shorter one has masked zeros in front. `task` is that of the batch.

        Args:
          dtype: The `compute_dtype` of the model: `float32` or `bfloat16`.
        """
        ...


@runtime_checkable
class HeadConfig(Protocol):
    """Config of an action head: its chunk of actions, its module and its random numbers.

    A head that samples in several steps may have a field `unused_dims`, a tuple of integers, which
    is set for sampling: places of dimensions that were not learned, as in `DiffusionConfig`.
    """

    @property
    def action_horizon(self) -> int:
        """Returns the number of actions per chunk."""
        ...

    @property
    def action_dim(self) -> int:
        """Returns the size of an action."""
        ...

    def make_head(self) -> Any:
        """Returns the linen module, which has two methods, or three.

        `loss(readout, action, mask, noise)` returns the loss, a float32 scalar: a mean over the
        elements of actions that are real. `readout` are the readout tokens of each step, float32
        (b w n d); `action` normalised actions, float32 (b w h a); `mask` is bool (b w h a), True
        where an element is real; `noise` comes from `draw_training_noise`.

        `sample(readout, noise)` returns normalised actions for the last step of the window, float32
        (b h a); `noise` comes from `draw_sampling_noise`.

        It may have a third, `sample_guided(readout, noise, guide)`, for real-time chunking: a chunk
        that continues the actions `guide.target` (b h a), each by its weight in `guide.weights`
        (b h a), from 0 to 1; elements of weight 1 are returned as they are. Without it, what
        `sample` returns is blended with the target by these weights.
        """
        ...

    def draw_training_noise(self, key: Any, shape: tuple[int, int]) -> Noise:
        """Draws the random numbers of one loss; None for a head that draws none.

        Args:
          key: A jax key; the same key gives the same numbers.
          shape: Number of samples in the batch and of steps in the window.
        """
        ...

    def draw_sampling_noise(self, key: Any, shape: tuple[int, int]) -> Noise:
        """Draws the random numbers of `sample`; the arguments are those of `draw_training_noise`.

        A policy draws a batch of one for every environment, from a key of its own.
        """
        ...


@runtime_checkable
class WeightSource(Protocol):
    """A checkpoint that a model's weights are loaded from."""

    def load(self) -> Any:
        """Returns its weights, on the host, with the config of their model: a `Pretrained`.

        Raises:
          UserError: It does not exist, or its model is not supported here.
          DataError: It is corrupt, or cannot be fetched.
        """
        ...
