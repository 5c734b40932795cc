"""The evaluation of the model that served, as a Beam transform."""

from collections.abc import Iterable
from typing import Any

import apache_beam as beam

from ofb_tf.evaluation.accumulator import Evaluation


class EvaluationFn(beam.CombineFn):
    """Batches of joined examples → the result of `ofb_tf.evaluate`.

    An input is a dict of the arguments of `Evaluation.add`:

    ```py
    joined | beam.CombineGlobally(EvaluationFn("binary", num_outputs=1, as_of=newest))
    ```

    Args:
      *args: as of `ofb_tf.evaluation.accumulator.Evaluation`.
      **kwargs: as of the same.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._args, self._kwargs = args, kwargs

    def create_accumulator(self) -> Evaluation:
        """An evaluation of nothing."""
        return Evaluation(*self._args, **self._kwargs)

    def add_input(self, accumulator: Evaluation, batch: dict[str, Any]) -> Evaluation:
        """Adds a batch."""
        accumulator.add(**batch)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[Evaluation]) -> Evaluation:
        """Adds up parts."""
        merged = self.create_accumulator()
        for accumulator in accumulators:
            merged.merge(accumulator)
        return merged

    def extract_output(self, accumulator: Evaluation) -> dict[str, Any]:
        """The figures of `Evaluation.result`."""
        return accumulator.result()
