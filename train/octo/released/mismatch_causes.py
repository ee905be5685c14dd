"""Finds the most likely reason why a tensor was not loaded: the setting that differs."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

Status = Literal["loaded", "resized", "new", "unused", "mismatched shape"]
"""How a tensor was used. `resized`: fitted to the model's shape; `new`: only in the model;
`unused`: only in the checkpoint; `mismatched shape`: the model's fresh values are kept."""

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LoadRow:
    """How one tensor of the model or the checkpoint was used."""

    path: str
    """Path in the parameters, joined by `/`."""
    status: Status
    """How the tensor was used."""
    target_shape: Shape | None
    """Shape in the model; None: the model has no such tensor."""
    checkpoint_shape: Shape | None
    """Shape in the checkpoint; None: the checkpoint has no such tensor."""
    how: str = ""
    """How a resized tensor was made."""


_TRANSFORMER = "octo_transformer"
_BLOCKS = f"{_TRANSFORMER}/BlockTransformer_0/Transformer_0/encoderblock_"
_T5 = f"{_TRANSFORMER}/task_tokenizers_language/hf_model"
_T5_BLOCKS = f"{_T5}/encoder/block/"
_T5_BIAS = f"{_T5_BLOCKS}0/layer/0/SelfAttention/relative_attention_bias/embedding"
_SCORE = "heads_action/diffusion_model"
_RESIDUAL = f"{_SCORE}/reverse_network"
_CHUNK = "action_horizon x action_dim"


@dataclasses.dataclass(frozen=True)
class _Size:
    """A setting that determines the length of an axis."""

    name: str
    """Name in the config."""
    scope: str
    """Prefix of the paths whose shapes depend on the setting."""
    tensor: str
    """Path of the tensor that reveals the setting."""
    axis: int
    """Axis of that tensor whose length is the setting."""


_SIZES = (
    _Size("embedding_dim", "", f"{_TRANSFORMER}/readout_action_pos_embedding", -1),
    _Size("mlp_dim", _BLOCKS, f"{_BLOCKS}0/MlpBlock_0/Dense_0/bias", 0),
    _Size("num_heads", _BLOCKS, f"{_BLOCKS}0/MultiHeadDotProductAttention_0/query/bias", 0),
    _Size("t5.d_model", f"{_TRANSFORMER}/task_", f"{_T5}/shared/embedding", 1),
    _Size("t5.vocab_size", f"{_T5}/shared", f"{_T5}/shared/embedding", 0),
    _Size("t5.d_ff", _T5_BLOCKS, f"{_T5_BLOCKS}0/layer/1/DenseReluDense/wi/kernel", 1),
    _Size("t5.num_buckets", _T5_BIAS, _T5_BIAS, 0),
    _Size("t5.num_heads", _T5_BLOCKS, _T5_BIAS, 1),
    _Size("hidden_dim", _SCORE, f"{_RESIDUAL}/Dense_0/bias", 0),
    _Size("time_dim", _SCORE, f"{_SCORE}/cond_encoder/Dense_1/bias", 0),
    _Size(_CHUNK, _SCORE, f"{_RESIDUAL}/Dense_1/bias", 0),
    _Size(_CHUNK, "heads_action/mean_proj", "heads_action/mean_proj/bias", 0),
)

_COUNTS = {
    "num_layers": re.compile(rf"{_BLOCKS}(\d+)/"),
    "t5.num_layers": re.compile(rf"{_T5_BLOCKS}(\d+)/"),
    "num_blocks": re.compile(rf"{_RESIDUAL}/MLPResNetBlock_(\d+)/"),
}
"""Settings that count modules, and the paths of those modules."""

_PARTS = {
    f"{_TRANSFORMER}/task_": "an instruction",
    f"{_SCORE}/": "a diffusion head",
    "heads_action/mean_proj/": "an L1 or MSE head",
    "heads_action/map_head/": "a head with attention pooling",
}
"""Optional parts of a model, by the prefix of their paths."""

_INPUT = re.compile(
    rf"{_TRANSFORMER}/(?:obs_(\w+)_(?:projection|pos_embedding|fusion)|"
    r"(?:observation_tokenizers|alignments)_(\w+)/)"
)
"""Pattern of tensors that belong to one input; one of the groups is the input's name."""


