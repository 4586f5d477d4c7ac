"""The metrics as `evaluate.Metric`: same scores, for code that speaks Hugging Face's interface. Never touches the network."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from harness.metrics.base import Metric


class EvaluateMetric(evaluate.Metric):
    """An `evaluate.Metric` around one of the harness's metrics; `of` makes the subclass that carries its name.

    `compute(predictions=[...], references=[...])` takes one reference, or a list of references, per prediction, and returns what
    `harness.metrics.Metric.compute` does.
    """

    metric: Metric

    def __init__(self, **options: Any):
        super().__init__(keep_in_memory=True, **options)

    def _build_data_dir(self) -> str:
        # Evaluate would make a folder in the home even for a metric that stays in memory.
        return ""

    @classmethod
    def of(cls, metric: Metric, **options: Any) -> EvaluateMetric:
        """The `evaluate.Metric` of a metric."""
        return type(type(metric).__name__, (cls,), {"metric": metric, "__doc__": metric.description})(**options)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.metric.description,
            citation="",
            inputs_description="predictions: list of answers; references: for each one its reference, or a list of them.",
            features=[
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )

    def _compute(self, predictions: list[str], references: list[str] | list[list[str]]) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.metric.compute(predictions=predictions, references=references)
