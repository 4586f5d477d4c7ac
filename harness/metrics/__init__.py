"""Metrics, found by name: each scores one answer against its references as a fraction in 0..1.

    find("token_f1").score_one("the President", ["President of India"])     # 0.5
    find("token_f1").compute(predictions=[...], references=[...])           # the mean, with its signature
    as_evaluate("token_f1")                                                 # the same as an `evaluate.Metric`
    find("semantic_similarity", model="path/to/model")                      # what its class takes

A new metric is one class here and one entry of `harness.registry.METRICS`. Importing this package imports no metric and none of their libraries.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from harness.errors import ConfigError
from harness.metrics.base import Metric
from harness.registry import METRICS

if TYPE_CHECKING:
    import evaluate

__all__ = ["METRICS", "Metric", "as_evaluate", "configured", "find"]


@cache
def find(name: str, **options: Any) -> Metric:
    """The metric of that name, imported only now, made with its class's own options; ConfigError if there is none."""
    if name not in METRICS:
        raise ConfigError(f"no metric {name!r}", f"use one of {', '.join(METRICS)}")
    module, _, attribute = METRICS[name].implementation.partition(":")
    return getattr(import_module(module), attribute)(**options)


def configured(name: str, normalizer: str) -> Metric:
    """The metric of that name with the normaliser of the config (`score.normalizer`), where it takes one."""
    return find(name, normalizer=normalizer) if METRICS[name].normalized else find(name)


def as_evaluate(name: str) -> evaluate.Metric:
    """The metric of that name as an `evaluate.Metric`, which needs no network (`evaluate` itself takes seconds to import)."""
    from harness.metrics.evaluate_metric import EvaluateMetric

    return EvaluateMetric.of(find(name))
