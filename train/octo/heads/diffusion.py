"""The diffusion head: a score network that denoises a chunk of actions.

Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (the loss is equation 14, a
  denoising step algorithm 2); Nichol and Dhariwal 2021 (the cosine schedule, equation 17).
"""

import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from train.octo.heads.guidance import Guide, guided_noise
from train.octo.heads.pooling import MapHead
from train.octo.octo_config import DiffusionConfig


class Schedule(typing.NamedTuple):
    """The noise that each diffusion step adds; float32 `(steps)` each."""

    betas: np.ndarray
    """Variance of the noise that a step adds."""
    alphas: np.ndarray
    """Fraction of the variance that a step keeps: 1 - beta."""
    alpha_hats: np.ndarray
    """Fraction of the action's variance that remains after all steps up to this one."""


class ReverseStep(typing.NamedTuple):
    """One denoising step, `scale * (x - shift * eps) + sigma * z`; float32 `(steps)` each."""

    scale: np.ndarray
    shift: np.ndarray
    sigma: np.ndarray


def cosine_schedule(num_steps: int, s: float = 0.008) -> Schedule:
    """Returns the cosine schedule, computed in float32 as in the released models.

    The last beta is clipped to 0.999, so 1 - beta has few digits: in float64 the last denoising
    step would differ by 1e-5.

    Args:
      num_steps: Number of diffusion steps.
      s: Offset that keeps the first betas from vanishing.
    """
    # float32 throughout, as in the released models: float64 would change the last step by 1e-5.
    t = np.linspace(0, num_steps, num_steps + 1, dtype=np.float32) / np.float32(num_steps)
    angle = (t + np.float32(s)) / np.float32(1 + s) * np.float32(np.pi * 0.5)
    remaining = np.square(np.cos(angle))
    # Relative to the start, so that the first alpha_hat is 1.
    remaining = remaining / remaining[0]
    # The last beta would be 1, and its denoising step would divide by zero.
    betas = np.clip(1 - remaining[1:] / remaining[:-1], 0, np.float32(0.999))
    alphas = 1 - betas
    return Schedule(betas, alphas, np.cumprod(alphas))


def reverse_steps(schedule: Schedule) -> ReverseStep:
    """Returns the coefficients of every denoising step, ordered by step number (0 first).

    The denoising step to 0 adds no noise.
    """
    betas, alphas, alpha_hats = schedule
    sigma = np.sqrt(betas)
    # As in algorithm 2: the result itself is not disturbed.
    sigma[0] = 0
    # Coefficients of `scale * (x - shift * eps) + sigma * z`.
    return ReverseStep(1 / np.sqrt(alphas), (1 - alphas) / np.sqrt(1 - alpha_hats), sigma)


def unused_levels(schedule: Schedule) -> np.ndarray:
    """Returns the deviation of unused dimensions after every denoising step; float32 `(steps)`.

    It is that of the noise which training adds to their zeros: the network sees nothing else.

    Source: Octo's `embodiment_action_dim`, which keeps that of the step before.
    """
    remaining = np.concatenate([np.ones(1, np.float32), schedule.alpha_hats[:-1]])
    return np.sqrt(1 - remaining)


def add_noise(
    schedule: Schedule,
    actions: Float[Array, "n b w c"],
    time: Int[Array, "n b w 1"],
    noise: Float[Array, "n b w c"],
) -> Float[Array, "n b w c"]:
    """Returns the actions after `time + 1` forward steps."""
    # (n, b, w, 1), which broadcasts over the chunk.
    alpha_hat = jnp.asarray(schedule.alpha_hats)[time]
    return jnp.sqrt(alpha_hat) * actions + jnp.sqrt(1 - alpha_hat) * noise


