"""Every unusable input from a user or another program: exit code 2, one line that names it and the hint, nothing half-written."""

from __future__ import annotations

import codecs
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from harness import cli, storage
from harness.errors import DataError
from harness.questions import dataset
from tests.helpers import scored_run, small_run
from tests.helpers.models import edit_json

GOOD = {"question": "Who appoints the Governor?", "answer": "The President"}
TOPICS = (
    "speech trade property elections worship taxation citizenship emergency language courts services tribunals".split()
)
QUICK = ["--set", "score.resamples=100", "--set", "compare.resamples=100"]


class Case(NamedTuple):
    """A verb, what its one line must say, and what is put into the working folder before."""

    verb: list[str]
    line: str
    prepare: Callable[[Path], object] = lambda _: None
    start: str = "empty"
    """The working folder: `empty`, `scored` (a run up to its baseline), or `model` (a run after split, and a model)."""


def rows(*bad: Any) -> str:
    return json.dumps([GOOD, *bad])


def qa(name: str, content: str | bytes, line: str) -> Case:
    """A QA file with this content."""
    data = content if isinstance(content, bytes) else content.encode()
    return Case(
        ["split", "--qa", name], rf"{re.escape(name)}.*{line}", lambda folder: (folder / name).write_bytes(data)
    )


def config(text: str | bytes, line: str) -> Case:
    """A config file with this text."""
    data = text if isinstance(text, bytes) else text.encode()
    return Case(
        ["split", "--config", "c.yaml", "--qa", "good.json"],
        rf"c\.yaml.*{line}",
        lambda folder: (folder / "c.yaml").write_bytes(data),
    )


def setting(override: str, line: str) -> Case:
    return Case(["split", "--qa", "good.json", "--set", override], line)


def run_name(name: str) -> Case:
    return Case(["split", "--qa", "good.json", "--run", name], r"run name .* is not usable; use letters, digits")


def changed(path: str, line: str, *verb: str, **changes: Any) -> Case:
    """A JSON file of a scored run with these keys changed, resealed as in a deliberate change."""

    def prepare(folder: Path) -> None:
        values = {key: value for key, value in json.loads((folder / path).read_text()).items() if key != "checksum"}
        (folder / path).write_text(json.dumps({**values, **changes}))

    return Case(list(verb), rf"{re.escape(path)}.*{line}", prepare, "scored")


def replaced(path: str, content: str | bytes, line: str, *verb: str) -> Case:
    """A file of a scored run with another content."""
    data = content if isinstance(content, bytes) else content.encode()
    return Case(list(verb), rf"{re.escape(path)}.*{line}", lambda folder: (folder / path).write_bytes(data), "scored")


def line_of(path: str, line: str, *verb: str, **changes: Any) -> Case:
    """The second line of a JSON Lines file with these keys changed, and the manifest beside it resealed."""

    def prepare(folder: Path) -> None:
        lines = (folder / path).read_text().splitlines()
        lines[1] = json.dumps({**json.loads(lines[1]), **changes})
        (folder / path).write_text("\n".join(lines) + "\n")
        edit_json((folder / path).with_suffix(".json"), checksum=None, lines_sha256=storage.sha256_file(folder / path))

    return Case(list(verb), rf"{re.escape(path)}, row 2: .*{line}", prepare, "scored")


def model(line: str, prepare: Callable[[Path], object], verb: str = "predict") -> Case:
    """A model folder, or a file beside it in the run, changed."""
    return Case(
        [verb, "--set", "model.path=model", "--set", "predict.variants=[base]", "--set", "device=cpu"],
        line,
        prepare,
        "model",
    )


def edited(file: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "model" / file, **changes)


def written(file: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "model" / file).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def header(value: Any) -> bytes:
    """A safetensors file with this header and eight bytes of data."""
    text = json.dumps(value).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


