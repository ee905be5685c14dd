"""Turns batches into what openpi's `Observation.from_dict` takes; README.md shows how to use it.

Source: openpi's `Observation`, and its transforms for pi0 and pi0.5 in their order.
"""

import dataclasses
from typing import Any

import numpy as np
from PIL import Image
from sentencepiece import SentencePieceProcessor

from octograin import Loader, UserError, restore_gripper

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
SIDE, DIM, BOS = 224, 32, 2


@dataclasses.dataclass(frozen=True)
class ToOpenpi:
    """Is given to `Loader.map`; for pi0.5 where the loader normalises by `quantile`, else pi0."""

    loader: Loader
    vocabulary: SentencePieceProcessor
    cameras: tuple[str, str, str]  # in the order of CAMERAS; empty: none
    state: str = "proprio"

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Returns the last step of each window, as nested arrays."""
        observation, (dataset,) = batch["observation"], self.loader.datasets
        state = observation[self.state][:, -1]
        actions = restore_gripper(batch["action"][:, -1], dataset.manifest.conventions)
        images = dict.fromkeys(CAMERAS, np.zeros((len(state), SIDE, SIDE, 3), np.uint8))
        masks = dict.fromkeys(CAMERAS, np.zeros(len(state), bool))
        for name, camera in zip(CAMERAS, self.cameras, strict=True):
            if camera:
                images[name] = np.stack([resize_with_pad(i) for i in observation[camera][:, -1]])
                masks[name] = observation["pad_mask_dict"][camera][:, -1]
        texts = [self.loader.tasks.texts[task] for task in batch["task"]["task_index"]]
        tokens = np.stack([*map(self._tokens, texts, state)])
        return {
            "image": images,
            "image_mask": masks,
            "state": np.pad(state, ((0, 0), (0, DIM - state.shape[-1]))),
            "tokenized_prompt": tokens,
            "tokenized_prompt_mask": tokens > 0,
            "actions": np.pad(actions, ((0, 0), (0, 0), (0, DIM - actions.shape[-1]))),
        }

    def _tokens(self, text: str, state: np.ndarray) -> np.ndarray:
        text, encode = " ".join(text.strip().replace("_", " ").split("\n")), self.vocabulary.Encode
        ids, length = [BOS, *encode(text), *encode("\n")], 48
        if self.loader.config.normalization == "quantile":
            bins = np.floor((state.astype(float) + 1) * 128).clip(-1, 255).astype(int)
            prompt = f"Task: {text}, State: {' '.join(map(str, bins))};\nAction: "
            ids, length = [BOS, *encode(prompt)], 200
        if self.vocabulary.bos_id() != BOS or len(ids) > length:
            expected = f"PaliGemma's vocabulary, with {BOS} for BOS, and at most {length} tokens"
            found = f"{self.vocabulary.bos_id()}, and {len(ids)} tokens"
            remedy = "Give paligemma_tokenizer.model, or shorten the instruction."
            raise UserError(where=text, expected=expected, found=found, remedy=remedy)
        return np.pad(np.array(ids, np.int32), (0, length - len(ids)))


def resize_with_pad(image: np.ndarray) -> np.ndarray:
    """Returns an image, uint8 (y x 3), as uint8 (224 224 3): scaled, with black borders."""
    height, width = (int(side / (max(image.shape[:2]) / SIDE)) for side in image.shape[:2])
    scaled = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    padded = Image.new("RGB", (SIDE, SIDE))
    padded.paste(scaled, ((SIDE - width) // 2, (SIDE - height) // 2))
    return np.asarray(padded)
