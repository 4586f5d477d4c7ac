"""A whole run folder, written from a seed: what the report reads, without a model or a pipeline.

python -m tests.helpers.report_fixture ROOT [QUESTIONS]      writes ROOT/runs/demo and ROOT/reports/demo, the report included
"""

from __future__ import annotations

import json
import random
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from harness import storage
from harness.config import Config
from harness.gating import shipping
from harness.records import (
    Alarm,
    Artifact,
    Breakdown,
    Comparison,
    Cost,
    ExportManifest,
    HistoryPoint,
    MetricValue,
    Pair,
    Prediction,
    Question,
    Score,
    SplitManifest,
    TrainManifest,
    VariantResult,
)
from harness.storage import RunFolder

CONFIG = Config.model_validate({"compare": {"resamples": 200}})
METRICS = ["exact_match", "exact_match_normalized", "token_f1", "rouge1", "rouge2", "rougeL", "rougeLsum"]
SHARE_RIGHT = {
    "base": 0.02,
    "adapter": 0.61,
    "merged_16bit": 0.612,
    "merged_4bit": 0.585,
    "gguf_f16": 0.612,
    "gguf_q8_0": 0.608,
    "gguf_q4_k_m": 0.57,
}
SIZES = dict(zip(SHARE_RIGHT, (9.8e6, 4.1e6, 9.8e6, 3.4e6, 9.9e6, 5.4e6, 3.6e6), strict=True))
SPEEDS = dict(zip(SHARE_RIGHT, (812.0, 505.0, 790.0, 423.0, 1930.0, 2604.0, 2911.0), strict=True))
KINDS = ["lookup", "content", "authority", "term", "definition", "scenario"]
PARTS = ["I", "II", "III", "IV", "IVA", "V", "VI", "VII", "IX", "XI", "XII", "XIV", "XV", "XVIII", "XX"]
SUBJECTS = (
    "the equality of all persons before the law|the abolition of untouchability|the protection of life and personal liberty|the oath of the"
    " President|the duties of the Attorney-General|the composition of the Council of States|the Consolidated Fund of India|the powers of the"
    " Comptroller and Auditor-General|the organisation of village panchayats|a uniform civil code for the citizens|the superintendence of"
    " elections|the official language of the Union|the proclamation of a financial emergency|freedom of trade, commerce and intercourse"
).split("|")
AUTHORITIES = [
    "The President",
    "Parliament by law",
    "The Governor of the State",
    "The Legislature of the State",
    "The Supreme Court",
]
HOSTILE = [
    "</script><script>window.pwned=1</script>",
    '<img src=x onerror="window.pwned=1">',
    '" onmouseover="window.pwned=1" x="',
    "[click](javascript:window.pwned=1) javascript:window.pwned=1",
    "\u202egnp.exe\u202c and \u2066isolated\u2069 text\u200f",
    "{{ 7 * 7 }}{% raw %} <!-- <script> ${window.pwned=1} `window.pwned=1`",
    "line\u2028separator\u2029 and \x00 control \x1b[31m and \ufffd\ufffe",
    "`````| # @nobody | <details> | ![x](http://example.invalid/x.png)",
    "न्यायपालिका की स्वतंत्रता 🏛️ العدالة",
]


def write_run(
    root: Path,
    name: str = "demo",
    *,
    questions: int = 280,
    seed: int = 0,
    variants: list[str] | None = None,
    hostile: bool = False,
    history: bool = True,
) -> RunFolder:
    """Writes runs/<name> and reports/<name>/comparison.json below `root`; same arguments, same bytes."""
    rng = random.Random(seed)
    run = RunFolder(name, root)
    names = variants if variants is not None else list(SHARE_RIGHT)
    rows = [_question(rng, at, hostile) for at in range(questions)]
    storage.write_jsonl(run.heldout_jsonl, rows)
    storage.write_json(run.split_json, _split(rows))
    # The questions from the easiest to the hardest, those near to a training question somewhat easier: a variant gets the easy ones right.
    ranked = sorted(range(questions), key=lambda at: rng.random() - 0.3 * (rows[at].nearest_train or 0))
    draw = [0.0] * questions
    for position, at in enumerate(ranked):
        draw[at] = (position + 0.5) / questions
    scores: dict[str, list[dict[str, float]]] = {}
    finish: dict[str, dict[str, int]] = {}
    for variant in names:
        predictions = [_answer(rng, row, variant, draw[at], hostile) for at, row in enumerate(rows)]
        scores[variant] = [_scores(p.text, row.answer) for p, row in zip(predictions, rows, strict=True)]
        finish[variant] = {
            reason: sum(p.finish_reason == reason for p in predictions) for reason in ("stop", "length", "error")
        }
        storage.write_jsonl(run.prediction(variant)[0], predictions)
        lines = [
            Score(id=row.id, group=row.group, scores=dict(s)) for row, s in zip(rows, scores[variant], strict=True)
        ]
        storage.write_jsonl(run.score(variant)[0], lines)
    if history:
        storage.write_jsonl(run.history_jsonl, _history(rng))
        storage.write_json(run.train_json, _train())
    storage.write_json(run.export_json, _export(names))
    comparison = _comparison(name, rows, scores, finish)
    primary = "exact_match_normalized"
    columns = {variant: np.array([line[primary] for line in lines]) for variant, lines in scores.items()}
    decided = shipping.decide(comparison, columns, [row.group for row in rows], CONFIG)
    storage.write_json(run.comparison_json, comparison.model_copy(update={"shipping": decided}))
    return run


