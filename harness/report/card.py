"""A model card for the Hugging Face Hub: what was measured, with intervals, on which questions, and where the model is weak.

The text is ours, the metadata (`model-index`) is made by huggingface_hub's own classes.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from harness import registry
from harness.errors import ConfigError
from harness.report import first_screen, page, sections
from harness.report.first_screen import mapping, shown_variant
from harness.report.headline import primary_metric
from harness.report.sections import Inputs
from harness.variants import label as variant_label

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard


def card(inputs: Inputs) -> ModelCard:
    """The card of a run.

    Raises:
        ConfigError: huggingface_hub is not installed, or no fine-tuned model was scored.
    """
    try:
        from huggingface_hub import ModelCard, ModelCardData
    except ImportError:
        raise ConfigError("a model card needs huggingface_hub", "pip install huggingface_hub") from None
    comparison, variant = inputs.comparison, shown_variant(inputs.comparison)
    metric = primary_metric(comparison)
    if variant is None or metric is None:
        raise ConfigError("there is no fine-tuned model to describe", "run harness predict, score and compare")
    data = ModelCardData(
        model_name=_name(inputs),
        base_model=_base(inputs),
        tags=["question-answering", "qa-harness"],
        pipeline_tag="text-generation",
        eval_results=_results(inputs, variant),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(inputs, variant, metric)}", ignore_metadata_errors=False)


def push(made: ModelCard, repository: str) -> str:
    """Uploads the card as that of a Hub model, with the token that huggingface_hub finds; returns its address.

    Raises:
        ConfigError: the Hub refuses it or cannot be reached.
    """
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        made.validate()
        return str(made.push_to_hub(repository, commit_message="Model card with evaluation results"))
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "check the name, the network, and that hf auth login has a token that may write"
        raise ConfigError(f"the card was not uploaded to {repository}: {reason}", hint) from None


def _name(inputs: Inputs) -> str:
    return page.visible(inputs.title.title or inputs.comparison.run)


def _base(inputs: Inputs) -> str | None:
    """The base model if it is on the Hub; a folder of this machine means nothing to others."""
    config = mapping(inputs.comparison.provenance.get("config"))
    path = str(
        (inputs.train.base.get("path") if inputs.train else None) or mapping(config.get("model")).get("path") or ""
    )
    name = first_screen.model_name(path)
    return name if "/" in name else None


def _results(inputs: Inputs, variant: str) -> list[EvalResult]:
    """Each metric of the shown variant as one entry of `model-index`, its interval and signature as arguments."""
    from huggingface_hub import EvalResult

    comparison = inputs.comparison
    source = PurePath(inputs.split.source).name if inputs.split else "held-out questions"
    return [
        EvalResult(
            task_type="question-answering",
            task_name="Question answering",
            dataset_type=source,
            dataset_name=f"{source}, {comparison.n} held-out questions",
            dataset_revision=comparison.split_id,
            metric_type=metric,
            metric_name=registry.metric_label(metric),
            metric_value=round(measured.value, 4),
            metric_args={"ci95": _rounded(measured.ci95), "n": measured.n, "signature": measured.signature},
        )
        for metric, measured in comparison.variants[variant].metrics.items()
        if measured.value is not None
    ]


def _rounded(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else [round(end, 4) for end in interval]


def _text(inputs: Inputs, variant: str, metric: str) -> str:
    comparison, shared = inputs.comparison, page.shared(inputs)
    asked = comparison.provenance.get("variants", {}).get(variant, {})
    hashes: dict[str, Any] = {
        "split": comparison.split_id,
        "prompts": asked.get("prompts_sha256"),
        "tokenizer": asked.get("tokenizer_sha256"),
        "weights": asked.get("weights_sha256"),
        "metric": comparison.variants[variant].metrics[metric].signature,
    }
    return (
        page.environment(escape=False)
        .get_template("card.md.j2")
        .render(
            c=comparison,
            inputs=inputs,
            name=_name(inputs),
            variant=variant_label(variant),
            hashes={key: value for key, value in hashes.items() if value},
            weak=sections.breakdowns(comparison),
            **shared,
        )
    )
