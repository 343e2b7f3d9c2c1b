"""Makes parts with Apache Beam: on this machine, Dataflow, Flink or Spark, as its flags say."""

import shlex
from collections.abc import Callable, Sequence

from data.clips import parts


def workforce(flags: str) -> Callable[[Sequence[parts.Part]], list[dict]]:
    """Returns `work(parts)` for the builder: a pipeline that makes each part on some worker.

    flags: a command line for Beam, such as '--runner=DirectRunner --direct_num_workers=2'. The
      workers need this package, the videos and the data folder under the same paths.

    Raises ValueError: Beam is not installed, or knows none of the flags.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ValueError(
            f'--beam needs Apache Beam ({error}): pip install -r requirements-beam.txt, '
            'in an environment of its own'
        ) from None
    options = PipelineOptions(shlex.split(flags))

    def work(todo: Sequence[parts.Part]) -> list[dict]:
        missing = [part for part in todo if part.read() is None]
        if missing:
            with apache_beam.Pipeline(options=options) as pipeline:
                _ = (
                    pipeline
                    | 'parts' >> apache_beam.Create(missing)
                    | 'spread' >> apache_beam.Reshuffle()
                    | 'decode' >> apache_beam.Map(parts.make)
                )
        reports = [part.read() for part in todo]
        lost = sum(report is None for report in reports)
        if lost:
            raise ValueError(
                f'Beam ended, but {lost} parts are not in {todo[0].folder}: do its workers write '
                'to the same folder as this machine?'
            )
        return reports

    return work