def _question(rng: random.Random, at: int, hostile: bool) -> Question:
    article, subject, kind = str(rng.randint(1, 395)), rng.choice(SUBJECTS), KINDS[at % len(KINDS)]
    asked, answer = {
        "lookup": (f"Which article of the Constitution deals with {subject}?", f"Article {article}"),
        "content": (f"What does Article {article} deal with?", subject[0].upper() + subject[1:]),
        "authority": (f"Who acts under Article {article}, on {subject}?", rng.choice(AUTHORITIES)),
        "term": (
            f"For how long may a measure under Article {article} stay in force?",
            f"{rng.choice(['Six', 'Two', 'Five'])} months",
        ),
        "definition": (f"In which Part of the Constitution is Article {article}?", f"Part {rng.choice(PARTS)}"),
        "scenario": (
            f"A State legislature passes a law that touches {subject}. A citizen who is affected by it goes to the High Court. The State"
            " says that no court may look into the matter. Which article decides?",
            f"Article {article}, which provides for {subject}",
        ),
    }[kind]
    if hostile:
        asked, answer = f"{asked} {HOSTILE[at % len(HOSTILE)]}", f"{answer} {HOSTILE[(at + 3) % len(HOSTILE)]}"
    return Question(
        id=f"q{at:05d}" if not hostile else f'q{at:05d}"><b>',
        row=at * 9 + 4,
        question=asked,
        answer=answer,
        references=[f"Art. {article}"] if kind == "lookup" and at % 4 == 0 else [],
        group=f"g{at * 2 // 3:05d}",
        article=article,
        part=rng.choice(PARTS),
        kind=kind,
        nearest_train=round(rng.betavariate(2, 4), 3),
    )


