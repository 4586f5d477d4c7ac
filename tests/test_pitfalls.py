"""What silently corrupts a comparison of models, and proof that each such fault is caught.

A fault is a check that holds for the harness as it is, and ways of putting the fault in: each must make the same check, or a guard on its way,
fail and say so.

    gguf_defaults           a GGUF backend answers with its own defaults: 16 tokens, repeat penalty 1.1, a temperature
    stale_cache             the base's cached answers are served for other weights at the same path
    adapter_not_applied     the adapter is not applied, or more than the adapter is
    right_padding           a batch is padded on the right, at once or after the first generate
    bos_and_template        no BOS, two of them, or other token ids in one backend than in the other
    wrong_end_token         answers run on, because an end token is missing from the stop set
    pad_is_eos              padding with EOS takes the loss from it; rows without loss are dropped in silence
    sampling_by_default     the model's own generation config samples
    slots_and_prompt_cache  llama.cpp answers otherwise by slot or from its prompt cache; the flip rate is not heeded
    normalisation_eats_law  normalising makes "clause (a)" and "clause" equal
    set_f1                  F1 over sets takes "right right right" for "right"
    rouge_variants          ROUGE with stemming, with the ASCII tokenizer, or under one signature for both
    bootstrap               standard errors by sqrt(B), resamples of half the size, wins counted as ties
    a_against_a             a model against itself is significant
    interval_of_width_0     0 of 408 is known exactly
    gate_arithmetic         division by a base of 0, rounding up to the floor, improvements that fail, nothing that passes
    save_failure            what could not be saved is reported as done
    merge_base              merged onto another base than trained on, or shown as one with the adapter on 4 bits
    packed_4bit_weights     bitsandbytes packs 4-bit weights for AVX512-BF16, and their gradient is gone
    max_steps_beats_epochs  the epochs asked for are told, not those that max_steps leaves
    failures_scored_0       failed answers count as wrong ones; a mean over nothing is a number
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from harness import base, cli, jobs, store
from harness.analysis import fidelity, noninferiority, resampling, statistics
from harness.analysis.resampling import Totals
from harness.backends import Generation, Source
from harness.backends import llamacpp as llamacpp_module
from harness.backends import transformers as transformers_module
from harness.backends.llamacpp import LlamaCppBackend
from harness.backends.transformers import TransformersBackend
from harness.errors import HarnessError
from harness.formats import gguf, merged
from harness.metrics import base as metrics_base
from harness.metrics import match, rouge, text
from harness.prompt import IGNORED, Prompter, load_tokenizer
from harness.records import Comparison, Prediction, Question, ScoreManifest, SplitManifest
from harness.stages import compare, gate, predict, score, train
from harness.store import RunFolder
from tests import scored_run, small_run, test_llamacpp, test_merged, test_metrics, test_predict
from tests.models import BOS, BOS_ID, CORPUS, EOS_ID, edit_json

NAMES = re.findall(r"^    (\w+)  ", __doc__ or "", re.MULTILINE)
"""Of the table above."""
LIMIT = 80
"""Tokens: more than any sentence that the model knows by heart."""


@dataclass
class Bench:
    """What the checks work on."""

    root: Path
    patch: pytest.MonkeyPatch
    model: Path
    f16: Path
    """The model as GGUF."""
    zero: Path
    """An adapter that does nothing."""
    adapter: Path

    def folder(self) -> Path:
        """A new, empty folder."""
        path = self.root / str(len(list(self.root.iterdir())))
        path.mkdir()
        return path

    def prompts(self) -> list[list[int]]:
        """Beginnings of the model's sentences, of 10 to 16 tokens: enough to go on by heart."""
        prompter = Prompter(load_tokenizer(self.model), "{question}")
        return [prompter.ids(sentence)[: 10 + i] for i, sentence in enumerate(CORPUS)]


Step = Callable[[Bench], object]


@dataclass(frozen=True)
class Fault:
    """A check, and each way of putting the fault in with what must then be said."""

    check: Step
    plants: tuple[tuple[Step, str], ...]


FAULTS: dict[str, Fault] = {}


def caught(*plants: tuple[Step, str]) -> Callable[[Step], Step]:
    """Registers a check under its name with its plants: (puts the fault in, regular expression of the failure)."""

    def register(check: Step) -> Step:
        FAULTS[check.__name__] = Fault(check, plants)
        return check

    return register


