"""Measures plain tf.data on the same samples, for comparison, if TensorFlow is installed."""

import functools
import importlib
import importlib.util
import operator
import time
from typing import Any

import tensorflow_datasets as tfds

from pipeline.data.schema import ACTION
from pipeline.errors import UserError
from pipeline.loading.loader import Loader

_SHUFFLE_SAMPLES = 1000
_WARM_UP_BATCHES = 3


def check(compare: str | None, rlds: str | None) -> None:
    """Raises a `UserError` if the comparison cannot be run."""
    if compare is None or rlds is None:
        raise UserError(
            where="command line",
            expected="--compare tfds and --rlds SRC, the directory that was converted, together",
            found="one of them",
            remedy="Add the other.",
        )
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            where="--compare tfds",
            expected="TensorFlow, which nothing else here needs",
            found="no such package",
            remedy="Install it beside this one, in an environment made for the comparison.",
        )


def measure(rlds: str, loader: Loader, num_batches: int) -> dict[str, float]:
    """Measures windows, chunks and decoded images of the loader's features, batched by tf.data.

    The first batch counts from opening the directory, without TensorFlow's import.

    Episodes become windows of encoded images, shuffled in a buffer of 1,000, then decoded and
    batched; nothing is resized, augmented or normalised.
    """
    tf = importlib.import_module("tensorflow")
    started = time.perf_counter()
    batches = iter(_dataset(tf, rlds, loader))
    next(batches)
    first_batch_s = time.perf_counter() - started
    # tf.data fills its buffers and tunes its threads in the first batches.
    for _ in range(_WARM_UP_BATCHES):
        next(batches)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(num_batches):
        next(batches)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    num_samples = num_batches * loader.batch_size
    return {
        "samples_per_s": num_samples / wall,
        "cpu_ms_per_sample": cpu / num_samples * 1e3,
        "first_batch_s": first_batch_s,
    }


def _dataset(tf: Any, rlds: str, loader: Loader) -> Any:
    config, (dataset,) = loader.config, loader.datasets
    sources = {
        # Without "steps/", since the episodes' steps are read.
        key: dataset.manifest.schema.find(key, dataset.path)[1].source.split("/")[1:] or [key]
        for key in config.keys
    }
    images = [f"observation/{name}" for name in config.observations if "image" in name]

    def windows(episode: Any) -> Any:
        steps = {
            key: functools.reduce(operator.getitem, path, episode["steps"])
            for key, path in sources.items()
        }
        length = tf.shape(steps[ACTION])[0]
        t = tf.range(length)[:, None]
        # (t, w): as `history_indices`.
        history = tf.maximum(t + tf.range(1 - config.window_size, 1), 0)
        # (t, w, h): as `chunk_indices`.
        chunk = tf.minimum(history[..., None] + tf.range(config.action_horizon), length - 1)
        cut = {k: tf.gather(v, chunk if k == ACTION else history) for k, v in steps.items()}
        return tf.data.Dataset.from_tensor_slices(cut)

    def decode(sample: Any) -> Any:
        decoded = {
            key: tf.map_fn(tf.io.decode_jpeg, sample[key], fn_output_signature=tf.uint8)
            for key in images
        }
        return sample | decoded

    builder: Any = tfds.builder_from_directory(rlds)
    _check_features(builder.info.features["steps"], sources, rlds)
    # Images stay encoded through the shuffle, which would hold decoded ones otherwise.
    skip = {"steps": {"observation": {sources[k][-1]: tfds.decode.SkipDecoding() for k in images}}}
    episodes = builder.as_dataset(
        split=dataset.manifest.provenance.get("split", "train"), decoders=skip
    )
    # All steps at once: no episode has 100,000.
    episodes = episodes.map(lambda e: {"steps": e["steps"].batch(100_000).get_single_element()})
    threads = config.num_threads or 1
    return (
        episodes.repeat()
        .flat_map(windows)
        .shuffle(_SHUFFLE_SAMPLES, seed=0)
        .map(decode, num_parallel_calls=threads)
        .batch(loader.batch_size)
        .prefetch(config.prefetch_batches)
    )


def _check_features(features: Any, sources: dict[str, list[str]], rlds: str) -> None:
    for key, path in sources.items():
        found = features
        for name in path:
            if name not in found:
                raise UserError(
                    where=f"--rlds {rlds}",
                    expected=f"steps/{'/'.join(path)}, which became {key}",
                    found="no such feature",
                    remedy="Name the directory that the dataset was converted from, or other "
                    "--observations.",
                )
            found = found[name]
