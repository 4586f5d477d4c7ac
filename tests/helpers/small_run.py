"""A run folder as split, train and export leave it, around a small model: no stage has to run before the one under test."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from harness import storage
from harness.config import PROJECTIONS, Config
from harness.models import base_model
from harness.records import Artifact, ExportManifest, Question, TrainManifest
from harness.storage import RunFolder
from tests.helpers.models import CORPUS
from tests.helpers.scored_run import split_of

QUESTIONS = [
    ("What does Article 21 protect?", "life and personal liberty"),
    ("Who is the head of the Union?", "The President of India."),
    ("Who is the head of a State?", "The Governor."),
    (
        "Under which Article does Parliament provide for salaries, allowances and pensions of its Members?",
        "Article 106",
    ),
    ("What does Article 14 deal with?", "Equality before the law and the equal protection of the laws."),
    ("भारत का सर्वोच्च विधान क्या है?", "संविधान"),
    ("Is it 42?", "Yes."),
    ("Which day was it -- 1950-01-26, say, or 1949-11-26?", "1950-01-26"),
]
TEMPLATE = "### Question:\n{question}\n\n### Answer:\n"


def config(model: Path, **sections: dict[str, Any]) -> Config:
    """A config for `model` on the CPU, without W&B; `sections` add to its sections."""
    values: dict[str, dict[str, Any]] = {
        "model": {"path": str(model)},
        "prompt": {"template": TEMPLATE},
        "predict": {"variants": ["base"], "max_new_tokens": 12},
        "train": {"max_length": 256, "batch_size": 2, "learning_rate": 1e-3, "eval_rows": 2},
        "wandb": {"enabled": False},
    }
    return Config.model_validate(
        {
            "device": "cpu",
            **{key: values.get(key, {}) | sections.get(key, {}) for key in values.keys() | sections.keys()},
        }
    )


def questions(pairs: list[tuple[str, str]] = QUESTIONS) -> list[Question]:
    return [Question(id=f"q{i}", row=i + 1, question=q, answer=a, group=f"g{i}") for i, (q, a) in enumerate(pairs)]


def split(root: Path, *, asked: list[Question] | None = None, name: str = "r") -> RunFolder:
    """A run folder whose held-out questions are `asked`, and whose training questions come from the model's sentences."""
    run, asked = RunFolder(name, root), asked or questions()
    rows = [
        Question(id=f"t{i}", row=100 + i, question=text[:20], answer=text[20:], group=f"t{i}")
        for i, text in enumerate(CORPUS)
    ]
    storage.write_jsonl(run.heldout_jsonl, asked)
    storage.write_jsonl(run.train_jsonl, rows)
    storage.write_jsonl(run.dev_jsonl, [q.model_copy(update={"id": f"dev-{q.id}"}) for q in asked])
    storage.write_json(run.split_json, split_of(asked))
    return run


def save_adapter(
    folder: Path, model: Path, *, std: float = 0.05, seed: int = 0, r: int = 4, alpha: int = 8, **options: Any
) -> Path:
    """Saves a LoRA adapter for `model` whose B is random with this standard deviation (0: an adapter that does nothing)."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = LoraConfig(
        **{"r": r, "lora_alpha": alpha, "target_modules": PROJECTIONS, "task_type": "CAUSAL_LM", **options}
    )
    adapted: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), settings)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std) if std else torch.nn.init.zeros_(parameter)
    adapted.save_pretrained(folder)
    return folder


def trained(run: RunFolder, model: Path, adapter: Path) -> TrainManifest:
    """Puts an adapter and its manifest into the run folder, as train would."""
    shutil.copytree(adapter, run.adapter, dirs_exist_ok=True)
    manifest = TrainManifest(
        fingerprint="f",
        split_id="s",
        engine="peft",
        device="cpu",
        base={"path": str(model), "weights_sha256": base_model.weights_sha256(model)},
        adapter_sha256=base_model.weights_sha256(run.adapter),
        trainable_parameters=1,
        trainable_share=0.1,
        steps=1,
        epochs=1.0,
        rows=1,
        rows_cut=0,
        rows_without_labels=0,
        labelled_token_share=0.5,
        tokens=1,
        final_loss=1.0,
        final_dev_loss=None,
        wandb={},
        seconds=1.0,
        peak_memory_bytes=1,
    )
    storage.write_json(run.train_json, manifest)
    return manifest


def exported(run: RunFolder, **artifacts: Path) -> ExportManifest:
    """Puts model folders or files into the run folder under these format names, with their manifest, as export would."""
    entries = {}
    for name, source in artifacts.items():
        place = run.artifact(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, place) if source.is_dir() else shutil.copyfile(source, place)
        size = place.stat().st_size if place.is_file() else base_model.weights_size(place)
        entries[name] = Artifact(
            format=name,
            path=place.relative_to(run.path).as_posix(),
            sha256=base_model.artifact_sha256(place),
            size_bytes=size,
            tensors=1,
            seconds=0.0,
            checks=[],
        )
    manifest = ExportManifest(fingerprint="f", artifacts=entries, seconds=0.0)
    storage.write_json(run.export_json, manifest)
    return manifest
