"""The texts of a source: which is likely to be the instruction, and which names the episode."""

import dataclasses
import json
import re
from collections.abc import Collection, Sequence

from converters.mapping.conversion_warnings import is_name
from converters.sources.reading import readable_episodes
from converters.sources.source import STEPS, Source, SourceKey

TASK_WORDS = ("instruction", "language", "lang", "prompt", "task")
"""Words in keys that are likely to be the instruction, the likeliest first."""
CAMERA_WORDS = {"image", "images", "rgb", "camera", "cam", "frame", "frames", "jpeg", "png"}
"""Words in the keys of cameras."""
_NAME_WORDS = {"id", "ids", "uid", "uuid", "guid", "path", "file", "filename", "url", "hash"}
"""Words in keys whose texts name an episode or a file, not a task."""
FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class TaskGuess:
    """Where the instruction is likely to be, and how a mapping says so."""

    keys: tuple[str, ...]
    """Keys that hold it, the preferred one first; empty where the source has none."""
    lines: tuple[str, ...]
    """The lines of the mapping."""

    @property
    def is_table(self) -> bool:
        """Whether the lines are a table of TOML, which stands after the settings."""
        return len(self.keys) > 1


def words_of(key: str) -> set[str]:
    """The words of a key, in small letters: of `steps/observation/eeImage_0` also `image`."""
    # "eeImage" becomes "ee_Image".
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key)
    return set(re.split(r"[^a-z]+", spaced.lower()))


def leaf_words(key: str) -> set[str]:
    """The words of the last name of a key."""
    return words_of(key.rpartition("/")[2])


def find_task(source: Source) -> TaskGuess:
    """The key of the instruction, or several of which the first that is not empty counts."""
    texts = [key.key for key in source.keys.values() if key.kind == "text"]
    texts = [key for key in texts if not leaf_words(key) & (_NAME_WORDS | CAMERA_WORDS)]
    # By looks as well: a key may be called "text" and hold a path.
    named = _with_names(source, texts)
    texts = [key for key in texts if key not in named]
    # In the order of the words: "instruction" before "task".
    # The word alone first: `task` before `subtask`.
    likely = [
        key
        for word in TASK_WORDS
        for key in sorted(texts, key=lambda key, word=word: key.rpartition("/")[2] != word)
        if word in key.lower()
    ]
    steps = [key for key in texts if key.startswith(STEPS)]
    candidates = list(dict.fromkeys(likely)) or steps
    if not candidates:
        return TaskGuess((), (_no_task_line(source, texts),))
    keys = [key for key in candidates if likely and _is_variant(key, candidates[0])]
    others = ", ".join(map(quoted, [key for key in candidates[1:] if key not in keys]))
    if len(keys) > 1:
        heading = "[instruction_from]  # CHECK: at each step the first that is not empty"
        heading += f"; or {others}" if others else ""
        return TaskGuess(tuple(keys), (heading, f"keys = [{', '.join(map(quoted, keys))}]"))
    line = f"task = {quoted(candidates[0])}"
    if others:
        line += f"  # CHECK: the instruction, which training needs; or {others}"
    elif not likely:
        line += "  # CHECK: the instruction, which training needs; no other text could be it"
    return TaskGuess((candidates[0],), (line,))


def _is_variant(key: str, other: str) -> bool:
    """Whether two keys lie beside each other and differ by numbers alone."""
    return _without_numbers(key) == _without_numbers(other)


def _without_numbers(key: str) -> str:
    folder, _, leaf = key.rpartition("/")
    return f"{folder}/{re.sub(r'[^a-zA-Z]', '', leaf)}"


def _with_names(source: Source, keys: Sequence[str]) -> set[str]:
    """Those of some keys whose first text is a name of an episode or file by its looks."""
    # Without a readable episode nothing is known of the texts.
    _, episode = next(readable_episodes(source, keys), ("", {}))
    return {key for key, texts in episode.items() if is_name(bytes(texts[0]))}


def _no_task_line(source: Source, texts: Sequence[str]) -> str:
    """The line of the instruction where the source has no text that could be it."""
    reason = "the source has no text that could be the instruction"
    for key in source.keys.values():
        is_likely = any(word in key.key.lower() for word in TASK_WORDS)
        if is_likely and key.kind == "tensor" and key.dtype not in FLOATS:
            reason = f"{key.key} is {key.dtype}{list(key.shape)}, a code and not the instruction"
        elif is_likely and key.kind == "other":
            reason = f"{key.key} cannot be read as the instruction"
    if texts:
        reason += f", unless it is {' or '.join(map(quoted, texts))}"
    return (
        f'task = ""  # CHECK: {on_one_line(reason)}; goal images alone specify the task then,'
        ' or give all episodes one: instruction = "..."'
    )


def find_source_id(keys: Sequence[SourceKey], tasks: Collection[str]) -> str | None:
    """A text that names the episode, where there is one of it."""
    texts = [key.key for key in keys if key.kind == "text" and key.key not in tasks]
    texts = [key for key in texts if not key.startswith(STEPS)]
    # False sorts before True: a key with the word of a name comes first.
    return min(texts, key=lambda key: not leaf_words(key) & _NAME_WORDS, default=None)


def on_one_line(text: str) -> str:
    """A text of others on one line of a comment."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def quoted(text: str) -> str:
    """Returns a text as a basic string of TOML."""
    shown = json.dumps(text, ensure_ascii=False)  # without what a terminal obeys or hides
    # JSON leaves these letters as they are; TOML takes \U with eight digits.
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in shown)
