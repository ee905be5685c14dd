import dataclasses
import json
from typing import Any

import pytest

from pipeline.files import dump_json, from_json_text, to_json_values
from pipeline.vggt.encoder_spec import EncoderSpec, VggtConfig, tiny

SPEC = EncoderSpec("hf://facebook/VGGT-1B", "0" * 32, "CC-BY-NC-4.0")


def test_a_spec_survives_json() -> None:
    spec = dataclasses.replace(SPEC, layers=(4, 23), cameras=("a", "b"), views="joint")
    text = dump_json(to_json_values(spec))
    assert from_json_text(EncoderSpec, text, where="here", remedy="") == spec
    assert json.loads(text)["model"]["dim"] == 1024


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({}, (261, 2048)),
        ({"image_size": (350, 518)}, (5 + 25 * 37, 2048)),
        ({"kept": "patches"}, (256, 2048)),
        ({"kept": "special"}, (5, 2048)),
        ({"model": tiny(), "layers": (1,), "image_size": (56, 56)}, (21, 64)),
    ],
)
def test_tokens_have_a_shape(settings: dict[str, Any], shape: tuple[int, int]) -> None:
    assert dataclasses.replace(SPEC, **settings).token_shape == shape


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ()}, r"layers must be rising numbers, not \(\)"),
        ({"layers": (5, 4)}, r"layers must be rising numbers, not \(5, 4\)"),
        ({"layers": (4, 4)}, r"layers must be rising numbers, not \(4, 4\)"),
        ({"layers": (24,)}, r"layers must be from 0 to 23, not \(24,\)"),
        ({"layers": (-1,)}, r"layers must be from 0 to 23, not \(-1,\)"),
        ({"cameras": ()}, r"cameras must be named, each once, not \(\)"),
        ({"cameras": ("a", "a")}, r"cameras must be named, each once"),
        ({"image_size": (224, 225)}, r"image_size must be multiples of 14, not \(224, 225\)"),
        ({"image_size": (0, 224)}, r"image_size must be multiples of 14"),
    ],
)
def test_a_wrong_spec_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SPEC, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "dim must be at least 1, not 0"),
        ({"dim": 1000}, "dim 1000 is no multiple of 4 times num_heads 16"),
        ({"dino_heads": 12}, "the heads divide dim 1024"),
        ({"embedder": "conv"}, "set both to 0"),
    ],
)
def test_a_wrong_model_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VggtConfig(**settings)
