"""The wire format of vla-eval: msgpack with keys of text, and images as JPEG or PNG.

    image    {"__image__": True, "format": "png", "data": bytes, "shape": [y, x, 3]}

The format may also be `jpeg`, and `raw` with a dtype. A message is a map of `type`, `payload`,
`seq` and `timestamp`.

Source: `protocol/` of vla-eval 0.8.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from pipeline.data.images import decode_image
from pipeline.errors import DataError, SchemaError
from train.policy.observations import LARGEST_SIDE
from train.serve.msgpack_codec import MAX_MESSAGE_BYTES, Codec, checked_shape, to_array

_IMAGE = "__image__"
_NUM_DIMS = 3
_NUM_COLOURS = 3


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """An image of a message, not decoded yet: a policy may not read it."""

    data: bytes
    shape: list[int]
    """The sizes that the message states."""

    def decode(self) -> np.ndarray:
        """Returns the image, uint8 (y x 3).

        Raises:
          ValueError: It is no such image, or too large.
        """
        is_image = len(self.shape) == _NUM_DIMS and self.shape[2:] == [_NUM_COLOURS]
        # A file of a few bytes may hold an image of any size and one colour.
        if not (
            is_image
            and min(self.shape) > 0
            and max(self.shape) <= LARGEST_SIDE
            and math.prod(self.shape) <= MAX_MESSAGE_BYTES
        ):
            raise ValueError(f"an image of the shape {str(self.shape)[:60]}")
        pixels = np.empty(self.shape, np.uint8)
        try:
            decode_image(self.data, pixels, "image")
        except (DataError, SchemaError) as error:
            raise ValueError(error.found) from error
        return pixels


def _decode_image(values: dict[Any, Any]) -> Any:
    """Returns the image that a map stands for; other maps are returned as they are."""
    if _IMAGE not in values:
        return values
    data, shape, encoding = values.get("data"), values.get("shape"), values.get("format")
    if encoding == "raw":
        return to_array(data, values.get("dtype"), shape)
    if encoding not in ("jpeg", "png"):
        raise ValueError(f"format {ascii(encoding)[:60]} of an image: only raw, jpeg and png are")
    if not isinstance(data, bytes):
        raise TypeError(f"data of an image is a {type(data).__name__}, not bytes")
    return EncodedImage(data, checked_shape(shape))


CODEC = Codec(str, "Send it with vla-eval 0.8; docs/vla_eval.md has the format.", _decode_image)
