"""Converting on Apache Beam: Dataflow and Flink schedule the same shards."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from converters.job.shard_conversion import ShardJob
from converters.job.workers import OnProgress
from pipeline.errors import UserError
from pipeline.worker_lifetime import Portable


@dataclasses.dataclass(frozen=True)
class BeamRunner:
    """Converts the shards as one Beam pipeline, and waits for its end.

    The workers need this package and the source and destination under the same paths, such as
    `gs://`; they write what the local runner writes.
    """

    options: tuple[str, ...] = ()
    """Beam's own flags, such as `--runner=DataflowRunner`."""

    def __call__(self, job: ShardJob, numbers: Sequence[int], on_progress: OnProgress) -> None:
        """Converts the shards; of those that fail, the first is raised when the others are done."""
        if not numbers:
            return
        for number in numbers:
            # Else the failure of an earlier run would be reported for this one.
            job.forget_failure(number)
        try:
            self._run(job, numbers)
        except Exception as error:
            # Runners raise their own types; none of them is importable without its runner.
            raise UserError(
                where="Apache Beam",
                expected="the pipeline to run to its end",
                found=f"{type(error).__name__}: {' '.join(str(error).split())}",
                remedy="See Beam's own log, and run the same command again: it resumes from here.",
            ) from error
        # By the result on disk: Beam gives no return value and no exception of a step.
        for number in numbers:
            if not job.is_done(number):
                raise job.failure(number)
            # Without bytes, since workers elsewhere do not report them.
            on_progress(job.source.shards[number].num_episodes, 0)

    def _run(self, job: ShardJob, numbers: Sequence[int]) -> None:
        quiet = "--default_sdk_harness_log_level=WARNING"
        pipeline = beam.Pipeline(options=PipelineOptions([quiet, *self.options]))
        _ = (
            pipeline
            | "shards" >> beam.Create(list(numbers))
            # Else Beam fuses the steps, and one worker converts all shards.
            | "spread" >> beam.Reshuffle()
            | "convert" >> beam.Map(Portable(_convert), job)
        )
        pipeline.run().wait_until_finish()


def _convert(number: int, job: ShardJob) -> None:
    """Leaves a user's mistake in the destination: Beam would repeat it and bury it in a log."""
    try:
        job.convert(number, _ignore)
    except UserError as error:
        # Only a user's mistake: anything else should fail, and Beam repeats it.
        job.fail(number, error)


def _ignore(num_bytes: Any) -> None:
    """Progress is Beam's own to show."""
