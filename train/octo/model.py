"""The Octo model: inputs become token groups, one transformer reads them, a head acts.

Source: Octo Model Team 2024, "Octo: An Open-Source Generalist Robot Policy". Module names are those
  of the released checkpoints (1.5), so that their weights load without renaming.
"""

import dataclasses
from typing import assert_never

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pipeline.errors import UserError
from train.octo.attention import READOUT, Kind
from train.octo.fusion import Alignment, Grid, PatchFusion
from train.octo.heads.guidance import Guide, blend
from train.octo.octo_config import OctoConfig, VGGTTokenizerConfig
from train.octo.protocols import Noise, TokenizerConfig
from train.octo.token_groups import TokenGroup, concatenate, pad_window, repeat_over_window
from train.octo.tokenizer_inputs import Inputs, check_array, check_group, read_steps, require
from train.octo.tokenizers import LanguageTokenizer
from train.octo.transformer import BlockTransformer


class OctoTransformer(nn.Module):
    """The tokenizers, the embeddings and the transformer."""

    config: OctoConfig

    def setup(self) -> None:
        """Makes the tokenizers; linen joins attribute and key: `observation_tokenizers_wrist`."""
        self.observation_tokenizers = {
            part.name: part.make_tokenizer(self.config.compute_dtype)
            for part in self.config.observations
        }
        if self.config.language is not None:
            self.task_tokenizers = {"language": LanguageTokenizer(self.config.language)}
        # Not part of the released model; only the alignment loss reads them.
        self.alignments = {
            vggt.name: Alignment(vggt, self._camera_grid(vggt)) for vggt in self.config.aligned
        }

    def encode_language(self, instruction: Inputs) -> Float[Array, "b n d"]:
        """Returns T5's embeddings; see `LanguageTokenizer.encode`."""
        return self.task_tokenizers["language"].encode(instruction)

    @nn.compact
    def __call__(self, observation: Inputs, task: Inputs) -> dict[str, TokenGroup]:
        """Returns the transformer's output by group, and the joined groups `task` and `obs`.

        The sequence is [task | step 0: cameras, geometry, repeated task, readout | step 1 ...].
        """
        batch_size, window = self._steps(observation)
        prefix: dict[str, TokenGroup] = {}
        if self.config.language is not None:
            # Encoded once per sample, in front of all steps of the window.
            language = self.task_tokenizers["language"](task)
            prefix["task_language"] = self._embed("task_language", language)
        timestep = self._observe(observation, task)
        if self.config.repeat_task_tokens:
            for name, group in prefix.items():
                # As in Octo 1.5, each step reads its own copy of the task tokens.
                timestep[f"obs_{name}"] = repeat_over_window(group, window)
        timestep[READOUT] = self._readout(batch_size, window)

        transformer = BlockTransformer(
            self.config.transformer,
            self.config.legacy_attention,
            self.config.compute_dtype,
            self.config.remat,
            self.config.attention,
            name="BlockTransformer_0",
        )
        groups = transformer(prefix, timestep)
        if prefix:
            groups["task"] = concatenate([groups[name] for name in prefix])
        # Without the readout: it holds what the head reads, not what was observed.
        groups["obs"] = concatenate([groups[name] for name in timestep if name != READOUT])
        return groups

    def _steps(self, observation: Inputs) -> tuple[int, int]:
        """Returns the number of samples in the batch and of steps in the window."""
        mask = require(observation, "timestep_pad_mask", part="observation", reader="model")
        check_array(mask, "bw", (), ["bool"], "observation/timestep_pad_mask")
        window = mask.shape[1]
        # Position embeddings exist for `max_horizon` steps only.
        if window > self.config.max_horizon:
            raise UserError(
                where="batch, observation/timestep_pad_mask",
                expected=f"a window of at most max_horizon {self.config.max_horizon} steps",
                found=f"{window} steps",
                remedy="Lower the window size; a larger max_horizon needs new position embeddings",
            )
        return mask.shape[0], window

    def _observe(self, observation: Inputs, task: Inputs) -> dict[str, TokenGroup]:
        """Embeds the observations: one group per name, but geometry may join a camera's group."""
        groups: dict[str, TokenGroup] = {}
        for config in self.config.grouped:
            name = f"obs_{config.name}"
            groups[name] = self._embed(name, self._tokenize(config, observation, task))
        # After the cameras: a fused geometry needs its camera's group.
        for vggt in self.config.geometry:
            if vggt.is_input:
                self._fuse(groups, vggt, self._tokenize(vggt, observation, task))
        return groups

    def _tokenize(self, config: TokenizerConfig, observation: Inputs, task: Inputs) -> TokenGroup:
        """Returns the tokens of one input for the whole window."""
        window = observation["timestep_pad_mask"].shape[1]
        read = read_steps(observation, config)
        group = self.observation_tokenizers[config.name](read, task)
        check_group(group, read, config)
        # Only the steps that were read are computed; all groups have the whole window.
        return pad_window(group, window)

    def _fuse(
        self, groups: dict[str, TokenGroup], config: VGGTTokenizerConfig, geometry: TokenGroup
    ) -> None:
        """Adds geometry tokens as a group, or to the tokens of their camera."""
        name, fusion = f"obs_{config.name}", config.fusion
        match fusion:
            case "tokens" | "registers" | "only":
                groups[name] = self._embed(name, geometry)
            case "features" | "gated":
                fuse = PatchFusion(
                    fusion == "gated",
                    config.patch_grid,
                    self._camera_grid(config),
                    self.config.compute_dtype,
                    name=f"{name}_fusion",
                )
                camera = f"obs_{config.camera}"
                # In place of the camera's tokens, so the sequence does not get longer.
                groups[camera] = fuse(groups[camera], geometry)
            case "align":
                raise AssertionError(f"{config.name!r} is not an input")
            case _:
                assert_never(fusion)

    def align(self, groups: dict[str, TokenGroup], observation: Inputs) -> dict[str, jax.Array]:
        """Returns the alignment losses of the transformer's output, by the geometry tokens' name.

        Args:
          groups: The groups that `__call__` returns.
          observation: The observation of a batch, with the geometry tokens to align with.
        """
        return {
            vggt.name: self.alignments[vggt.name](groups[f"obs_{vggt.camera}"], observation)
            for vggt in self.config.aligned
        }

    def _camera_grid(self, vggt: VGGTTokenizerConfig) -> Grid:
        """Returns rows and columns of the tokens of the camera that the geometry belongs to."""
        sides = {image.name: image.image_size // image.stride for image in self.config.images}
        return (sides[vggt.camera], sides[vggt.camera])

    def _embed(self, name: str, group: TokenGroup) -> TokenGroup:
        """Projects a group's tokens to the transformer's size and adds position embeddings."""
        dtype = self.config.compute_dtype
        projection = nn.Dense(self.config.embedding_dim, dtype=dtype, name=f"{name}_projection")
        tokens = projection(group.tokens)
        positions = self._positions(name, tokens).astype(dtype)
        # (b, n, d) for the task, (b, w, n, d) for observations; positions have 1 for b.
        return dataclasses.replace(group, tokens=tokens + jnp.broadcast_to(positions, tokens.shape))

    def _readout(self, batch_size: int, window: int) -> TokenGroup:
        """Makes the readout tokens: position embeddings alone, real in every step."""
        shape = (batch_size, window, self.config.num_readouts, self.config.embedding_dim)
        # Zeros, for their shape: readouts have no content, only their position.
        positions = self._positions(READOUT, jnp.zeros(shape)).astype(self.config.compute_dtype)
        tokens = jnp.broadcast_to(positions, shape)
        return TokenGroup(tokens, jnp.ones(shape[:-1], dtype=bool), Kind.READOUT)

    def _positions(self, name: str, tokens: jax.Array) -> jax.Array:
        """Returns a group's position embeddings, `(1 n d)`, or `(1 w n d)` over the window."""
        *steps, num_tokens, dim = tokens.shape[1:]
        # For the longest window; weights do not depend on the window that is trained.
        shape = (1, *(self.config.max_horizon for _ in steps), num_tokens, dim)
        # 0.02 as in the released model.
        positions = self.param(f"{name}_pos_embedding", nn.initializers.normal(0.02), shape)
        # The first steps of the embeddings: for the task, axis 1 is n and nothing is cut.
        return positions[:, : tokens.shape[1]]


class OctoModule(nn.Module):
    """The policy network: `__call__` for tokens, `loss` to train, `sample_actions` to act.

    All random numbers are arguments; `functional.py` draws them. The batch is the pipeline's, with
    images of the model's size.
    """

    config: OctoConfig

    def setup(self) -> None:
        """Names the submodules as in the released weights."""
        self.octo_transformer = OctoTransformer(self.config)
        self.heads_action = self.config.head.make_head()

    def __call__(self, observation: Inputs, task: Inputs) -> dict[str, TokenGroup]:
        """Returns the transformer's output, one group of tokens per name.

        `task_language` and `task` are `(b n d)`; `obs_<name>`, `obs_task_language`, `obs` and
        `readout_action` are `(b w n d)`.

        Args:
          observation: The `observation` of the batch.
          task: The `task` of the batch; goal images are optional.

        Raises:
          UserError: An input is missing or does not match the config, or the window is longer than
            `max_horizon`.
        """
        return self.octo_transformer(observation, task)

    def encode_language(self, instruction: Inputs) -> Float[Array, "b n d"]:
        """Returns T5's embeddings of `language_instruction`.

        If T5 is frozen, encode each text once, and put the result into `task` as
        `language_embedding`.
        """
        return self.octo_transformer.encode_language(instruction)

    def readout(self, observation: Inputs, task: Inputs) -> Float[Array, "b w n d"]:
        """Returns the readout tokens of each step, which the head reads."""
        return self(observation, task)[READOUT].tokens

    def loss(self, batch: Inputs, noise: Noise) -> Float[Array, ""]:
        """Returns the head's loss, a mean over the real actions of the batch.

        Tokens to align with are not used.

        Args:
          batch: A batch with `observation`, `task`, `action` and `action_pad_mask`.
          noise: The random numbers from `config.head.draw_training_noise`.

        Raises:
          UserError: The inputs do not match the config, as for `__call__`, or the actions or their
            mask do not match the head's horizon and size.
        """
        return self._head_loss(self(batch["observation"], batch["task"]), batch, noise)

    def losses(self, batch: Inputs, noise: Noise) -> dict[str, Float[Array, ""]]:
        """Returns the total `loss`, which training minimises, and parts of it to log.

        If the model aligns, `loss` is the head's loss plus each alignment loss times its weight,
        and `align_loss` is the mean of the alignment losses.

        Args:
          batch: A batch with `observation`, `task`, `action` and `action_pad_mask`.
          noise: The random numbers from `config.head.draw_training_noise`.

        Raises:
          UserError: `loss` would raise it, or tokens to align with are missing or do not match the
            config.
        """
        groups = self(batch["observation"], batch["task"])
        loss = self._head_loss(groups, batch, noise)
        found = self.octo_transformer.align(groups, batch["observation"])
        if not found:
            # One key fewer, so a run without alignment logs no constant.
            return {"loss": loss}
        for vggt in self.config.aligned:
            loss = loss + vggt.align_weight * found[vggt.name]
        return {"loss": loss, "align_loss": jnp.mean(jnp.stack(list(found.values())))}

    def _head_loss(
        self, groups: dict[str, TokenGroup], batch: Inputs, noise: Noise
    ) -> Float[Array, ""]:
        head = self.config.head
        action = require(batch, "action", part="top level", reader="loss")
        counts = require(batch, "action_pad_mask", part="top level", reader="loss")
        chunk = (head.action_horizon, head.action_dim)
        check_array(action, "bw", chunk, ["float32"], "action")
        check_array(counts, "bw", chunk, ["bool"], "action_pad_mask")
        # (b, w, 1, 1): padded steps of the window have no real action.
        real_step = batch["observation"]["timestep_pad_mask"][:, :, None, None]
        tokens = groups[READOUT].tokens
        loss = self.heads_action.loss(tokens, action, real_step & counts, noise)
        return self._checked(loss, (), "loss")

    def sample_actions(
        self, observation: Inputs, task: Inputs, noise: Noise
    ) -> Float[Array, "b h a"]:
        """Samples normalised actions for the last step of the window.

        Args:
          observation: The `observation` of the batch.
          task: The `task` of the batch; goal images are optional.
          noise: The random numbers from `config.head.draw_sampling_noise`.
        """
        readout, head = self.readout(observation, task), self.config.head
        chunks = self.heads_action.sample(readout, noise)
        return self._checked(chunks, (len(readout), head.action_horizon, head.action_dim), "sample")

    def sample_guided(
        self, observation: Inputs, task: Inputs, noise: Noise, guide: Guide
    ) -> Float[Array, "b h a"]:
        """Samples normalised actions that continue those which are already planned.

        A head without a method `sample_guided` predicts, and the chunk is blended with the plan by
        the same weights.

        Args:
          observation: The `observation` of the batch.
          task: The `task` of the batch; goal images are optional.
          noise: The random numbers from `config.head.draw_sampling_noise`.
          guide: The planned actions and their weights.
        """
        readout, head = self.readout(observation, task), self.config.head
        if hasattr(self.heads_action, "sample_guided"):
            chunks = self.heads_action.sample_guided(readout, noise, guide)
        else:
            chunks = blend(self.heads_action.sample(readout, noise), guide)
        shape = (len(readout), head.action_horizon, head.action_dim)
        return self._checked(chunks, shape, "sample_guided")

    def _checked(self, found: jax.Array, shape: tuple[int, ...], method: str) -> jax.Array:
        """Returns what a head computed; raises a `UserError` where it is of another type."""
        if found.shape != shape or found.dtype != jnp.float32:
            raise UserError(
                where=f"model.head, {type(self.config.head).__name__}, {method}",
                expected=f"float32{list(shape)}",
                found=f"{found.dtype}{list(found.shape)}",
                remedy="Return one loss of the whole batch, and one chunk per sample",
            )
        return found