@pytest.fixture(scope="module")
def files(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pitfalls")
    gguf.write(tiny_model, root / "f16.gguf", "f16")
    zero = small_run.save_adapter(root / "zero", tiny_model, std=0.0)
    return {
        "model": tiny_model,
        "f16": root / "f16.gguf",
        "zero": zero,
        "adapter": small_run.save_adapter(root / "lora", tiny_model, std=0.5),
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_fault_is_caught(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    fault = FAULTS[name]
    for plant, said in ((lambda _: None, None), *fault.plants):
        with pytest.MonkeyPatch.context() as patch, torch.enable_grad():
            bench = Bench(tmp_path, patch, **files)
            plant(bench)
            if said is None:
                fault.check(bench)
                continue
            with pytest.raises((AssertionError, HarnessError, ZeroDivisionError), match=said):
                fault.check(bench)


def test_every_fault_stands_in_the_table() -> None:
    assert FAULTS.keys() == set(NAMES)


# ----------------------------------------------------------------------------------------------------------- helpers


def compared(bench: Bench, answers: dict[str, list[Any]], **changes: Any) -> Comparison:
    """The comparison of these answers (texts, or fields of predictions), the same number from every variant."""
    asked = scored_run.questions(n_groups=len(answers["base"]), size=1)
    by_id = {name: {q.id: answer for q, answer in zip(asked, rows, strict=True)} for name, rows in answers.items()}
    given: dict[str, Callable[[Question], Any]] = {name: lambda q, rows=rows: rows[q.id] for name, rows in by_id.items()}
    run = scored_run.make(bench.folder(), given, asked=asked, **changes)
    score.run(run, scored_run.CONFIG)
    return compare.run(run, scored_run.CONFIG)


def alarms(comparison: Comparison) -> list[str]:
    return [alarm.code for alarm in comparison.alarms]


def job(bench: Bench, model: Path, root: Path, variant: str = "base", **sections: Any) -> jobs.Job:
    """The job of a variant in a run folder below `root`."""
    run = small_run.split(root)
    split = store.read_record(run.split_json, SplitManifest)
    return next(jobs.jobs(run, small_run.config(model, **sections), split.split_id, small_run.questions(), [variant]))


def answered(made: jobs.Job) -> list[dict[str, Any]]:
    """What a job answers in this process, but for the time it took."""
    with torch.no_grad():
        predict.answer(made)
    return [p.model_dump(exclude={"seconds"}) for p in store.iter_records(made.lines, Prediction)]


# ---------------------------------------------------------------------------------------------------------- generation


def send(**fields: Any) -> Step:
    """llama.cpp gets these fields instead of those asked for."""

    def plant(bench: Bench) -> None:
        post = LlamaCppBackend._post
        bench.patch.setattr(LlamaCppBackend, "_post", lambda self, body, route="/completion": post(self, body | fields, route))

    return plant


def send_only_what_lm_eval_does(bench: Bench) -> None:
    bench.patch.setattr(llamacpp_module, "request", lambda generation, room: {"stop": [], "temperature": generation.temperature})


def cap_behind_the_guard(bench: Bench) -> None:
    send(n_predict=16)(bench)
    bench.patch.setattr(llamacpp_module, "_same", lambda used, sent: True)


@caught(
    (send_only_what_lm_eval_does, "not sent: "),
    (send(n_predict=16), "llama.cpp used n_predict=16, not 80"),
    (send(repeat_penalty=1.1), "llama.cpp used repeat_penalty=1.1"),
    (send(temperature=0.8), "llama.cpp used temperature=0.8"),
    (cap_behind_the_guard, "'runaway'"),
)
def gguf_defaults(bench: Bench) -> None:
    sent = llamacpp_module.request(Generation(LIMIT, (EOS_ID,), 0), LIMIT)
    wanted = {"n_predict", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "samplers", "cache_prompt"}
    assert not wanted - sent.keys(), f"not sent: {sorted(wanted - sent.keys())}"
    with closing(test_llamacpp.backend(bench.f16, limit=LIMIT)) as model:
        found = model.answer(bench.prompts())
    rows = [{"text": "x", "finish_reason": answer.finish_reason} for answer in found]
    assert "runaway" not in alarms(compared(bench, {"base": rows}))


def key_of_the_path(bench: Bench) -> None:
    bench.patch.setattr(jobs.Job, "key", lambda self, version: store.sha256_json([str(self.source.path), self.prompts_sha256, version]))


@caught((key_of_the_path, "of other weights"), (lambda b: b.patch.setattr(base, "weights_sha256", str), "of other weights"))
def stale_cache(bench: Bench) -> None:
    root = bench.folder()
    model = shutil.copytree(bench.model, root / "m")
    first = job(bench, model, root)
    answered(first)
    assert predict._answered(job(bench, model, root), False) is not None, "an unchanged job is answered again"
    merged.write_16bit(bench.model, bench.adapter, root / "other")
    shutil.copyfile(root / "other" / "model.safetensors", model / "model.safetensors")
    assert predict._answered(job(bench, model, root), False) is None, "served answers of other weights"


def load_without_the_adapter(bench: Bench) -> None:
    bench.patch.setattr("peft.PeftModel.from_pretrained", lambda model, *_, **__: model)


def load_more_than_the_adapter(bench: Bench) -> None:
    def load(model: Any, *_: Any, **__: Any) -> Any:
        model.model.norm.weight.data.neg_()
        return model

    bench.patch.setattr("peft.PeftModel.from_pretrained", load)


@caught((load_without_the_adapter, "'adapter_without_effect'"), (load_more_than_the_adapter, "zero adapter changed"))
def adapter_not_applied(bench: Bench) -> None:
    plain, zero, tuned = (test_predict.answers(Source(bench.model, adapter=a), bench.prompts()) for a in (None, bench.zero, bench.adapter))
    assert zero == plain, "a zero adapter changed an answer"
    texts = {name: [str(ids) for ids in rows] for name, rows in (("base", plain), ("adapter", tuned))}
    assert "adapter_without_effect" not in alarms(compared(bench, texts))


def pad_on_the_right(*, after: int) -> Step:
    """The padding side changes after so many batches."""

    def plant(bench: Bench) -> None:
        left, asked = TransformersBackend._generate, []

        def generate(self: Any, prompts: Any) -> list[list[int]]:
            asked.append(prompts)
            if len(asked) <= after:
                return left(self, prompts)
            width = max(map(len, prompts))
            ids = torch.tensor([[*p, *[self.pad_id] * (width - len(p))] for p in prompts])
            mask = torch.tensor([[1] * len(p) + [0] * (width - len(p)) for p in prompts])
            return self.model.generate(input_ids=ids, attention_mask=mask)[:, width:].tolist()

        bench.patch.setattr(TransformersBackend, "_generate", generate)

    return plant


@caught((pad_on_the_right(after=0), "batch 0 answers otherwise"), (pad_on_the_right(after=1), "batch 1 answers otherwise"))
def right_padding(bench: Bench) -> None:
    model, prompts = test_predict.transformers(Source(bench.model)), bench.prompts()
    with torch.no_grad():
        batches = [[c.answer_ids for c in model.answer(prompts)] for _ in range(2)]
        alone = [model.answer([p])[0].answer_ids for p in prompts]
    for i, batch in enumerate(batches):
        assert batch == alone, f"batch {i} answers otherwise than one by one"


def add_special_tokens(bench: Bench) -> None:
    bench.patch.setattr(Prompter, "_encode", lambda self, text: self.tokenizer(text)["input_ids"])


def leave_bos_out(bench: Bench) -> None:
    bench.patch.setattr(Prompter, "ids", lambda self, question: self._encode(self.text(question)))


def write_bos_into_the_template(bench: Bench) -> None:
    rendered = Prompter.text
    bench.patch.setattr(Prompter, "text", lambda self, question: BOS + rendered(self, question))


@caught(
    (add_special_tokens, "2 BOS"),
    (leave_bos_out, "0 BOS"),
    (write_bos_into_the_template, "'prompt_mismatch'"),
)
def bos_and_template(bench: Bench) -> None:
    prompter = Prompter(load_tokenizer(bench.model), small_run.TEMPLATE)
    asked: dict[str, list[Any]] = {"base": [], "gguf_f16": []}
    with closing(test_llamacpp.backend(bench.f16)) as model:
        for question, _ in small_run.QUESTIONS:
            ids = prompter.ids(question)
            assert ids.count(BOS_ID) == 1, f"{ids.count(BOS_ID)} BOS in a prompt"
            asked["base"].append({"text": "x", "prompt_ids": ids})
            asked["gguf_f16"].append({"text": "y", "prompt_ids": model.tokenize(prompter.text(question))})
    assert "prompt_mismatch" not in alarms(compared(bench, asked))


@caught(
    (lambda b: b.patch.setattr(jobs, "stop_ids", lambda tokenizer, configured: (configured,)), "'runaway'"),
    (lambda b: b.patch.setattr(jobs, "stop_ids", lambda tokenizer, configured: (tokenizer.eos_token_id,)), "not the union"),
)
def wrong_end_token(bench: Bench) -> None:
    root = bench.folder()
    model = shutil.copytree(bench.model, root / "m")
    edit_json(model / "generation_config.json", eos_token_id=7)
    made = job(bench, model, root, predict={"max_new_tokens": LIMIT})
    prompts = bench.prompts()
    rows = answered(replace(made, prompts=prompts, questions=[f"q{i}" for i in range(len(prompts))]))
    found = [{"text": "x", "finish_reason": row["finish_reason"]} for row in rows]
    assert "runaway" not in alarms(compared(bench, {"base": found}))
    assert made.generation.stop_ids == (7, EOS_ID), "the end tokens are not the union"


def sample(bench: Bench) -> None:
    from transformers import GenerationConfig

    wild = {"do_sample": True, "temperature": 5.0, "top_k": 0}
    bench.patch.setattr(transformers_module, "GenerationConfig", lambda **settings: GenerationConfig(**{**settings, **wild}))


@caught((sample, "two runs differ"))
def sampling_by_default(bench: Bench) -> None:
    root = bench.folder()
    model = shutil.copytree(bench.model, root / "m")
    edit_json(model / "generation_config.json", do_sample=True, temperature=5.0, top_k=0)
    first, second = (answered(job(bench, model, bench.folder())) for _ in range(2))
    assert first == second, "two runs differ"


def mix_up_the_slots(bench: Bench) -> None:
    post = LlamaCppBackend._post

    def mixed(self: LlamaCppBackend, body: Any, route: str = "/completion") -> Any:
        status, found = post(self, body, route)
        if isinstance(found, list):
            found = [answer | {"index": (answer["index"] + self.execution.slots - 1) % len(found)} for answer in found]
        return status, found

    bench.patch.setattr(LlamaCppBackend, "_post", mixed)


def forget_the_floor(bench: Bench) -> None:
    verdict = statistics.verdict
    bench.patch.setattr(statistics, "verdict", lambda delta, ci95, p, margin, floor=0.0: verdict(delta, ci95, p, margin))


@caught(
    (send(cache_prompt=True), "from the prompt cache"),
    (mix_up_the_slots, "flip rate of slots"),
    (forget_the_floor, "smaller than the noise"),
)
def slots_and_prompt_cache(bench: Bench) -> None:
    found, cached = [], []
    for slots in (1, 4):
        with closing(test_llamacpp.backend(bench.f16, slots=slots)) as model, pytest.MonkeyPatch.context() as spy:
            post = model._post
            spy.setattr(model, "_post", lambda *sent, post=post: cached.append(post(*sent)) or cached[-1])
            found += [[str(c.answer_ids) for c in model.answer(bench.prompts())] for _ in range(2)]
    assert not sum(answer["timings"]["cache_n"] for _, batch in cached for answer in batch), "tokens came from the prompt cache"
    flips = fidelity.flip_rate(found[0], found[2])
    assert flips == 0, f"flip rate of slots: {flips}"
    right = [q.answer for q in scored_run.questions(n_groups=40, size=1)]
    told = compared(
        bench, {"base": ["nothing"] * 40, "adapter": [*right[:20], *["nothing"] * 20]}, noise={"flip_rate": 0.6, "n": 40, "how": "x"}
    )
    assert told.noise["adapter"]["flip_rate"] == 0.6, "the flip rate is not reported"
    assert not {"better", "worse"} & {pair.verdict for pair in told.pairs}, "a difference smaller than the noise has a verdict"


# ------------------------------------------------------------------------------------------------------------ training


def trained(bench: Bench, *, rows: list[Question] | None = None, **settings: Any) -> tuple[Any, list[str]]:
    """The manifest of one step of training, and what it told."""
    run, told = small_run.split(bench.folder()), []
    if rows:
        store.write_jsonl(run.train_jsonl, rows)
    quick = {"engine": "peft", "max_steps": 1, "eval_rows": 0, "load_in_4bit": False, **settings}
    return train.run(run, small_run.config(bench.model, train=quick), progress=told.append), told


def collate_with_eos_as_padding(bench: Bench) -> None:
    from transformers import DataCollatorForLanguageModeling

    make = train.make_trainer

    def masked(model: Any, tokenizer: Any, *rest: Any) -> Any:
        trainer = make(model, tokenizer, *rest)
        tokenizer.pad_token = tokenizer.eos_token
        collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        trainer.data_collator = lambda rows: collate([{"input_ids": row["input_ids"]} for row in rows])
        return trainer

    bench.patch.setattr(train, "make_trainer", masked)


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
def pad_is_eos(bench: Bench) -> None:
    short = [
        Question(id=f"t{i}", row=i, question=sentence[:20], answer=sentence[20:60], group=f"t{i}") for i, sentence in enumerate(CORPUS)
    ]
    long = Question(id="long", row=99, question="Is it 42? " * 40, answer="Yes.", group="long")
    make, batches = train.make_trainer, []

    def spied(*arguments: Any) -> Any:
        trainer = make(*arguments)
        batches.extend(trainer.get_train_dataloader())
        return trainer

    with pytest.MonkeyPatch.context() as spy:
        spy.setattr(train, "make_trainer", spied)
        manifest, told = trained(bench, rows=[*short, long])
    for batch in batches:
        for labels in batch["labels"].tolist():
            learned = [label for label in labels if label != IGNORED]
            assert not learned or learned[-1] == EOS_ID, "EOS carries no loss"
    assert (manifest.rows, manifest.rows_without_labels) == (len(short) + 1, 1), "rows without loss are not counted"
    assert any(f"{manifest.labelled_token_share:.1%} of the tokens carry loss" in line for line in told)


def without_the_guard(bench: Bench) -> None:
    """On CPUs that do not have the instructions, with a stand-in for what bitsandbytes does on those that do."""
    from bitsandbytes.functional import has_avx512bf16
    from bitsandbytes.nn import Linear4bit

    bench.patch.setattr(train, "keep_gradients", lambda model: None)
    if has_avx512bf16():
        return
    forward, packed = Linear4bit.forward, set()

    def packing(self: Any, x: torch.Tensor) -> torch.Tensor:
        if not self.training and not x.requires_grad:
            packed.add(id(self))
        return forward(self, x).detach() if id(self) in packed else forward(self, x)

    bench.patch.setattr(Linear4bit, "forward", packing)


@caught((without_the_guard, "the gradient is another"))
def packed_4bit_weights(bench: Bench) -> None:
    settings = small_run.config(bench.model, train={"engine": "peft"}).train
    model = train.add_lora(train.load_model(bench.model, settings, "cpu")[0], settings, engine="peft")
    ids = torch.arange(1, 30)[None]

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        if loss.requires_grad:
            loss.backward()
        return [torch.zeros(()) if p.grad is None else p.grad.clone() for name, p in model.named_parameters() if "lora_B" in name]

    before = gradients()
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    model.train()
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(), strict=True)), "the gradient is another after a forward without one"


def believe_the_config(bench: Bench) -> None:
    plan = train.plan
    bench.patch.setattr(train, "plan", lambda rows, settings: (plan(rows, settings)[0], settings.epochs))


@caught((believe_the_config, "epochs stored"))
def max_steps_beats_epochs(bench: Bench) -> None:
    manifest, told = trained(bench, epochs=3.0)
    covered = manifest.steps * 2 / len(CORPUS)
    assert manifest.epochs == covered, f"epochs stored: {manifest.epochs}, covered: {covered}"
    assert any(f"{covered:.2f} epochs" in line for line in told), f"epochs told: {told}"


def merge_onto_the_round_trip(bench: Bench) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    merge = merged._Adapter.merge

    def rounded(self: merged._Adapter, tensor: Any) -> torch.Tensor:
        if tensor.name not in self.targets:
            return merge(self, tensor)
        weight = torch.from_numpy(tensor.read()).reshape(tensor.shape)
        trip = dequantize_4bit(*quantize_4bit(weight, quant_type="nf4")).reshape(tensor.shape).numpy()
        rounded_tensor: Any = SimpleNamespace(dtype=tensor.dtype, name=tensor.name, shape=tensor.shape, file=tensor.file, read=lambda: trip)
        return merge(self, rounded_tensor)

    bench.patch.setattr(merged._Adapter, "merge", rounded)


def answer_with_16_bits_for_the_adapter(bench: Bench) -> None:
    source = jobs._source

    def same(*arguments: Any) -> Any:
        backend, found, sha256, size = source(*arguments)
        return backend, replace(found, load_in_4bit=False), sha256, size

    bench.patch.setattr(jobs, "_source", same)


def agree_always(bench: Bench) -> None:
    bench.patch.setattr(fidelity, "token_agreement", lambda left, right: 1.0)


@caught(
    (merge_onto_the_round_trip, "not the 16-bit base's merge"),
    (answer_with_16_bits_for_the_adapter, "does not answer as it was trained"),
    (agree_always, "token agreement"),
)
def merge_base(bench: Bench) -> None:
    root = bench.folder()
    merged.write_16bit(bench.model, bench.adapter, root / "m")
    expected = test_merged.by_peft(bench.model, bench.adapter)
    found = test_merged.weights(root / "m")
    assert all(torch.equal(found[name], expected[name]) for name in expected), "not the 16-bit base's merge"
    run = small_run.split(root)
    small_run.trained(run, bench.model, bench.adapter)
    small_run.exported(run, merged_16bit=root / "m")
    config, split = small_run.config(bench.model), store.read_record(run.split_json, SplitManifest)
    adapter, merge = jobs.jobs(run, config, split.split_id, small_run.questions(), ["adapter", "merged_16bit"])
    assert (adapter.source.load_in_4bit, merge.source.load_in_4bit) == (True, False), "the adapter does not answer as it was trained"
    answers = {name: [{"text": "x", "answer_ids": ids}] * 4 for name, ids in (("base", [1]), ("adapter", [1, 2]), ("merged_16bit", [1, 3]))}
    step = next(row for row in compared(bench, answers).fidelity if {row["left"], row["right"]} == {"adapter", "merged_16bit"})
    assert step["token_agreement"] == 0.5, "the token agreement is another"


# ------------------------------------------------------------------------------------------------------------- metrics


def normalise_as_squad_does(bench: Bench) -> None:
    def normalised(answer: str) -> str:
        kept = "".join(c for c in answer.lower() if c.isalnum() or c.isspace())
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())

    bench.patch.setattr(match, "normalize_legal", normalised)
    bench.patch.setattr(match, "legal_tokens", lambda answer: normalised(answer).split())


