"""A source with the first steps of each episode of another, for tests that need real images."""

import pathlib
import shutil
from collections.abc import Iterator

from etils import epath
from tensorflow_datasets.proto import tf_example_generated_pb2 as tf_example

from converters.rlds.tfrecord import frame, read_records


def cut_source(source: pathlib.Path, out: pathlib.Path, lengths: Iterator[int]) -> pathlib.Path:
    """Writes an RLDS version directory whose next episode has the next length, and returns it."""
    out.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if ".tfrecord" not in path.name:
            shutil.copy(path, out)
            continue
        examples = map(tf_example.Example.FromString, read_records(epath.Path(path)))
        cut = [_cut(example, next(lengths)) for example in examples]
        (out / path.name).write_bytes(b"".join(map(frame, cut)))
    return out


def _cut(example: tf_example.Example, length: int) -> bytes:
    """A feature of the steps holds equally many values for each of them."""
    num_steps = len(example.features.feature["steps/is_first"].int64_list.value)
    for key, feature in example.features.feature.items():
        if key.startswith("steps/"):
            values = getattr(feature, feature.WhichOneof("kind")).value
            assert len(values) % num_steps == 0, key
            del values[len(values) // num_steps * length :]
    return example.SerializeToString()