def masked_mean(x: Float[Array, "n b w c"], mask: Bool[Array, "n b w c"]) -> Float[Array, ""]:
    """Returns the mean of `x` where `mask` is True; 0 if it is True nowhere."""
    weight = mask.astype(x.dtype)
    # Both means are over all elements, so their number cancels.
    return jnp.mean(x * weight) / jnp.maximum(jnp.mean(weight), 1e-5)


@typing.no_type_check
@struct.dataclass
class TrainingNoise:
    """The random numbers for one loss; `n` is `n_diffusion_samples`."""

    time: jax.Array
    """Diffusion steps, int32 `(n b w 1)`, from 0 to `diffusion_steps - 1`."""
    noise: jax.Array
    """Standard normal noise, float32 `(n b w h*a)`."""


@typing.no_type_check
@struct.dataclass
class SamplingNoise:
    """The random numbers for sampling one chunk per sample."""

    initial: jax.Array
    """Standard normal noise, float32 `(b w h*a)`, from which denoising starts."""
    steps: jax.Array
    """Standard normal noise, float32 `(diffusion_steps b w h*a)`, in the order of use."""


def draw_training_noise(
    config: DiffusionConfig, key: PRNGKeyArray | jax.Array, batch_shape: tuple[int, int]
) -> TrainingNoise:
    """Draws the random numbers for one loss.

    Args:
      config: The config of the head.
      key: A jax key; the same key gives the same numbers.
      batch_shape: The sizes `b` and `w`.
    """
    time_key, noise_key = jax.random.split(key)
    shape = (config.n_diffusion_samples, *batch_shape)
    return TrainingNoise(
        # One diffusion step per sample and step of the window, shared by its whole chunk.
        time=jax.random.randint(time_key, (*shape, 1), 0, config.diffusion_steps),
        noise=jax.random.normal(noise_key, (*shape, config.flat_dim)),
    )


def draw_sampling_noise(
    config: DiffusionConfig, key: PRNGKeyArray | jax.Array, batch_shape: tuple[int, int]
) -> SamplingNoise:
    """Draws the random numbers for `sample`; the arguments are those of `draw_training_noise`."""
    initial_key, steps_key = jax.random.split(key)
    shape = (*batch_shape, config.flat_dim)
    return SamplingNoise(
        initial=jax.random.normal(initial_key, shape),
        steps=jax.random.normal(steps_key, (config.diffusion_steps, *shape)),
    )


