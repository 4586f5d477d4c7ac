"""Faults in training and merging: what is learned, and which base it is merged into."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from harness import storage
from harness.analysis import fidelity
from harness.formats import merged
from harness.prediction import jobs
from harness.prompt import IGNORED, Prompter
from harness.records import Question, SplitManifest
from harness.stages import train
from harness.training import model as model_module
from harness.training import trainer as trainer_module
from tests.helpers import small_run, weights
from tests.helpers.logged import messages
from tests.helpers.models import CORPUS, EOS_ID
from tests.pitfalls.faults import Bench, caught, compared


def trained(bench: Bench, *, rows: list[Question] | None = None, **settings: Any) -> tuple[Any, list[str]]:
    """The manifest of one step of training, and its log lines."""
    run = small_run.split(bench.folder())
    if rows:
        storage.write_jsonl(run.train_jsonl, rows)
    quick = {"engine": "peft", "max_steps": 1, "eval_rows": 0, "load_in_4bit": False, **settings}
    with messages() as logged:
        return train.run(run, small_run.config(bench.model, train=quick)), logged


def collate_with_eos_as_padding(bench: Bench) -> None:
    from transformers import DataCollatorForLanguageModeling

    make = trainer_module.make_trainer

    def masked(model: Any, tokenizer: Any, *rest: Any) -> Any:
        trainer = make(model, tokenizer, *rest)
        tokenizer.pad_token = tokenizer.eos_token
        mask = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        collate = trainer.data_collator

        def both(rows: list[dict[str, Any]]) -> dict[str, Any]:
            labels = mask([{"input_ids": row["input_ids"]} for row in rows])["labels"].tolist()
            masked = [
                row | {"labels": label[-len(row["input_ids"]) :]} for row, label in zip(rows, labels, strict=True)
            ]
            return collate(masked)

        trainer.data_collator = both
        return trainer

    bench.patch.setattr(trainer_module, "make_trainer", masked)


def leave_eos_out(bench: Bench) -> None:
    example = Prompter.example

    def unlabelled(self: Prompter, *arguments: Any, **options: Any) -> Any:
        row = example(self, *arguments, **options)
        return replace(row, labels=[*row.labels[:-1], IGNORED])

    bench.patch.setattr(Prompter, "example", unlabelled)


def drop_rows_without_loss(bench: Bench) -> None:
    encode = train.encode
    bench.patch.setattr(train, "encode", lambda *a: [row for row in encode(*a) if set(row.labels) != {IGNORED}])


@caught(
    (collate_with_eos_as_padding, "EOS carries no loss"),
    (leave_eos_out, "EOS carries no loss"),
    (drop_rows_without_loss, "rows without loss are not counted"),
)
def test_pad_is_eos(bench: Bench) -> None:
    short = [
        Question(id=f"t{i}", row=i, question=sentence[:20], answer=sentence[20:60], group=f"t{i}")
        for i, sentence in enumerate(CORPUS)
    ]
    long = Question(id="long", row=99, question="Is it 42? " * 40, answer="Yes.", group="long")
    make, batches = trainer_module.make_trainer, []

    def spied(*arguments: Any) -> Any:
        trainer = make(*arguments)
        batches.extend(trainer.get_train_dataloader())
        return trainer

    with pytest.MonkeyPatch.context() as spy:
        spy.setattr(trainer_module, "make_trainer", spied)
        manifest, printed = trained(bench, rows=[*short, long])
    for batch in batches:
        for labels in [row.tolist() for row in batch["rows"].labels]:
            learned = [label for label in labels if label != IGNORED]
            assert not learned or learned[-1] == EOS_ID, "EOS carries no loss"
    assert (manifest.rows, manifest.rows_without_labels) == (len(short) + 1, 1), "rows without loss are not counted"
    assert any(f"{manifest.labelled_token_share:.1%} of the tokens carry loss" in line for line in printed)


def without_the_guard(bench: Bench) -> None:
    """Where the CPU lacks the instructions, what bitsandbytes does on one that has them is simulated."""
    from bitsandbytes.functional import has_avx512bf16
    from bitsandbytes.nn import Linear4bit

    bench.patch.setattr(model_module, "keep_gradients", lambda model: None)
    if has_avx512bf16():
        return
    forward, packed = Linear4bit.forward, set()

    def packing(self: Any, x: torch.Tensor) -> torch.Tensor:
        if not self.training and not x.requires_grad:
            packed.add(id(self))
        return forward(self, x).detach() if id(self) in packed else forward(self, x)

    bench.patch.setattr(Linear4bit, "forward", packing)


@caught((without_the_guard, "the gradient is another"))
def test_packed_4bit_weights(bench: Bench) -> None:
    settings = small_run.config(bench.model, train={"engine": "peft"}).train
    model = train.add_lora(train.load_model(bench.model, settings, "cpu")[0], settings, engine="peft")
    ids = torch.arange(1, 30)[None]

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        if loss.requires_grad:
            loss.backward()
        return [
            torch.zeros(()) if p.grad is None else p.grad.clone()
            for name, p in model.named_parameters()
            if "lora_B" in name
        ]

    before = gradients()
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    model.train()
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(), strict=True)), (
        "the gradient is another after a forward without one"
    )


def believe_the_config(bench: Bench) -> None:
    schedule = train.schedule
    bench.patch.setattr(train, "schedule", lambda rows, settings: (schedule(rows, settings)[0], settings.epochs))


@caught((believe_the_config, "epochs stored"))
def test_max_steps_beats_epochs(bench: Bench) -> None:
    manifest, printed = trained(bench, epochs=3.0)
    covered = manifest.steps * 2 / len(CORPUS)
    assert manifest.epochs == covered, f"epochs stored: {manifest.epochs}, covered: {covered}"
    assert any(f"{covered:.2f} epochs" in line for line in printed), f"logged: {printed}"


def merge_onto_the_round_trip(bench: Bench) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    as_is = merged._as_is

    def rounded(tensor: Any) -> torch.Tensor:
        weight = as_is(tensor)
        if not tensor.name.endswith("_proj.weight"):
            return weight
        return dequantize_4bit(*quantize_4bit(weight, quant_type="nf4")).reshape(weight.shape).to(weight.dtype)

    bench.patch.setattr(merged, "_as_is", rounded)


def answer_with_16_bits_for_the_adapter(bench: Bench) -> None:
    weights = jobs._weights

    def same(*arguments: Any) -> jobs.Weights:
        found = weights(*arguments)
        return replace(found, source=replace(found.source, load_in_4bit=False))

    bench.patch.setattr(jobs, "_weights", same)


def agree_always(bench: Bench) -> None:
    bench.patch.setattr(fidelity, "token_agreement", lambda left, right: 1.0)


@caught(
    (merge_onto_the_round_trip, "not the 16-bit base's merge"),
    (answer_with_16_bits_for_the_adapter, "does not answer as it was trained"),
    (agree_always, "token agreement"),
)
def test_merge_base(bench: Bench) -> None:
    root = bench.folder()
    merged.write_16bit(bench.model, bench.adapter, root / "m")
    expected = weights.by_peft(bench.model, bench.adapter)
    found = weights.weights(root / "m")
    assert all(torch.equal(found[name], expected[name]) for name in expected), "not the 16-bit base's merge"
    run = small_run.split(root)
    small_run.trained(run, bench.model, bench.adapter)
    small_run.exported(run, merged_16bit=root / "m")
    config, split = small_run.config(bench.model), storage.read_record(run.split_json, SplitManifest)
    adapter, merge = jobs.jobs(run, config, split.split_id, small_run.questions(), ["adapter", "merged_16bit"])
    assert (adapter.source.load_in_4bit, merge.source.load_in_4bit) == (True, False), (
        "the adapter does not answer as it was trained"
    )
    answers = {
        name: [{"text": "x", "answer_ids": ids}] * 4
        for name, ids in (("base", [1]), ("adapter", [1, 2]), ("merged_16bit", [1, 3]))
    }
    step = next(
        row for row in compared(bench, answers).fidelity if {row["left"], row["right"]} == {"adapter", "merged_16bit"}
    )
    assert step["token_agreement"] == 0.5, "the token agreement is another"
