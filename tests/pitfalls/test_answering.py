"""Faults in answering: the wrong parameters, prompts, ends, slots, weights."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from harness import storage
from harness.analysis import fidelity
from harness.analysis.scored import Scored
from harness.backends import Execution, Generation, Source
from harness.backends.decoding import decoder
from harness.backends.llama_context import Context
from harness.backends.llamacpp import LlamaCppBackend
from harness.backends.transformers import TransformersBackend
from harness.formats import merged
from harness.models import base_model
from harness.prediction import asking, jobs
from harness.prompt import Prompter, load_tokenizer
from harness.stages import predict
from tests.helpers import answering, scored_run, small_run
from tests.helpers.models import BOS, BOS_ID, EOS_ID, edit_json
from tests.pitfalls.faults import LIMIT, Bench, Step, alarms, answered, caught, compared, job


def ask_otherwise(**fields: Any) -> Step:
    """llama.cpp is asked with these fields instead of those that were given."""

    def plant(bench: Bench) -> None:
        make = LlamaCppBackend.__init__

        def with_fields(self: LlamaCppBackend, source: Source, generation: Generation, execution: Execution) -> None:
            make(self, source, replace(generation, **fields), execution)

        bench.patch.setattr(LlamaCppBackend, "__init__", with_fields)

    return plant


def sample_tokens(bench: Bench) -> None:
    """Tokens are drawn at a temperature, not taken greedily."""
    random = np.random.default_rng(0)

    def drawing(self: Context, rows: Any, decode: Any = Context.decode) -> np.ndarray:
        return decode(self, rows) + 5 * random.gumbel(size=1).astype(np.float32) * random.standard_normal(
            (1, self.model.vocabulary), np.float32
        )

    bench.patch.setattr(Context, "decode", drawing)


@caught(
    (ask_otherwise(max_new_tokens=16), "'runaway'"),
    (ask_otherwise(repeat_penalty=1.1), "the log-probabilities are not the model's"),
    (ask_otherwise(repeat_penalty=100.0), "is not the model's most probable"),
    (ask_otherwise(temperature=0.8), "answered greedily"),
    (sample_tokens, "are not the model's|is not the model's|'runaway'"),
)
def test_gguf_defaults(bench: Bench) -> None:
    with closing(answering.llamacpp(bench.f16, limit=LIMIT)) as model:
        found = model.answer(bench.prompts())
        rows = [{"text": "x", "finish_reason": answer.finish_reason} for answer in found]
        assert "runaway" not in alarms(compared(bench, {"base": rows}))
        model_says = model.logprobs(bench.prompts(), [a.answer_ids or [0] for a in found])
    pairs = [(a, says) for a, says in zip(found, model_says, strict=True) if a.answer_ids]
    same = [says.argmax(1).tolist() == a.answer_ids for a, says in pairs]
    assert np.mean(same) > 0.9, "the answer is not the model's most probable one"
    # A mild penalty changes no token of memorised sentences, only the probabilities.
    off = [np.abs(says[np.arange(len(a.answer_ids)), a.answer_ids] - np.array(a.logprobs)).max() for a, says in pairs]
    assert max(off) < 1e-3, f"the log-probabilities are not the model's: off by {max(off):.2g}"


def key_of_the_path(bench: Bench) -> None:
    bench.patch.setattr(
        jobs.Job,
        "key",
        lambda self, version: storage.sha256_json([str(self.source.path), self.prompts_sha256, version]),
    )


@caught(
    (key_of_the_path, "of other weights"),
    (lambda b: b.patch.setattr(base_model, "weights_sha256", str), "of other weights"),
)
def test_stale_cache(bench: Bench) -> None:
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
def test_adapter_not_applied(bench: Bench) -> None:
    plain, zero, tuned = (
        answering.answers(Source(bench.model, adapter=a), bench.prompts()) for a in (None, bench.zero, bench.adapter)
    )
    assert zero == plain, "a zero adapter changed an answer"
    texts = {name: [str(ids) for ids in rows] for name, rows in (("base", plain), ("adapter", tuned))}
    assert "adapter_without_effect" not in alarms(compared(bench, texts))


def pad_on_the_right(*, after: int) -> Step:
    """The padding side changes after so many batches."""

    def plant(bench: Bench) -> None:
        left, asked = TransformersBackend._generate, []

        def generate(self: Any, prompts: Any) -> list[tuple[list[int], list[float]]]:
            asked.append(prompts)
            if len(asked) <= after:
                return left(self, prompts)
            width = max(map(len, prompts))
            ids = torch.tensor([[*p, *[self.pad_id] * (width - len(p))] for p in prompts])
            mask = torch.tensor([[1] * len(p) + [0] * (width - len(p)) for p in prompts])
            rows = self.model.generate(input_ids=ids, attention_mask=mask)[:, width:].tolist()
            return [(row, []) for row in rows]

        bench.patch.setattr(TransformersBackend, "_generate", generate)

    return plant


@caught(
    (pad_on_the_right(after=0), "batch 0 answers differently"),
    (pad_on_the_right(after=1), "batch 1 answers differently"),
)
def test_right_padding(bench: Bench) -> None:
    model, prompts = answering.transformers(Source(bench.model)), bench.prompts()
    with torch.no_grad():
        batches = [[c.answer_ids for c in model.answer(prompts)] for _ in range(2)]
        alone = [model.answer([p])[0].answer_ids for p in prompts]
    for i, batch in enumerate(batches):
        assert batch == alone, f"batch {i} answers differently than one by one"


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
def test_bos_and_template(bench: Bench) -> None:
    prompter = Prompter(load_tokenizer(bench.model), small_run.TEMPLATE)
    asked: dict[str, list[Any]] = {"base": [], "gguf_f16": []}
    with closing(answering.llamacpp(bench.f16)) as model:
        for question, _ in small_run.QUESTIONS:
            ids = prompter.ids(question)
            assert ids.count(BOS_ID) == 1, f"{ids.count(BOS_ID)} BOS in a prompt"
            asked["base"].append({"text": "x", "prompt_ids": ids})
            asked["gguf_f16"].append({"text": "y", "prompt_ids": model.model.tokenize(prompter.text(question))})
    assert "prompt_mismatch" not in alarms(compared(bench, asked))


@caught(
    (lambda b: b.patch.setattr(asking, "stop_ids", lambda tokenizer, configured, *more: (configured,)), "'runaway'"),
    (
        lambda b: b.patch.setattr(asking, "stop_ids", lambda tokenizer, configured, *more: (tokenizer.eos_token_id,)),
        "not the union",
    ),
)
def test_wrong_end_token(bench: Bench) -> None:
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
    bench.patch.setattr(decoder, "greedy", lambda logits: torch.multinomial(torch.softmax(logits / 5.0, -1), 1)[:, 0])


@caught((sample, "two runs differ"))
def test_sampling_by_default(bench: Bench) -> None:
    root = bench.folder()
    model = shutil.copytree(bench.model, root / "m")
    edit_json(model / "generation_config.json", do_sample=True, temperature=5.0, top_k=0)
    first, second = (answered(job(bench, model, bench.folder())) for _ in range(2))
    assert first == second, "two runs differ"


def mix_up_the_slots(bench: Bench) -> None:
    """The logits of a step go to the sequences' neighbours."""
    decode = Context.decode
    bench.patch.setattr(Context, "decode", lambda self, rows: np.roll(decode(self, rows), 1, axis=0))