def index_of(weights: Any) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        (folder / "model" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": weights}}))

    return prepare


def pickled(folder: Path) -> None:
    (folder / "model" / "model.safetensors").rename(folder / "model" / "pytorch_model.bin")


def linked(name: str, target: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        (folder / "model" / name).unlink(missing_ok=True)
        (folder / "model" / name).symlink_to(target)

    return prepare


SCORE, GATE, SHOW = ["score", *QUICK], ["gate", *QUICK], ["baseline", "show"]
COMPARE = ["compare", "--force", *QUICK]
REPORT = ["report", "--force", *QUICK]
BASELINE, PREDICTIONS, SCORES = (
    "reports/baseline.json",
    "runs/tiny/predictions/adapter.jsonl",
    "runs/tiny/scores/adapter.jsonl",
)
ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

CASES: dict[str, Case] = {
    "not JSON": qa("qa.json", '[{"question": "Q?",\n "answer": }]', r"not JSON.*line 2, column 12"),
    "cut short": qa("qa.json", '[{"question": "Q?", "ans', r"not JSON.*line 1"),
    "an object": qa("qa.json", json.dumps({"name": "x", "size": 3}), r"no column 'question'.*found name, size"),
    "a number": qa("qa.json", "3", r"a number, not a list"),
    "no rows": qa("qa.json", "[]", r"no rows"),
    "blank": qa("qa.json", " \n ", r"is blank"),
    "empty": qa("qa.json", "", r"is empty"),
    "row not an object": qa("qa.json", rows(["Q?", "A"]), r"row 2: is a list, not an object"),
    "row is null": qa("qa.json", rows(None), r"row 2: is null"),
    "no question": qa("qa.json", rows({"answer": "A"}), r"row 2: has no 'question'.*add"),
    "no answer": qa("qa.json", rows({"question": "Q?"}), r"row 2: has no 'answer'"),
    "empty answer": qa("qa.json", rows({"question": "Q?", "answer": ""}), r"row 2: answer is empty"),
    "blank question": qa("qa.json", rows({"question": " \u3000\u200b\n", "answer": "A"}), r"row 2: question is blank"),
    "null answer": qa("qa.json", rows({"question": "Q?", "answer": None}), r"row 2: answer is null"),
    "object as answer": qa("qa.json", rows({"question": "Q?", "answer": {"a": 1}}), r"row 2: answer is an object"),
    "two shapes": qa("qa.json", rows({"prompt": "Q?", "completion": "A"}), r"row 2: is of another shape"),
    "boolean answer": qa("qa.json", rows({"question": "Q?", "answer": True}), r"row 2: answer is true or false"),
    "list as question": qa("qa.json", rows({"question": ["Q?"], "answer": "A"}), r"row 2: question is a list"),
    "duplicate ids": qa(
        "qa.json", json.dumps([GOOD | {"id": "x"}, GOOD, GOOD | {"id": "x"}]), r"row 3: id 'x' is also that of row 1"
    ),
    "duplicate ids, one a number": qa(
        "qa.json", json.dumps([GOOD | {"id": "1"}, GOOD | {"id": 1}]), r"row 2: id '1' is also"
    ),
    "id is a list": qa("qa.json", rows(GOOD | {"id": [1]}), r"row 2: id is a list"),
    "article is true": qa("qa.json", rows(GOOD | {"article": True}), r"row 2: article is true or false"),
    "article 14.5": qa("qa.json", rows(GOOD | {"article": 14.5}), r"row 2: article is a number"),
    "references of nulls": qa(
        "qa.json", rows(GOOD | {"references": [None]}), r"row 2: references holds null; leave it out"
    ),
    "lone surrogate": qa(
        "qa.json", '[{"question": "Q \\ud800?", "answer": "A"}]', r"row 1: has half of a surrogate pair"
    ),
    "lone surrogate in an extra key": qa(
        "qa.json", rows(GOOD | {"x": {"\udfff": 1}}), r"row 2: has half of a surrogate pair"
    ),
    "not a number": qa("qa.json", '[{"question": "Q?", "answer": "A", "x": NaN}]', r"NaN is not a number"),
    "too large a number": qa("qa.json", '[{"question": "Q?", "answer": "A", "x": 1e999}]', r"1e999 is not a number"),
    "number of 5,000 digits": qa(
        "qa.json", '[{"question": "Q?", "answer": "A", "x": ' + "9" * 5000 + "}]", r"not usable JSON"
    ),
    "nested for ever": qa("qa.json", "[" * 200_000, r"row 1: has more than 32 levels of nesting"),
    "nested 100 deep": qa(
        "qa.json", rows(GOOD | {"x": json.loads("[" * 100 + "]" * 100)}), r"row 2: has more than 32 levels of nesting"
    ),
    "a question of 100 kB": qa(
        "qa.json", rows({"question": "why " * 25_000, "answer": "A"}), r"row 2: question has 100,000 characters"
    ),
    "bad line": qa("qa.jsonl", json.dumps(GOOD) + '\n\n{"question": }', r"not JSON.*line 3, column 14"),
    "bad row in a line": qa("qa.jsonl", json.dumps(GOOD) + '\n{"question": "Q?"}', r"row 2: has no 'answer'"),
    "list in lines": qa("qa.jsonl", json.dumps(GOOD) + "\n" + json.dumps([GOOD]), r"row 2: is a list"),
    "no such column": qa("qa.csv", "question,remark\nQ?,A\n", r"no column 'answer'.*found question, remark"),
    "several candidates": qa(
        "qa.csv", "question;output;response\nQ?;A;B\n", r"several columns that could be the answer"
    ),
    "a column twice": qa("qa.csv", "question,answer,answer\nQ?,A,B\n", r"two columns of one name"),
    "too many fields": qa("qa.csv", "question,answer\nQ?,A\nWho, then?,A\n", r"row 2: has more fields"),
    "too few fields": qa("qa.csv", "question,answer\nQ?\n", r"row 1: answer is empty"),
    "blank cell": qa("qa.csv", "question,answer\nQ?,A\nQ?,\n", r"row 2: answer is empty"),
    "open quote": qa("qa.csv", 'question,answer\n"Q?,A\n', r"is not CSV"),
    "header only": qa("qa.csv", "question,answer\n", r"no rows"),  # encodings
    "Latin-1": qa(
        "qa.json",
        '[{"question": "Qu\u00e9?", "answer": "A"}]'.encode("latin-1"),
        r"is not UTF-8 \(byte 0xe9 on line 1\); save it as UTF-8",
    ),
    "curly quotes of Windows": qa(
        "qa.json", b'[{"question": "Q?",\n"answer": "\x93A\x94"}]', r"not UTF-8 \(byte 0x93 on line 2\)"
    ),
    "UTF-16 without a mark": qa(
        "qa.json", rows().encode("utf-16-le"), r"UTF-16 without a byte order mark; save it as UTF-8"
    ),
    "UTF-16 cut short": qa("qa.json", codecs.BOM_UTF16_LE + b"[\x00\x00", r"not UTF-16"),
    "a binary file": qa("qa.json", b"\x00\x01\x02\x03", r"looks like UTF-16|not JSON"),
    "a zip": qa("qa.csv", b"PK\x03\x04\xff\xfe\x00", r"not a whole xlsx or ZIP file"),
    "a zipped CSV": qa("qa.csv.gz", b"\x1f\x8b\x08\x00\x00", r"not a complete gzip file"),
    "a NUL": qa("qa.csv", "question,answer\nQ?,A\0B\n", r"row 1: answer contains a NUL character; remove it"),
    # JSON that Python takes and others do not
    "a key twice": qa(
        "qa.json", '[{"question": "Q?", "answer": "A", "answer": "B"}]', r"row 1: .*the key 'answer' occurs twice"
    ),
    "two lists": qa("qa.json", "[] []", r"not JSON: extra data"),
    "a comma at the end": qa("qa.json", f"[{json.dumps(GOOD)},]", r"not JSON: expecting value"),
    "a text": qa("qa.json", '"Q?"', r"is a text, not a list"),
    "HTML": qa("qa.json", "<html>", r"is HTML or XML; give JSON"),
    "an unclosed row of 2 MB": qa(
        "qa.json",
        "[" + json.dumps(GOOD) + ', {"question": "' + "x" * 2_000_000,
        r"row 2: has more than 1,000,000 characters",
    ),
    "a line of 2 MB": qa("qa.jsonl", '{"x": "' + "x" * 2_000_000 + '"}', r"row 1: has more than 1,000,000 characters"),
    "a cell of 2 MB": qa(
        "qa.csv",
        f"question,answer\nQ?,{'x' * 2_000_000}\n",
        r"has 2,000,004 characters on line 2; put each row on a separate line",
    ),
    "a cell of 2 MB over many lines": qa(
        "qa.csv", 'question,answer\nQ?,"' + "x\n" * 1_000_000 + '"\n', r"is not CSV \(field larger"
    ),
    "2,000 columns": qa("qa.csv", "question,answer" + ",x" * 1998 + "\n", r"has 2,000 columns; keep 1,000 at most"),
    "no such file": Case(["split", "--qa", "none.json"], r"none\.json: no such file; check the path"),
    "a folder": Case(["split", "--qa", "."], r"\.: is a folder; name the QA file in it"),
    "a pipe": Case(
        ["split", "--qa", "pipe.json"],
        r"pipe\.json: is not a regular file; save",
        lambda folder: os.mkfifo(folder / "pipe.json"),
    ),
    "a device": Case(["split", "--qa", "/dev/zero"], r"/dev/zero: is not a regular file"),
    "a NUL in the name": Case(["split", "--qa", "qa\0.json"], r"data.qa: holds a NUL character; remove it"),
    # configs
    "config: no such": Case(["split", "--config", "none"], r"no config 'none'; use one of .*tiny"),
    "config: a list": config("- a", r"is not a mapping of sections; see"),
    "config: cut short": config("train: {max_steps: 3", r"is not YAML; look at line"),
    "config: not UTF-8": config(b"description: \xff\xfe", r"is not YAML; save it as UTF-8"),
    "config: a NUL": config("description: \0", r"is not YAML"),
    "config: a key twice": config(
        "train:\n  seed: 1\n  max_steps: 5\n  seed: 2\n", r"has the key 'seed' twice, on lines 2 and 4; look at line 4"
    ),
    "config: a section twice": config(
        "data: {seed: 1}\ntrain: {}\ndata: {}\n", r"has the key 'data' twice, on lines 1 and 3"
    ),
    "config: aliases of aliases": config(ALIASES, r"expands to more than 10,000 values; look at line 5"),
    "config: an alias of itself": config("train: &a [*a]", r"has an alias that contains itself; look at line 1"),
    "config: nested for ever": config("[" * 50_000, r"is not YAML"),
    "config: a megabyte": config("# " + "x" * 1_000_000, r"has more than 100,000 characters"),
    "config: an object of Python": config("a: !!python/object/apply:os.system [true]", r"is not YAML; look at line 1"),
    "config: a value not of its tag": config("a: !!bool x", r"is not YAML"),
    "config: a number of 6,000 digits": config(
        "data: {seed: 0x" + "f" * 5000 + "}", r"has a number of hundreds of digits"
    ),
    "config: half a character": config('description: "\\ud800"', r"has half of a surrogate pair"),
    "config: a thousand unknown keys": config(
        "\n".join(f"k{i}: 1" for i in range(1000)), r"unknown key 'k0'.*; 980 more; correct"
    ),
    "config: a password in an address": config(
        "predict: {extra: {x: {backend: endpoint, path: 'http://me:canary@host/v1'}}}",
        r"predict\.extra\.x\.path: holds a password.*HARNESS_ENDPOINT_KEY",
    ),
    "config: a key in an address": config(
        "predict: {extra: {x: {backend: endpoint, path: 'http://host/v1?key=canary'}}}", r"holds a password or a key"
    ),
    "config: a variant of the name of a format": config(
        "predict: {extra: {gguf_f16: {backend: replay, path: p}}}", r"'gguf_f16' is taken"
    ),
    "config: a variant of the name of a file": config(
        "predict: {extra: {manifest: {backend: replay, path: p}}}", r"'manifest' is taken"
    ),
    "config: a variant that leaves its folder": config(
        "predict: {extra: {../x: {backend: replay, path: p}}}", r"variant name '../x' is not usable"
    ),
    "config: a negative seed": config("score: {seed: -1}", r"score\.seed: input should be greater than or equal to 0"),
    "config: a trillion resamples": config(
        "score: {resamples: 1000000000000}", r"score\.resamples: input should be less than"
    ),
    # --set and names
    "set: no value": setting("train.max_steps", r"--set 'train\.max_steps' is not KEY=VALUE; write it like"),
    "set: no key": setting("=5", r"--set '=5' is not KEY=VALUE"),
    "set: not YAML": setting("train.max_steps=[", r"cannot be applied; write it like"),
    "set: aliases": setting("train.lora.target_modules=&a [*a]", r"cannot be applied"),
    "set: below a value": setting("description.x=1", r"cannot be applied"),
    "set: an unknown key": setting("train.max_step=3", r"unknown key 'train\.max_step' \(did you mean 'max_steps'\?\)"),
    "set: no question in the template": setting(
        "prompt.template=hello", r"prompt\.template: must contain \{question\} exactly once"
    ),
    "set: a password in an address": setting(
        "predict.extra.x=http://me:canary@host/v1", r"predict\.extra\.x: .*\*\*\*@host"
    ),
    "run: a path": run_name("a/b"),
    "run: upwards": run_name("../x"),
    "run: absolute": run_name("/tmp/x"),
    "run: two dots": run_name("a..b"),
    "run: hidden": run_name(".x"),
    "run: an option": run_name("-x"),
    "run: empty": run_name(" "),
    "run: a NUL": run_name("a\0b"),
    "run: a line break": run_name("a\n"),
    "run: a slash look-alike": run_name("a\u2215b"),
    "run: letters of another script": run_name("\u0430dmin"),
    "run: turned round": run_name("a\u202eb"),
    "run: half a character": run_name("a\udcff"),
    "run: 101 characters": run_name("a" * 101),
    # the baseline
    "baseline: missing": Case(
        GATE,
        r"reports/baseline\.json: is missing; make one with harness baseline save",
        lambda f: (f / BASELINE).unlink(),
        "scored",
    ),
    "baseline: cut short": replaced(
        BASELINE, '{"run": "tiny', r"cannot be read.*; make one with harness baseline save", *SHOW
    ),
    "baseline: a list": replaced(BASELINE, "[]", r"is damaged", *SHOW),
    "baseline: nested for ever": replaced(BASELINE, "[" * 100_000, r"more than 64 levels of nesting", *SHOW),
    "baseline: nested 500 deep": replaced(BASELINE, "[" * 500 + "]" * 500, r"more than 64 levels of nesting", *SHOW),
    "baseline: a key twice": replaced(BASELINE, '{"run": "a", "run": "b"}', r"the key 'run' occurs twice", *SHOW),
    "baseline: not a number": replaced(BASELINE, '{"run": NaN}', r"NaN is not a number", *SHOW),
    "baseline: not UTF-8": replaced(BASELINE, b"\xff\xfe", r"cannot be read", *SHOW),
    "baseline: of another version": changed(
        BASELINE, r"was written by another version of the harness", *GATE, schema_version=2
    ),
    "baseline: an unknown key": changed(BASELINE, r"is damaged \(surprise: ", *GATE, surprise=1),
    "baseline: no questions": changed(BASELINE, r"is damaged", *GATE, questions=[]),
    "baseline: a question twice": changed(
        BASELINE,
        r"question 'x' occurs twice",
        *GATE,
        questions=[{"id": "x", "group": "g", "sha256": "s", "scores": {"adapter": [1, 1, 1]}}] * 2,
    ),
    "baseline: a score of 1e308": changed(
        BASELINE,
        r"is damaged \(questions\.0\.scores",
        *GATE,
        questions=[{"id": "x", "group": "g", "sha256": "s", "scores": {"adapter": [1e308, 1, 1]}}],
    ),
    "baseline: a variant that leaves its folder": changed(
        BASELINE, r"is damaged \(variants\.\.\./x", *GATE, variants={"../x": {}}
    ),
    "baseline: provenance of another shape": changed(
        BASELINE, r"is damaged \(provenance", *SHOW, provenance={"git": ["x"]}
    ),
    "baseline: a folder": Case(["gate", "--baseline", "runs", *QUICK], r"runs: is not a file", start="scored"),
    # predictions, scores, manifests
    "predictions: missing": Case(
        SCORE,
        r"adapter\.jsonl: is missing; run harness predict --run \w+ first",
        lambda f: (f / PREDICTIONS).unlink(),
        "scored",
    ),
    "predictions: a truncated line": replaced(
        PREDICTIONS,
        '{"id": "q0", ',
        r"is (damaged or was changed|not what predict wrote).*; run harness predict again",
        *SCORE,
    ),
    "predictions: an unknown reason": line_of(
        PREDICTIONS, r"is damaged \(finish_reason", *SCORE, finish_reason="tired"
    ),
    "predictions: a negative token": line_of(PREDICTIONS, r"is damaged \(answer_ids\.0", *SCORE, answer_ids=[-1]),
    "predictions: a token of 2^40": line_of(PREDICTIONS, r"is damaged \(answer_ids\.0", *SCORE, answer_ids=[2**40]),
    "predictions: seconds that are no number": line_of(
        PREDICTIONS, r"is damaged \(seconds", *SCORE, seconds=float("inf")
    ),
    "predictions: an unknown key": line_of(PREDICTIONS, r"is damaged \(surprise", *SCORE, surprise=1),
    "predictions: a question twice": line_of(PREDICTIONS, r"answers question 'q0' twice", *SCORE, id="q0"),
    "prediction manifest: of another version": changed(
        "runs/tiny/predictions/adapter.json", r"was written by another version", *SCORE, schema_version=0
    ),
    "prediction set: a variant that leaves its folder": changed(
        "runs/tiny/predictions/manifest.json", r"is damaged \(variants\.0", *SCORE, variants=["../../../x"]
    ),
    "prediction set: a list": replaced("runs/tiny/predictions/manifest.json", "[]", r"is damaged", *SCORE),
    "scores: a score of 7": line_of(SCORES, r"is damaged \(scores\.token_f1", *COMPARE, scores={"token_f1": 7}),
    "scores: not a number": line_of(
        SCORES, r"is damaged \(scores\.token_f1", *COMPARE, scores={"token_f1": float("nan")}
    ),
    "score manifest: of another version": changed(
        "runs/tiny/scores/adapter.json", r"was written by another version", *COMPARE, schema_version=2
    ),
    "split: of another version": changed(
        "runs/tiny/split/split.json", r"was written by another version", *SCORE, schema_version=2
    ),
    "split: a list": replaced("runs/tiny/split/split.json", "[1]", r"is damaged", *SCORE),
    "comparison: of another version": changed(
        "reports/tiny/comparison.json", r"was written by another version", *REPORT, schema=2
    ),
    "comparison: a variant that leaves its folder": changed(
        "reports/tiny/comparison.json", r"is damaged \(variants\.\.\./x", *REPORT, variants={"../x": {}}
    ),
    "comparison: cut short": replaced("reports/tiny/comparison.json", "{", r"cannot be read", *REPORT),
    "gate.json: a list": replaced("reports/tiny/gate.json", "[]", r"is damaged", *REPORT),
    # model folders
    "model: none": Case(
        ["train", "--set", "model.path=./none"], r"\./none: there is no such folder; give", start="model"
    ),
    "model: empty": model(r"model: has no config\.json; give", lambda f: [p.unlink() for p in (f / "model").iterdir()]),
    "model: config cut short": model(r"model/config\.json: cannot be read", written("config.json", "{")),
    "model: config is a list": model(r"model/config\.json: is not a JSON object", written("config.json", "[]")),
    "model: config nested for ever": model(
        r"model/config\.json: cannot be read", written("config.json", "[" * 100_000)
    ),
    "model: quantised": model(r"model: is already quantised", edited("config.json", quantization_config={})),
    "model: pickled weights": model(r"model: has no weights; .*pickled \.bin weights are not read", pickled),
    "model: an adapter beside it": model(r"holds an adapter beside the model", written("adapter_config.json", "{}")),
    "model: no tokenizer": model(r"model: has no tokenizer", lambda f: (f / "model/tokenizer.json").unlink()),
    "model: a link to a file outside": model(
        r"chat_template\.jinja: is a link that leads out", linked("chat_template.jinja", "/etc/hostname")
    ),
    "model: an index that leaves the folder": model(r"index\.json: names '\.\./\.\./x'", index_of("../../x")),
    "model: an index with an absolute path": model(
        r"names '/etc/passwd', which is not a file of its folder", index_of("/etc/passwd")
    ),
    "model: an index of numbers": model(r"names '5'", index_of(5)),
    "model: an index of lists": model(r"names '\[1\]'", index_of([1])),
    "model: an index with a NUL": model(r"which is not a file of its folder", index_of("a\0b")),
    "model: weights cut short": model(r"model\.safetensors: is truncated", written("model.safetensors", b"\x10")),
    "model: a header of 2^60 bytes": model(
        r"is truncated or not", written("model.safetensors", (2**60).to_bytes(8, "little"))
    ),
    "model: a header that is a list": model(
        r"has a damaged safetensors header", written("model.safetensors", header([1]))
    ),
    "model: a tensor without its place": model(
        r"damaged safetensors header", written("model.safetensors", header({"a": {"dtype": "F32", "shape": [1]}}))
    ),
    "model: a shape of texts": model(
        r"damaged safetensors header",
        written("model.safetensors", header({"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}})),
    ),
    "model: a dtype that is a list": model(
        r"damaged safetensors header",
        written("model.safetensors", header({"a": {"dtype": [], "shape": [1], "data_offsets": [0, 4]}})),
    ),
    "model: a place before the file": model(
        r"damaged safetensors header",
        written("model.safetensors", header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}})),
    ),
    "model: an end token that is a text": model(
        r"generation_config\.json: its eos_token_id is", edited("generation_config.json", eos_token_id="x")
    ),
    "model: a generation config that is a list": model(
        r"generation_config\.json: .*not token ids", written("generation_config.json", '["x"]')
    ),
    "model: a tokenizer that wants its own code": model(
        r"its tokenizer cannot be loaded",
        edited("tokenizer_config.json", tokenizer_class="E", auto_map={"AutoTokenizer": ["evil.E", None]}),
    ),
}


# ------------------------------------------------------------------------------------------------------ working folders


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from split to gate, with its baseline."""
    folder = tmp_path_factory.mktemp("scored")
    scored_run.make(folder, {"base": lambda _: "nothing", "adapter": lambda q: q.answer}, name="tiny")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for verb in (SCORE, COMPARE, REPORT, ["baseline", "save", *QUICK], GATE):
            result = CliRunner().invoke(cli.app, verb)
            assert result.exit_code == 0, (verb, result.output)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def with_model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A run after split, and a model."""
    folder = tmp_path_factory.mktemp("model")
    small_run.split(folder, name="tiny")
    shutil.copytree(tiny_model, folder / "model")
    return folder


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a case."""
    start = CASES[request.node.callspec.params["name"]].start
    if start != "empty":
        made = request.getfixturevalue({"scored": "scored", "model": "with_model"}[start])
        # W&B's logs are links, which lead nowhere when its service began in another test.
        shutil.copytree(made, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("wandb"))
    (tmp_path / "good.json").write_text(
        json.dumps([{"question": f"Which article is about {t}?", "answer": f"It is {t[::-1]}"} for t in TOPICS])
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    """Every regular file but those that record the attempt: run.json and the lock."""
    printed = ("run.json", ".lock")
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in printed
    }


@pytest.mark.parametrize("name", CASES)
def test_is_refused_with_one_line_and_nothing_half_written(folder: Path, name: str) -> None:
    case = CASES[name]
    case.prepare(folder)
    before = contents(folder)
    result = CliRunner().invoke(cli.app, case.verb)
    assert result.exit_code == 2, (result.output, result.exception)
    line = result.stderr.removesuffix("\n")
    assert line.startswith("error: ") and len(line.splitlines()) == 1 and line.isprintable()
    assert re.search(case.line, line), line
    assert "; " in line and len(line) < 3000 and "Traceback" not in result.output
    assert "canary" not in result.output
    after = contents(folder)
    removed = {path for path in before if path not in after}
    # A stage removes the old manifest first, so that none is left beside other answers.
    assert all(
        Path(path).name in ("manifest.json", "adapter.json", "gate.json", "gate.md", "junit.xml") for path in removed
    ), removed
    assert {path: data for path, data in after.items() if before.get(path) != data} == {}


@pytest.mark.parametrize("argument", ["a\udcff", "a\x1b[2J", "a\u202eb", "a\rb"])
def test_an_argument_that_is_not_text_is_refused_before_any_verb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argument: str
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["harness", "split", "--qa", argument])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and printed.count("\n") == 1 and printed.startswith("error: the argument 'a\\")


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 60


# ------------------------------------------------------------------------------------------------- what needs more room


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "qa.json"
    path.write_text(rows())
    path.chmod(0)
    with pytest.raises(DataError, match="cannot be opened"):
        dataset.load(path)