@caught((normalise_as_squad_does, "is taken for"))
def normalisation_eats_law(bench: Bench) -> None:
    for left, right in test_metrics.LEGAL["must_differ"]:
        for metric in (match.ExactMatchNormalized(), match.TokenF1()):
            assert metric.score_pair(left, right) < 1, f"{left!r} is taken for {right!r}"


def f1_of_sets(bench: Bench) -> None:
    bench.patch.setattr(match, "multiset_f1", lambda left, right: metrics_base.multiset_f1(set(left), set(right)))


@caught((f1_of_sets, "1.0 is not 0.5"))
def set_f1(bench: Bench) -> None:
    cases = [
        ("right right right", "right", 0.5),
        ("right", "right right right", 0.5),
        ("president of india", "prime minister of india", 4 / 7),
    ]
    for prediction, reference, expected in cases:
        found = match.TokenF1().score_one(prediction, [reference])
        assert found == pytest.approx(expected), f"{found} is not {expected}"


def stem_by_default(bench: Bench) -> None:
    bench.patch.setattr(rouge.Rouge.__init__, "__defaults__", (True,))


def tokenise_ascii_only(bench: Bench) -> None:
    bench.patch.setattr(rouge, "words", lambda answer: text.ASCII_WORD.findall(answer.lower()))