class Causes:
    """Finds why tensors were not loaded.

    Args:
      rows: Rows for all tensors of the model and of the checkpoint.
    """

    def __init__(self, rows: Sequence[LoadRow]) -> None:
        self._here = {row.path: row.target_shape for row in rows if row.target_shape is not None}
        self._there = {
            row.path: row.checkpoint_shape for row in rows if row.checkpoint_shape is not None
        }

    def find(self, row: LoadRow) -> str:
        """Returns the likely reason for a tensor's status; empty if it is obvious."""
        ours, theirs = row.target_shape, row.checkpoint_shape
        if ours is None or theirs is None:
            return self._missing(row)
        if len(ours) != len(theirs):
            return ""
        if row.path.endswith("_pos_embedding"):
            return "; ".join(_position_causes(row.path, ours, theirs))
        return self._sized(row.path, ours, theirs)

    def _missing(self, row: LoadRow) -> str:
        # Layers that only one side has: the numbers of layers differ.
        for name, pattern in _COUNTS.items():
            here, there = (_count(pattern, shapes) for shapes in (self._here, self._there))
            if pattern.match(row.path) and here and there:
                return _differs(name, here, there)
        for start, part in _PARTS.items():
            if row.path.startswith(start):
                # A default argument binds the prefix of this round.
                return self._only_one(row, part, lambda path, s=start: path.startswith(s))
        name = _input_name(row.path)
        if name is None:
            return ""
        return self._only_one(row, f"the input {name!r}", lambda path: _input_name(path) == name)

    def _only_one(self, row: LoadRow, part: str, belongs: Callable[[str], bool]) -> str:
        has, lacks, other = ("the model", "the checkpoint", self._there)
        # The roles change where the tensor is only in the checkpoint.
        if row.status == "unused":
            has, lacks, other = (lacks, has, self._here)
        # Both have such a part, so this tensor is missing for another reason.
        return "" if any(map(belongs, other)) else f"{has} has {part}, {lacks} has not"

    def _sized(self, path: str, ours: Shape, theirs: Shape) -> str:
        """Describes the settings that differ and shape the tensor, preferably through its axes."""
        # (ours, theirs) of the axes that differ.
        axes = {pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]}
        differing = [
            (size.name, pair)
            for size in _SIZES
            if path.startswith(size.scope) and (pair := self._pair(size)) is not None
        ]
        # A setting that is an axis of this very tensor explains it best.
        plain = [(name, pair) for name, pair in differing if pair in axes]
        causes = [_differs(name, *pair) for name, pair in plain or differing]
        name = _input_name(path)
        if not causes and name is not None:
            return f"the stem, the token_dim or the bins of {name!r} differ"
        return "; ".join(causes)

    def _pair(self, size: _Size) -> tuple[int, int] | None:
        """Returns the setting's value in the model and in the checkpoint, if they differ."""
        if size.tensor not in self._here or size.tensor not in self._there:
            return None
        here, there = (shapes[size.tensor][size.axis] for shapes in (self._here, self._there))
        return None if here == there else (here, there)


def _position_causes(path: str, ours: Shape, theirs: Shape) -> Iterator[str]:
    """Yields the settings behind a position embedding, `(1 steps tokens d)` or `(1 tokens d)`."""
    if ours[-1] != theirs[-1]:
        yield _differs("embedding_dim", ours[-1], theirs[-1])
    # (1 steps tokens d); a task's embedding has no steps.
    if len(ours) == 4 and ours[1] != theirs[1]:
        yield _differs("max_horizon", ours[1], theirs[1])
    if ours[-2] != theirs[-2]:
        yield _differs(_tokens(path), ours[-2], theirs[-2])


def _tokens(path: str) -> str:
    """Returns the setting that determines a group's number of tokens."""
    if path.startswith(f"{_TRANSFORMER}/readout_"):
        return "num_readouts"
    if path.startswith(f"{_TRANSFORMER}/task_"):
        return "max_length"
    return "the number of tokens, of image_size, num_dims or num_tokens,"


def _differs(name: str, here: int, there: int) -> str:
    return f"{name} is {here}, the checkpoint has {there}"


def _count(pattern: re.Pattern[str], paths: Iterable[str]) -> int:
    # Distinct numbers, because a module has several tensors.
    return len({match[1] for path in paths if (match := pattern.match(path))})


def _input_name(path: str) -> str | None:
    match = _INPUT.match(path)
    return match and (match[1] or match[2])
