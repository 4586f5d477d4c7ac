"""Similarity of meaning by a sentence-transformers model that the user names; off by default (`score.semantic_model`).

A paraphrase of the reference scores high here and low on every other metric. So does an answer that is wrong in one word: "Article 32" is very
similar to "Article 226". Use it in addition to the other metrics, never instead of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import storage
from harness.errors import ConfigError, ModelError
from harness.metrics.base import Metric
from harness.models import base_model

BATCH = 32
DECIMALS = 6
"""Decimals of a score. The last bits of an embedding depend on the batch; in double precision that is 1e-15, which rounding removes."""
KEPT = 20_000
"""Embeddings held at once: references, and answers that several variants give, are embedded once."""


class SemanticSimilarity(Metric):
    """Cosine of the two texts' embeddings, clipped to 0..1. A blank text equals another blank text (1), and nothing else (0).

    On the CPU and in double precision, so that a text has one embedding whatever it is batched with.

    Args:
        model: a folder, or a hub name; None: only name and description are available.

    Raises:
        ConfigError: sentence-transformers is not installed; ModelError: the model is not there or cannot be loaded.
    """

    name = "semantic_similarity"
    description = "Cosine of sentence embeddings: semantic similarity, blind to a wrong number."
    normaliser = "strip"
    tokenizer = "model"

    def __init__(self, model: str | None = None):
        self._model: Any = None
        self._sha256 = "none"
        self._known: dict[str, NDArray[np.float64]] = {}
        if model is None:
            return
        try:
            self.library = f"sentence-transformers-{version('sentence-transformers')}"
        except PackageNotFoundError:
            raise ConfigError(
                "score.semantic_model is set and sentence-transformers is not installed",
                'pip install -c requirements/constraints.txt -e ".[semantic]", or leave score.semantic_model out',
            ) from None
        folder = _folder(model)
        self._sha256 = storage.sha256_tree(
            folder, lambda p: not any(part.startswith(".") for part in p.relative_to(folder).parts)
        )
        self._model = _load(folder)

    @property
    def signature(self) -> str:
        """Everything that affects the number, the hash of the model's files included."""
        return f"{super().signature}|model:{self._sha256[:16]}"

    def score_pair(self, prediction: str, reference: str) -> float | None:
        """Similarity in 0..1."""
        return self.score_all([prediction], [[reference]])[0]

    def score_all(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float | None]:
        """Best similarity over each answer's references; None without a reference. Every text that is new is embedded in batches."""
        left = [prediction.strip() for prediction in predictions]
        right = [[reference.strip() for reference in several] for several in references]
        self._embed([*left, *(reference for several in right for reference in several)])
        return [
            max((self._similarity(p, r) for r in several), default=None) for p, several in zip(left, right, strict=True)
        ]

    def _similarity(self, left: str, right: str) -> float:
        if not left or not right:
            return float(left == right)
        return round(float(np.clip(self._known[left] @ self._known[right], 0.0, 1.0)), DECIMALS)

    def _embed(self, texts: Sequence[str]) -> None:
        if self._model is None:
            raise ConfigError("semantic_similarity has no model", "set score.semantic_model to a folder or hub name")
        wanted = {text for text in texts if text}
        if len(self._known) + len(wanted) > KEPT:
            self._known.clear()
        new = sorted(wanted - self._known.keys())
        if new:
            found = self._model.encode(
                new, batch_size=BATCH, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
            )
            self._known.update(zip(new, np.asarray(found, dtype=np.float64), strict=True))


def _folder(model: str) -> Path:
    """The model's folder: as given, or of the hub's cache, which is filled if there is a network."""
    if Path(model).is_dir():
        return Path(model)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelError(
            "is not a folder", "set score.semantic_model to a sentence-transformers folder or hub name", file=model
        )
    base_model.quiet_libraries()
    from huggingface_hub import snapshot_download

    name = model if "/" in model else f"sentence-transformers/{model}"
    try:
        return Path(snapshot_download(name, ignore_patterns=["onnx/*", "openvino/*", "*.h5", "*.ot", "*.msgpack"]))
    except Exception as error:  # offline machines, proxies and mirrors fail in many ways
        raise ModelError(
            f"is not a folder, and cannot be fetched from the hub ({type(error).__name__})",
            "download it where there is a network and set score.semantic_model to its folder",
            file=model,
        ) from None


def _load(folder: Path) -> Any:
    base_model.quiet_libraries()
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(str(folder), device="cpu", local_files_only=True).double().eval()
    except Exception as error:  # the package's, transformers', torch's and safetensors' own
        raise ModelError(
            f"is not a sentence-transformers model that can be loaded ({type(error).__name__}: {error})",
            "set score.semantic_model to another folder or hub name",
            file=folder,
        ) from None