def sign_without_the_stemmer(bench: Bench) -> None:
    bench.patch.setattr(rouge.Rouge, "signature", property(lambda self: f"{self.name}|v:{self.version}"))


@caught(
    (stem_by_default, "stemmed: 0.769"),
    (tokenise_ascii_only, "other than rouge_score's or the hand-made figure"),
    (sign_without_the_stemmer, "one signature for two metrics"),
)
def rouge_variants(bench: Bench) -> None:
    reference, prediction, _, _, unstemmed = next(case for case in test_metrics.ROUGE if case[1].startswith("Presidents"))
    try:
        found = rouge.Rouge1().score_one(prediction, [reference])
        assert found == pytest.approx(unstemmed), f"stemmed: {found}"
        for reference, prediction, kind, stemmer, expected in test_metrics.ROUGE:
            found = test_metrics.ROUGE_CLASSES[kind](stemmer=stemmer).score_one(prediction, [reference])
            assert found == pytest.approx(expected, abs=1e-12), f"{kind} {found}, other than rouge_score's or the hand-made figure"
    finally:
        rouge._scores.cache_clear()
    signatures = {rouge.Rouge1(stemmer).signature for stemmer in (False, True)}
    assert len(signatures) == 2, "one signature for two metrics"
    fields = rouge.Rouge1().signature
    assert "stem:none" in fields and "tok:unicode-words" in fields and "lib:rouge_score-" in fields


