"""What the interchangeable parts of a model are: configs, of the library or in a user's own file.

A config is a frozen dataclass of hashable fields, since it decides a compiled program. It makes the
linen module that holds the parameters. `docs/architecture.md` shows where examples of each lie.
"""

from typing import Any, Protocol, runtime_checkable

Noise = Any
"""The random numbers of a head: arrays in any pytree, or None for a head that draws none. Each
array has one axis of samples, wherever it stands; see `functional.sample_axes`."""


@runtime_checkable
class HeadConfig(Protocol):
    """Config of an action head: its chunk of actions, its module and its random numbers."""

    @property
    def action_horizon(self) -> int:
        """Returns the number of actions per chunk."""
        ...

    @property
    def action_dim(self) -> int:
        """Returns the size of an action."""
        ...

    def make_head(self) -> Any:
        """Returns the linen module, which has two methods.

        `loss(readout, action, mask, noise)` returns the loss, a float32 scalar: a mean over the
        elements of actions that are real. `readout` are the readout tokens of each step, float32
        (b w n d); `action` normalised actions, float32 (b w h a); `mask` is bool (b w h a), True
        where an element is real; `noise` comes from `draw_training_noise`.

        `sample(readout, noise)` returns normalised actions for the last step of the window, float32
        (b h a); `noise` comes from `draw_sampling_noise`.
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
