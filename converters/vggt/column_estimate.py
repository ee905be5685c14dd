"""How large and how exact a column would be, reported before anything is written."""

import collections
import time
from collections.abc import Sequence

import jax

from converters.job.job_progress import clock
from converters.vggt.sample_errors import fit_projections, measure, sample_steps
from converters.vggt.token_job import TokenJob, records
from pipeline.data.token_provenance import Keep, Store, TokenOrigin
from pipeline.vggt.token_storage import TokenEncoder

_STORES: tuple[Store, ...] = ("f16", "bf16", "int8")
_GB = 1e9


def report(job: TokenJob) -> str:
    """Sizes, errors and time of a column, for every way to store it; writes nothing.

    Raises:
      DataError: Where the tokens of the sample cannot be stored in any way.
    """
    _, origins = job.column_job(job.dataset.manifest)
    # The same sample as the job itself takes.
    measured, fitted = sample_steps(job.dataset.num_steps)
    encoder = job.encoder(origins)
    if job.settings.keep.what == "project":
        projections = fit_projections(encoder, job.frames, fitted)
        encoder = TokenEncoder(encoder.encoder, origins, projections)
    # All ways to store in one pass over the sample.
    found = measure(encoder, job.frames, measured, _STORES)
    lines = [_heading(job, origins), "", "store  bytes per step  column GB  storage error"]
    for store in _STORES:
        features = [f.nbytes for f in encoder.storing(store).features.values()]
        errors = found.storage.get(store)
        error_text = "cannot hold them" if errors is None else f"{max(errors.values()):.1e}"
        total = sum(features) * job.dataset.num_steps / _GB
        lines.append(f"{store:5}  {sum(features):14,}  {total:9.3f}  {error_text}")
    if reduction := max(found.reduction.values()):
        lines += ["", f"{job.settings.keep} loses {reduction:.2g} of the patches' tokens before"]
    lines += ["", _speed(job, encoder, measured)]
    lines.append(f"errors: RMS of the difference over that of the tokens, on {len(measured)} steps")
    lines += [f"licence: {job.licence}", "nothing was written"]
    return "\n".join(lines) + "\n"


def _heading(job: TokenJob, origins: dict[str, TokenOrigin]) -> str:
    shapes = {Keep.parse(o.keep).shape(o.encoder) for o in origins.values()}
    ((num_tokens, width),) = shapes
    return (
        f"{', '.join(key.removeprefix('observation/') for key in origins)}: "
        f"{job.dataset.num_steps:,} steps of {', '.join(job.settings.cameras)}, "
        f"{num_tokens} x {width} per step and feature"
    )


def _speed(job: TokenJob, encoder: TokenEncoder, steps: Sequence[int]) -> str:
    """What the sample took once more, now that all is compiled, and the whole would take."""
    # Once before the clock, to compile.
    collections.deque(records(job, encoder, steps[: job.batch_size]), maxlen=0)
    started = time.perf_counter()
    collections.deque(records(job, encoder, steps), maxlen=0)
    # The last batch is filled up, and takes as long as a whole one.
    num_batches = -(-len(steps) // job.batch_size)
    num_cameras = len(job.settings.cameras)
    rate = num_batches * job.batch_size * num_cameras / (time.perf_counter() - started)
    num_frames = job.dataset.num_steps * num_cameras
    where = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    left = clock(num_frames / rate)
    return f"speed: {rate:,.1f} frames/s on {where}: about {left} for {num_frames:,} frames"