# ---------------------------------------------------------------------------------------------------------- statistics


def divide_by_sqrt_b(bench: Bench) -> None:
    def narrow(totals: Totals, *, resamples: int, seed: int) -> Any:
        return totals.mean + (resampling.bootstrap_means(totals, resamples=resamples, seed=seed) - totals.mean) / np.sqrt(resamples)

    bench.patch.setattr(statistics, "bootstrap_means", narrow)


def draw_half_as_many(bench: Bench) -> None:
    def half(totals: Totals, *, resamples: int, seed: int) -> Any:
        n_groups = len(totals.sums)
        drawn = np.random.default_rng(seed).integers(0, n_groups, (resamples, n_groups // 2))
        return totals.sums[drawn].sum(axis=1) / totals.counts[drawn].sum(axis=1)

    bench.patch.setattr(statistics, "bootstrap_means", half)


def count_wins_as_ties(bench: Bench) -> None:
    paired = statistics.paired_differences

    def tied(*arguments: Any, **options: Any) -> Any:
        return [replace(d, wins=0, ties=d.wins + d.ties) for d in paired(*arguments, **options)]

    bench.patch.setattr(statistics, "paired_differences", tied)


@caught(
    (divide_by_sqrt_b, r"coverage 0\.[0-8].*; standard error of 1000 resamples"),
    (draw_half_as_many, r"coverage (0\.9[89]|1\.0).*; standard error of 1000 resamples"),
    (count_wins_as_ties, r"wins, losses, ties: \(0, 3, 47\)"),
)
def bootstrap(bench: Bench) -> None:
    rng = np.random.default_rng(0)
    hits, datasets = 0, 400
    for seed in range(datasets):
        values, groups = rng.random(120), np.repeat(np.arange(40), 3)
        ci95 = statistics.mean_intervals(values, groups, resamples=200, seed=seed)[0].ci95
        hits += ci95 is not None and ci95[0] <= 0.5 <= ci95[1]
    totals = Totals.of(rng.random(240), np.repeat(np.arange(60), 4))
    expected = resampling.cluster_se(totals)[0] * np.sqrt(59 / 60)
    for resamples in (1000, 4000):
        found = statistics.bootstrap_means(totals, resamples=resamples, seed=0)[:, 0].std(ddof=1)
        said = f"coverage {hits / datasets:.3f}; standard error of {resamples} resamples {found}, closed form {expected}"
        assert found == pytest.approx(expected, rel=4 / np.sqrt(2 * resamples) + 0.02), said
    assert 0.92 <= hits / datasets <= 0.98, f"coverage {hits / datasets:.3f}"
    left, right = np.repeat([1.0, 0.0, 1.0], [10, 3, 37]), np.repeat([0.0, 1.0, 1.0], [10, 3, 37])
    d = statistics.paired_differences(left, right, np.arange(50), resamples=100, seed=0)[0]
    assert (d.wins, d.losses, d.ties) == (10, 3, 37), f"wins, losses, ties: {(d.wins, d.losses, d.ties)}"


def count_only_what_exceeds(bench: Bench) -> None:
    def strictly(totals: Totals, *, flips: int, seed: int) -> Any:
        return np.full(totals.sums.shape[1], 1 / (1 + flips))

    bench.patch.setattr(statistics, "sign_flip_p", strictly)


def judge_by_the_sign(bench: Bench) -> None:
    bench.patch.setattr(statistics, "verdict", lambda delta, *_, **__: "better" if delta >= 0 else "worse")


@caught((count_only_what_exceeds, "identical answers have p = 0.00"), (judge_by_the_sign, "identical answers are better"))
def a_against_a(bench: Bench) -> None:
    answers = [q.answer if q.row % 3 else "nothing" for q in scored_run.questions(n_groups=30, size=1)]
    for pair in compared(bench, {"base": answers, "adapter": answers}).pairs:
        assert pair.p == 1 or not pair.n, f"identical answers have p = {pair.p}"
        assert pair.verdict == "tied" or not pair.n, f"identical answers are {pair.verdict}"


@caught(
    (lambda b: b.patch.setattr(statistics, "RARE", 0), "0 of 408 lies in .0.0, 0.0."),
    (lambda b: b.patch.setattr(statistics, "wilson", lambda rate, n, **_: (rate, rate)), "0 of 408 lies in .0.0, 0.0."),
)
def interval_of_width_0(bench: Bench) -> None:
    for value in (0.0, 1.0):
        ci95 = statistics.mean_intervals(np.full(408, value), np.repeat(np.arange(102), 4), resamples=200, seed=0)[0].ci95
        assert ci95 is not None and ci95[1] - ci95[0] > 0.005, f"{value:.0f} of 408 lies in {ci95}"


# ---------------------------------------------------------------------------------------------------- gate, storage, score


def judged(change: Callable[[Callable[..., str], Any], str]) -> Step:
    """The gate's judge as `change` has it: given the judge and (delta, ci95, p, margin)."""

    def plant(bench: Bench) -> None:
        judge = noninferiority.judge
        bench.patch.setattr(noninferiority, "judge", lambda *case: change(judge, case))

    return plant


def divide_by_the_base(bench: Bench) -> None:
    bench.patch.setattr(gate, "_ratio", lambda variant, base, cost: getattr(variant.cost, cost) / getattr(base.cost, cost))


def round_to_the_floor(bench: Bench) -> None:
    limit = gate._limit
    bench.patch.setattr(
        gate, "_limit", lambda kind, v, what, value, floor, **o: limit(kind, v, what, value and round(value, 2), floor, **o)
    )


@caught(
    (divide_by_the_base, "division by zero"),
    (round_to_the_floor, "94.6% of 95% wanted: pass"),
    (judged(lambda judge, case: "regression" if case[0] is not None and abs(case[0]) > case[3] else judge(*case)), "improved: regression"),
    (judged(lambda judge, case: "pass" if case[0] is None else judge(*case)), "all errors: pass"),
    (
        judged(lambda judge, case: "regression" if case[0] is not None and case[0] <= -case[3] else judge(*case)),
        "on the margin: regression",
    ),
    (lambda b: b.patch.setattr(gate, "overall", lambda checks: min((c.verdict for c in checks), default="pass")), "empty: pass"),
)
def gate_arithmetic(bench: Bench) -> None:
    zeros, ones, groups = np.zeros(300), np.ones(300), np.arange(300)
    loss = np.where(np.arange(300) < 6, 0.0, 1.0)
    table = {
        "base of 0": (zeros, zeros, 0.02, "pass"),
        "improved": (zeros, ones, 0.02, "improvement"),
        "lost": (ones, zeros, 0.02, "regression"),
        "all errors": (ones, np.full(300, np.nan), 0.02, "regression"),
    }
    for case, (before, after, margin, expected) in table.items():
        column = noninferiority.Column(before, after, margin)
        verdict = noninferiority.outcomes([column], groups, resamples=200, seed=0)[0].verdict
        assert verdict == expected, f"{case}: {verdict}"
    on_the_margin = noninferiority.judge(float(loss.mean()) - 1, (-0.02, -0.02), 0.001, 0.02)
    assert on_the_margin == "pass", f"on the margin: {on_the_margin}"
    assert gate.overall([]) == "incomparable", f"empty: {gate.overall([])}"
    floor = gate._limit("floor", "adapter", "exact_match", 0.946, 0.95, at_least=True, unknown="regression").verdict
    assert floor == "regression", f"94.6% of 95% wanted: {floor}"
    cost: Any = SimpleNamespace(cost=scored_run.COST)
    empty: Any = SimpleNamespace(cost=scored_run.COST.model_copy(update={"size_bytes": 0}))
    assert gate._ratio(cost, empty, "size_bytes") is None


@caught((lambda b: b.patch.setattr(store, "storage_errors", lambda path: suppress(OSError)), "exit code 0"))
def save_failure(bench: Bench) -> None:
    folder = bench.folder()
    rows = [
        {"question": f"What is {word} about?", "answer": word[::-1]}
        for word in "speech trade property elections worship taxation citizenship emergency language courts services tribunals".split()
    ]
    (folder / "qa.json").write_text(json.dumps(rows))
    replaced = store.os.replace

    def read_only(source: Any, target: Any) -> None:
        if "split" in str(target):
            raise OSError(errno.EROFS, "Read-only file system", str(target))
        replaced(source, target)

    with pytest.MonkeyPatch.context() as disk:
        disk.chdir(folder)
        disk.setattr(store.os, "replace", read_only)
        result = CliRunner().invoke(cli.app, ["split", "--qa", "qa.json"])
    assert result.exit_code == 2, f"exit code {result.exit_code}"
    assert "read-only file system" in result.stderr.lower() and "runs/tiny/split" in result.stderr
    assert not RunFolder("tiny", folder).split_json.exists()


def take_failures_for_answers(bench: Bench) -> None:
    matched = score._matched

    def all_answered(path: Path, questions: list[Question]) -> Any:
        return [(q, p.model_copy(update={"finish_reason": "stop"})) for q, p in matched(path, questions)]

    bench.patch.setattr(score, "_matched", all_answered)


def fill_gaps_with_0(bench: Bench) -> None:
    intervals = statistics.mean_intervals
    bench.patch.setattr(statistics, "mean_intervals", lambda values, *a, **o: intervals(np.nan_to_num(values), *a, **o))


@caught((take_failures_for_answers, "1 failed of 36: mean 0.97"), (fill_gaps_with_0, "1 failed of 36: mean 0.97"))
def failures_scored_0(bench: Bench) -> None:
    failed = {"finish_reason": "error", "error": "out of memory"}
    for n_failed, expected in ((1, (1.0, 35, 1)), (36, (None, 0, 36))):
        run = scored_run.make(bench.folder(), {"base": lambda q, n=n_failed: failed if q.row <= n else q.answer})
        score.run(run, scored_run.CONFIG)
        found = store.read_record(run.score("base")[1], ScoreManifest).metrics["exact_match"]
        assert (found.value, found.n, found.n_unscored) == expected, f"{n_failed} failed of 36: mean {found.value}"