def _answer(rng: random.Random, row: Question, variant: str, draw: float, hostile: bool) -> Prediction:
    reason, error = "stop", None
    share = SHARE_RIGHT.get(variant, 0.5)
    if variant == "base":
        text = (
            row.answer
            if draw < 0.01
            else f"The Constitution of India provides that {rng.choice(SUBJECTS)}. " * rng.randint(1, 5)
        )
        reason = "length" if rng.random() < 0.4 else "stop"
    elif draw + rng.gauss(0, 0.004) < share:
        text = row.answer
    elif row.answer.startswith("Article"):
        text = (
            f"Article {random.Random(row.id).randint(1, 395)}"
            + row.answer.partition(",")[1]
            + row.answer.partition(",")[2]
        )
    else:
        text = random.Random(row.id).choice(SUBJECTS if row.kind == "content" else AUTHORITIES)
    if variant == "gguf_q4_k_m" and rng.random() < 0.03:
        text, reason = f"{text} and {text}" * 6, "length"
    if variant == "merged_4bit" and rng.random() < 0.004:
        text, reason, error = "", "error", "out of memory"
    if hostile and rng.random() < 0.2:
        text = f"{text} {rng.choice(HOSTILE)}"
    if hostile and row.row == 4 and variant == "adapter":
        text = "unending words " * 7000
    ids = [rng.randrange(2048) for _ in range(min(len(text) // 4, 96))]
    return Prediction(
        id=row.id,
        prompt_hash=storage.sha256_bytes(row.question),
        prompt_ids=[1, 2, 3],
        answer_ids=ids,
        text=text,
        finish_reason=reason,  # type: ignore[arg-type]
        seconds=0.01,
        error=error,
    )


def _scores(text: str, answer: str) -> dict[str, float]:
    left, right = text.lower().split(), answer.lower().split()
    common = sum(min(left.count(w), right.count(w)) for w in set(left))
    f1 = 2 * common / (len(left) + len(right)) if left and right else 0.0
    exact = float(text == answer)
    values = [exact, float(left == right), f1, f1, f1 * f1, f1, f1]
    return dict(zip(METRICS, values, strict=True))


def _mean(values: list[float]) -> tuple[float, tuple[float, float]]:
    n = len(values)
    mean = sum(values) / n
    error = 1.96 * (sum((v - mean) ** 2 for v in values) / n / n) ** 0.5
    return mean, (max(0.0, mean - max(error, 0.002)), min(1.0, mean + max(error, 0.002)))


def _pair(left: str, right: str, metric: str, scores: dict[str, list[dict[str, float]]], tests: int) -> Pair:
    deltas = [a[metric] - b[metric] for a, b in zip(scores[left], scores[right], strict=True)]
    n, delta = len(deltas), sum(deltas) / len(deltas)
    error = (sum((d - delta) ** 2 for d in deltas) / n / n) ** 0.5
    low, high = delta - 1.96 * error, delta + 1.96 * error
    p = min(1.0, 2.0 ** (1 - 3 * abs(delta) / error)) if error else 1.0
    holm = min(1.0, p * tests)
    tied = low >= -0.02 and high <= 0.02
    verdict = "tied" if tied else "undecided" if low <= 0 <= high or holm > 0.05 else "better" if delta > 0 else "worse"
    return Pair(
        left=left,
        right=right,
        metric=metric,
        delta=delta,
        ci95=(low, high),
        p=p,
        p_adjusted=holm,
        verdict=verdict,  # type: ignore[arg-type]
        n=n,
        margin=0.02,
        noise_floor=0.004 if {left, right} & {"adapter", "gguf_f16"} else 0.0,
        mde=2.8 * error,
        p_mcnemar=p if metric.startswith("exact") else None,
        wins=sum(d > 0 for d in deltas),
        losses=sum(d < 0 for d in deltas),
        ties=sum(d == 0 for d in deltas),
    )


def _comparison(
    name: str, rows: list[Question], scores: dict[str, list[dict[str, float]]], finish: dict[str, dict[str, int]]
) -> Comparison:
    wanted = [
        (v, r) for r in ("base", "adapter", "merged_16bit") for v in scores if v not in ("base", r) and r in scores
    ]
    wanted = [(v, r) for v, r in wanted if (v, r) != ("adapter", "merged_16bit")]
    base_cost = {"seconds": 12.4, "load_seconds": 1.1, "generated_tokens": 4210, "peak_memory_bytes": 612_000_000}
    variants = {}
    for at, (variant, lines) in enumerate(scores.items()):
        metrics = {}
        for metric in METRICS:
            value, interval = _mean([line[metric] for line in lines])
            signature = f"{metric}|v:1|norm:legal-1|tok:words-1|stem:no|lib:-"
            metrics[metric] = MetricValue(
                value=value,
                ci95=interval,
                n=len(rows),
                n_unscored=0,
                signature=signature,
                interval="cluster bootstrap, 10,000 resamples",
            )
        cost = base_cost | {"tokens_per_second": SPEEDS.get(variant, 500.0), "size_bytes": int(SIZES.get(variant, 5e6))}
        cost["seconds"] = round(4210 / cost["tokens_per_second"], 2)
        cost["peak_memory_bytes"] += 40_000_000 * at
        backend = "llamacpp" if variant.startswith("gguf") else "transformers"
        variants[variant] = VariantResult(metrics=metrics, cost=Cost(**cost), backend=backend, finish=finish[variant])
    limit = [v for v in scores if finish[v]["length"] > 0.02 * len(rows)]
    return Comparison(
        run=name,
        split_id="5f1c" * 16,
        n=len(rows),
        n_groups=len({row.group for row in rows}),
        variants=variants,
        pairs=[_pair(left, right, metric, scores, len(wanted)) for metric in METRICS for left, right in wanted],
        primary="exact_match_normalized",
        baselines={
            "nearest_train_copy": {m: 0.041 if m.startswith("exact") else 0.36 for m in METRICS},
            "constant_answer": {m: 0.057 if m.startswith("exact") else 0.08 for m in METRICS},
        },
        alarms=[
            Alarm(
                code="runaway",
                variant=v,
                message=f"{finish[v]['length'] / len(rows):.1%} of the answers of {v} end at the length limit",
                value=finish[v]["length"] / len(rows),
                limit=0.02,
            )
            for v in limit
        ],
        breakdowns=_breakdowns(rows, scores),
        fidelity=[
            {
                "left": left,
                "right": right,
                "identical": same,
                "token_agreement": min(1.0, same + 0.005),
                "n": len(rows),
                "positions": 237,
                "mean_kl": kl,
                "p99_kl": kl * 21,
                "top1_agreement": top,
            }
            for left, right, same, kl, top in (
                ("adapter", "merged_16bit", 0.957, 0.0041, 0.991),
                ("merged_16bit", "merged_4bit", 0.914, 0.0112, 0.981),
                ("merged_16bit", "gguf_f16", 0.996, 0.00001, 0.9998),
                ("gguf_f16", "gguf_q8_0", 0.989, 0.0002, 0.998),
                ("gguf_q8_0", "gguf_q4_k_m", 0.886, 0.0187, 0.974),
            )
            if left in scores and right in scores
        ],
        noise={
            v: {"flip_rate": 0.004, "n": 64, "how": "batch: 1 against 64 at most"}
            for v in scores
            if v in ("adapter", "gguf_f16")
        },
        provenance=_provenance(),
    )


def _breakdowns(rows: list[Question], scores: dict[str, list[dict[str, float]]]) -> list[Breakdown]:
    buckets: dict[str, list[str]] = {
        "kind": [row.kind or "none" for row in rows],
        "part": [row.part or "none" for row in rows],
        "answer_length": ["1-3 words" if len(row.answer.split()) <= 3 else "4 words or more" for row in rows],
        "similarity": [
            f"{int((row.nearest_train or 0) * 5) / 5:.1f}-{int((row.nearest_train or 0) * 5) / 5 + 0.2:.1f}"
            for row in rows
        ],
    }
    found = []
    for by, labels in buckets.items():
        for bucket in sorted(set(labels)):
            for variant, lines in scores.items():
                values = [
                    line["exact_match_normalized"] for line, label in zip(lines, labels, strict=True) if label == bucket
                ]
                value, interval = _mean(values)
                found.append(
                    Breakdown(
                        by=by,
                        bucket=bucket,
                        variant=variant,
                        metric="exact_match_normalized",
                        value=value,
                        ci95=interval,
                        n=len(values),
                    )
                )
    return found


def _history(rng: random.Random, steps: int = 250) -> list[HistoryPoint]:
    points = []
    for step in range(1, steps + 1):
        loss = 0.5 + 4.2 * 0.984**step
        heldout = round(loss * 1.12 + 0.06, 4) if step % 50 == 0 else None
        points.append(
            HistoryPoint(
                step=step,
                epoch=round(step * 16 / 2520, 4),
                seconds=round(step * 0.41, 2),
                loss=round(loss * rng.uniform(0.8, 1.2), 4),
                dev_loss=heldout,
                learning_rate=2e-3 * min(step / 10, (steps - step) / (steps - 10)),
                grad_norm=round(rng.lognormvariate(0, 0.35) * (0.6 + loss / 4), 4),
                tokens=step * 1100,
                tokens_per_second=round(rng.gauss(2650, 90), 1),
            )
        )
    return points


def _train() -> TrainManifest:
    return TrainManifest(
        fingerprint="a1" * 32,
        split_id="5f1c" * 16,
        engine="unsloth",
        device="cpu",
        base={
            "path": "data/tiny-llama3",
            "weights_sha256": "b2" * 32,
            "tokenizer_sha256": "c3" * 32,
            "parameters": 5_247_232,
        },
        adapter_sha256="d4" * 32,
        trainable_parameters=368_640,
        trainable_share=0.0656,
        steps=250,
        epochs=1.587,
        rows=2520,
        rows_cut=0,
        rows_without_labels=0,
        labelled_token_share=0.147,
        tokens=275_000,
        final_loss=0.571,
        final_dev_loss=0.702,
        wandb={"mode": "offline", "run_id": "demo1234", "url": None},
        seconds=102.5,
        peak_memory_bytes=1_730_000_000,
    )


def _export(names: list[str]) -> ExportManifest:
    return ExportManifest(
        fingerprint="e5" * 32,
        artifacts={
            v: Artifact(
                format=v,
                path=f"gguf/{v}.gguf" if v.startswith("gguf") else v,
                sha256=storage.sha256_bytes(v),
                size_bytes=int(SIZES.get(v, 5e6)),
                tensors=56,
                seconds=1.7,
                checks=["opened again", "tensor count", "sizes"],
            )
            for v in names
            if v != "base"
        },
        seconds=11.2,
    )


def _split(rows: list[Question]) -> SplitManifest:
    grouped = {
        "nearest_train_copy": {"exact_match_normalized": 0.041, "rougeL": 0.36},
        "constant_answer": {"exact_match_normalized": 0.057, "rougeL": 0.08},
    }
    at_random = {
        "nearest_train_copy": {"exact_match_normalized": 0.19, "rougeL": 0.51},
        "constant_answer": {"exact_match_normalized": 0.061, "rougeL": 0.09},
    }
    bins = [sum(min(int((row.nearest_train or 0) * 10), 9) == tenth for row in rows) for tenth in range(10)]
    return SplitManifest(
        fingerprint="f6" * 32,
        split_id="5f1c" * 16,
        source="data/constitution_qa.json",
        source_sha256="07" * 32,
        n_train=len(rows) * 9,
        n_heldout=len(rows),
        n_groups_train=1400,
        n_groups_heldout=len({row.group for row in rows}),
        heldout_requested=0.1,
        seed=0,
        similarity={"method": "MinHash LSH", "ngram": 5, "threshold": 0.5},
        largest_groups=[
            {
                "group": f"g{at}",
                "rows": 31 - at,
                "share": (31 - at) / len(rows) / 10,
                "side": "train",
                "example": rows[at].question,
            }
            for at in range(5)
        ],
        merges={"group": 830, "duplicate_question": 12, "near_duplicate": 214, "long_answer": 41},
        merge_examples=[
            {
                "reason": "near_duplicate",
                "left": "Who appoints the Governor?",
                "right": "Who appoints a Governor of a State?",
                "similarity": 0.61,
            }
        ],
        conflicts=[],
        leakage={
            "answers_in_train": 38,
            "long_answers_in_train": 0,
            "max_similarity": 0.94,
            "similarity_histogram": {f"{t / 10:.1f}-{(t + 1) / 10:.1f}": n for t, n in enumerate(bins)},
        },
        baselines={"grouped": grouped, "random": at_random},
        seconds=3.1,
    )


def _provenance() -> dict[str, Any]:
    return {
        "commands": [
            f"harness {verb} --run demo --config tiny"
            for verb in ("split", "train", "export", "predict", "score", "compare", "report")
        ],
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
        "device": "cpu, 2 cores",
        "packages": {"torch": "2.13.0", "transformers": "5.17.0", "unsloth": "2026.11.1", "xllamacpp": "2026.10"},
        "seeds": {"train": 3407, "bootstrap": 0, "split": 0},
        "hashes": {"split": "5f1c" * 16, "base_weights": "b2" * 32, "tokenizer": "c3" * 32, "template": "18" * 32},
        "config": {"description": "embedded 5M-parameter model", "train": {"max_steps": 250, "learning_rate": 0.002}},
    }


if __name__ == "__main__":
    from harness.stages import report

    print(report.run(write_run(Path(sys.argv[1]), questions=int(sys.argv[2]) if len(sys.argv) > 2 else 280), CONFIG))


def comparison_of(run) -> Comparison:
    return storage.read_record(run.comparison_json, Comparison)


def pair(**changes) -> Pair:
    values = {
        "left": "a",
        "right": "b",
        "metric": "m",
        "delta": 0.1,
        "ci95": (0.05, 0.2),
        "p": 0.01,
        "p_adjusted": 0.02,
        "verdict": "better",
    }
    return Pair(**(values | {"n": 100, "margin": 0.02, "wins": 20, "losses": 10, "ties": 70} | changes))


def edit(folder, /, **changes) -> None:
    value = json.loads(folder.comparison_json.read_text())
    value.update(changes)
    folder.comparison_json.write_text(json.dumps(value | {"checksum": ""}))


class Outline(HTMLParser):
    """Tags that opened, ids, and the text outside scripts and styles."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.inside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag in ("script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and tag == self.inside[-1]:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.text.append(data)