def keep_what_was_there(bench: Bench) -> None:
    """A sequence still holds the tokens of the one before it: copies and clearings are forgotten beyond the first."""
    bench.patch.setattr(Context, "copy", lambda self, source, target: None)


def forget_the_floor(bench: Bench) -> None:
    bench.patch.setattr(Scored, "flip_rate", property(lambda _: 0.0))


@caught(
    (keep_what_was_there, "flip rate of slots|could not compute|asked again"),
    (mix_up_the_slots, "flip rate of slots"),
    (forget_the_floor, "the noise floor is not reported"),
)
def test_slots_and_prompt_cache(bench: Bench) -> None:
    found = []
    for slots in (1, 4):
        with closing(answering.llamacpp(bench.f16, slots=slots)) as model:
            found += [[str(c.answer_ids) for c in model.answer(bench.prompts())] for _ in range(2)]
    assert found[0] == found[1] and found[2] == found[3], "asked again, it answers differently"
    flips = fidelity.flip_rate(found[0], found[2])
    assert flips == 0, f"flip rate of slots: {flips}"
    right = [q.answer for q in scored_run.questions(n_groups=40, size=1)]
    compared_run = compared(
        bench,
        {"base": ["nothing"] * 40, "adapter": [*right[:20], *["nothing"] * 20]},
        noise={"flip_rate": 0.6, "n": 40, "how": "x"},
    )
    assert compared_run.noise["adapter"]["flip_rate"] == 0.6, "the flip rate is not reported"
    assert {pair.noise_floor for pair in compared_run.pairs} == {0.6}, "the noise floor is not reported"
