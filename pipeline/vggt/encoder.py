"""The one way from pictures to tokens, for datasets and for rollouts."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding

from pipeline.vggt.spec import EncoderSpec
from pipeline.vggt.weights import VggtWeights


class VggtEncoder:
    """Pictures of one step to tokens.

    Args:
      spec: What the tokens are.
      weights: From `load_weights`, with at least the layers that `spec` names.
      sharding: As `pipeline.device.batch_sharding` returned it; None: the default device.

    Raises:
      UserError: The weights are not those of the spec.
    """

    def __init__(
        self, spec: EncoderSpec, weights: VggtWeights, sharding: NamedSharding | None = None
    ) -> None:
        raise NotImplementedError

    def encode(self, images: np.ndarray | Sequence[np.ndarray]) -> dict[int, jax.Array]:
        """Tokens of each layer, `float32[b, v, n, 2 * dim]`, on the devices.

        Args:
          images: uint8 `(b, v, H, W, 3)` in the order of `spec.cameras`, of any height and width;
            or one array `(b, H, W, 3)` a camera where their sizes differ.
        """
        raise NotImplementedError