class FourierFeatures(nn.Module):
    """Encodes the diffusion step as cosines and sines of learned frequencies."""

    dim: int

    @nn.compact
    def __call__(self, time: Int[Array, "*batch 1"]) -> Float[Array, "*batch f"]:
        """Returns `dim` features of the raw step number, which is not normalised."""
        # A standard deviation of 0.2, as in the original.
        kernel = self.param("kernel", nn.initializers.normal(0.2), (self.dim // 2, 1))
        # The raw number: Octo does not divide it by the number of steps.
        angle = (2 * jnp.pi * time.astype(kernel.dtype)) @ kernel.T
        return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class StepEncoder(nn.Module):
    """Two dense layers on the encoded diffusion step."""

    dim: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch f"]) -> Float[Array, "*batch f"]:
        """Returns features of the same size."""
        kernel_init = nn.initializers.xavier_uniform()
        hidden = nn.swish(nn.Dense(2 * self.dim, kernel_init=kernel_init)(x))
        return nn.Dense(self.dim, kernel_init=kernel_init)(hidden)


class MLPResNetBlock(nn.Module):
    """A pre-LN residual MLP."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch f"]) -> Float[Array, "*batch f"]:
        """Returns features of the same size."""
        hidden = nn.swish(nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1])(hidden)


class MLPResNet(nn.Module):
    """Residual blocks between two dense layers."""

    config: DiffusionConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*batch f"]) -> Float[Array, "*batch c"]:
        """Returns one value for each element of a chunk."""
        kernel_init = nn.initializers.xavier_uniform()
        x = nn.Dense(self.config.hidden_dim, kernel_init=kernel_init)(x)
        for _ in range(self.config.num_blocks):
            x = MLPResNetBlock()(x)
        return nn.Dense(self.config.flat_dim, kernel_init=kernel_init)(nn.swish(x))


class ScoreNetwork(nn.Module):
    """Predicts the noise in noisy actions, or the actions, as `config.prediction` says."""

    config: DiffusionConfig

    @nn.compact
    def __call__(
        self,
        readout: Float[Array, "*batch d"],
        noisy_actions: Float[Array, "*batch c"],
        time: Int[Array, "*batch 1"],
    ) -> Float[Array, "*batch c"]:
        """Returns the prediction.

        Args:
          readout: The embedding of each step, from the transformer.
          noisy_actions: Flattened chunks.
          time: Diffusion steps.
        """
        features = FourierFeatures(self.config.time_dim, name="time_preprocess")(time)
        step = StepEncoder(self.config.time_dim, name="cond_encoder")(features)
        # In this order, as in the released weights.
        x = jnp.concatenate([step, readout, noisy_actions], axis=-1)
        return MLPResNet(self.config, name="reverse_network")(x)


class DiffusionHead(nn.Module):
    """Computes the loss of a chunk of actions, and samples chunks."""

    config: DiffusionConfig

    def setup(self) -> None:
        """Names the submodules as in the released weights."""
        if self.config.pooling == "map":
            self.map_head = MapHead()
        self.diffusion_model = ScoreNetwork(self.config)

    def embed(self, readout: Float[Array, "b w n d"]) -> Float[Array, "b w d"]:
        """Pools the readout tokens of each step to one embedding."""
        return self.map_head(readout) if self.config.pooling == "map" else readout.mean(axis=2)

    def predict(
        self,
        embedding: Float[Array, "*batch d"],
        noisy_actions: Float[Array, "*batch c"],
        time: Int[Array, "*batch 1"],
    ) -> Float[Array, "*batch c"]:
        """Predicts with the score network; see `ScoreNetwork`."""
        return self.diffusion_model(embedding, noisy_actions, time)

    def loss(
        self,
        readout: Float[Array, "b w n d"],
        action: Float[Array, "b w h a"],
        mask: Bool[Array, "b w h a"],
        noise: TrainingNoise,
    ) -> Float[Array, ""]:
        """Returns the mean squared error of the prediction, times `action_dim`.

        Args:
          readout: The readout tokens of each step.
          action: Normalised actions, clipped here to `max_action`.
          mask: True where an action is real.
          noise: The diffusion steps and the noise.
        """
        embedding = self.embed(readout)
        samples = (noise.noise.shape[0], *embedding.shape[:2])
        # (b, w, h * a)
        flat = action.reshape(*embedding.shape[:2], self.config.flat_dim)
        # Outliers of normalised actions would dominate a squared error; sampling clips alike.
        flat = jnp.clip(flat, -self.config.max_action, self.config.max_action)
        # (n, b, w, h * a): `n_diffusion_samples` noises for one forward pass of the transformer.
        flat = jnp.broadcast_to(flat[None], noise.noise.shape)
        schedule = cosine_schedule(self.config.diffusion_steps)
        noisy = add_noise(schedule, flat, noise.time, noise.noise)
        # The transformer runs once; only the small score network sees all n samples.
        embedding = jnp.broadcast_to(embedding[None], (*samples, embedding.shape[-1]))
        target = noise.noise if self.config.prediction == "noise" else flat
        error = jnp.square(self.predict(embedding, noisy, noise.time) - target)
        counts = jnp.broadcast_to(mask.reshape(1, *flat.shape[1:]), error.shape)
        # Octo sums over the dimensions of an action and means over the rest.
        return masked_mean(error, counts) * self.config.action_dim

    def sample(
        self, readout: Float[Array, "b w n d"], noise: SamplingNoise
    ) -> Float[Array, "b h a"]:
        """Samples normalised actions of the window's last step, within [-max_action, max_action].

        Args:
          readout: The readout tokens of each step. All steps are denoised, as in the original, but
            only the last is returned.
          noise: The noise to start from, and the noise that the denoising steps add.
        """
        return self._denoise(self.embed(readout), noise, None)

    def sample_guided(
        self, readout: Float[Array, "b w n d"], noise: SamplingNoise, guide: Guide
    ) -> Float[Array, "b h a"]:
        """Samples as `sample` does, and continues actions that are already planned.

        Elements of weight 1 are committed: at every denoising step they are the target with the
        noise of that step, and at the end the target itself. The other elements of the denoised
        estimate are drawn to the target by the gradient of its weighted distance.

        Args:
          readout: The readout tokens of each step, of which the last is denoised.
          noise: As for `sample`.
          guide: The planned actions and their weights; the actions are clipped to `max_action`.

        Source: `guidance.py`. There, committed elements have the weight 1 and are not held; holding
          them is the inpainting of Janner et al. 2022, "Planning with Diffusion".
        """
        last = SamplingNoise(noise.initial[:, -1:], noise.steps[:, :, -1:])
        return self._denoise(self.embed(readout)[:, -1:], last, guide)

    def _denoise(
        self, embedding: Float[Array, "b w d"], noise: SamplingNoise, guide: Guide | None
    ) -> Float[Array, "b h a"]:
        """Runs all denoising steps, and returns the chunk of the last step of the window."""
        config = self.config
        schedule = cosine_schedule(config.diffusion_steps)
        coefficients = jax.tree.map(
            # Reversed: denoising runs from the last step to 0.
            lambda values: jnp.asarray(values[::-1]),
            reverse_steps(schedule),
        )
        times = jnp.arange(config.diffusion_steps)[::-1]
        levels = unused_levels(schedule)
        is_unused = np.isin(np.arange(config.flat_dim) % config.action_dim, config.unused_dims)
        if guide is not None:
            guide = guide.flat(config.max_action)

        def denoise(
            score: ScoreNetwork, x: jax.Array, step: tuple[jax.Array, ReverseStep, jax.Array]
        ) -> tuple[jax.Array, None]:
            time, (scale, shift, sigma), z = step

            def predict(score: ScoreNetwork, x: jax.Array) -> jax.Array:
                # One time for the whole batch, in the shape that training has: (b, w, 1).
                predicted = score(embedding, x, jnp.full((*x.shape[:-1], 1), time))
                if config.prediction == "noise":
                    return predicted
                return (x - jnp.sqrt(remaining) * predicted) / jnp.sqrt(1 - remaining)

            remaining = jnp.asarray(schedule.alpha_hats)[time]
            if guide is None:
                eps = predict(score, x)
            else:
                eps = guided_noise(predict, score, x, remaining, guide, config.max_action)
            cleaner = scale * (x - shift * eps) + sigma * z
            if config.unused_dims:
                # The network has not learned to denoise them: they would grow to the bound, where
                # training never was, and disturb the others.
                cleaner = jnp.where(is_unused, jnp.asarray(levels)[time] * z, cleaner)
            # Clipped at every step, not only at the end, as in Octo.
            cleaner = jnp.clip(cleaner, -config.max_action, config.max_action)
            if guide is not None:
                # Exact at the last step, whose level is 0.
                level = jnp.asarray(levels)[time]
                noisy = jnp.sqrt(1 - jnp.square(level)) * guide.target + level * z
                cleaner = jnp.where(guide.weights == 1, noisy, cleaner)
            return cleaner, None

        # linen's scan, because the body is a module; one copy of its parameters.
        run = nn.scan(denoise, variable_broadcast="params", split_rngs={"params": False})
        x, _ = run(self.diffusion_model, noise.initial, (times, coefficients, noise.steps))
        # Only the last step of the window acts: (b, h, a).
        return x[:, -1].reshape(-1, config.action_horizon, config.action_dim)
