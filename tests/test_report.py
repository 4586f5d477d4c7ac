"""The report from its files: what it says, what it does without, and that untrusted text stays text."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
from pydantic import TypeAdapter
from typer.testing import CliRunner

from harness import provenance, storage
from harness.cli import app
from harness.config import Config
from harness.errors import ArtifactError
from harness.records import Breakdown, Comparison, GateResult, Provenance, SplitManifest
from harness.report import (
    first_screen,
    headline,
    provenance_section,
)
from harness.report import page as rendering
from harness.stages import report
from tests.helpers.report_fixture import HOSTILE, METRICS, Outline, comparison_of, edit, pair, write_run

# -------------------------------------------------------------------------------------------------------------- stage


def test_writes_a_page_and_a_markdown_file(reported):
    assert {file.name for file in reported.reports.iterdir()} == {"comparison.json", "report.html", "report.md"}
    assert reported.report_html.stat().st_size < 3_000_000
    assert reported.report_md.read_text().startswith("## Ship: yes, as ")
    assert f"<code>harness chat --run {reported.name}</code>" in reported.report_html.read_text()


def test_the_table_of_formats_says_of_which_questions_its_bound_speaks(reported):
    folder = reported.comparison_json.parent
    assert all("is a bound for these questions" in (folder / f"report.{kind}").read_text() for kind in ("html", "md"))


def test_same_input_same_bytes(reported, tmp_path):
    again = write_run(tmp_path, questions=60)
    report.run(again, Config())
    assert again.report_html.read_bytes() == reported.report_html.read_bytes()
    assert again.report_md.read_bytes() == reported.report_md.read_bytes()


def test_unchanged_input_writes_nothing_and_changed_input_does(tmp_path):
    run = write_run(tmp_path, questions=20)
    report.run(run, Config())
    before = run.report_html.stat().st_mtime_ns
    report.run(run, Config())
    assert run.report_html.stat().st_mtime_ns == before
    edit(run, alarms=[{"code": "runaway", "variant": "base", "message": "now there is one"}])
    report.run(run, Config())
    assert "now there is one" in run.report_html.read_text()
    before = run.report_html.stat().st_mtime_ns
    report.run(run, Config(), force=True)
    assert run.report_html.stat().st_mtime_ns > before


def test_missing_comparison_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"comparison\.json: is missing"):
        report.run(storage.RunFolder("none", tmp_path), Config())


def test_damaged_line_is_named(tmp_path):
    run = write_run(tmp_path, questions=5)
    run.score("base")[0].write_text('{"id": "\\ud800"}\n')
    with pytest.raises(ArtifactError, match=r"base\.jsonl, row 1"):
        report.run(run, Config())


def test_everything_but_the_comparison_may_be_missing(reported, tmp_path):
    run = storage.RunFolder("demo", tmp_path)
    run.reports.mkdir(parents=True)
    shutil.copy(reported.comparison_json, run.comparison_json)
    edit(run, breakdowns=[], fidelity=[], noise={}, pairs=[], baselines={}, alarms=[])
    page = report.run(run, Config()).read_text()
    for said in (
        "No training history",
        "No two variants were compared",
        "Fidelity was not measured",
        "No breakdowns",
        "No answers to show",
    ):
        assert said in page
    for said in ("No split manifest", "Nothing was exported", "No alarms", "a difference that was not tested"):
        assert said in page


@pytest.mark.parametrize("variants", [["base"], ["adapter"], []])
def test_one_variant_or_none(tmp_path, variants):
    run = write_run(tmp_path, questions=12, variants=variants)
    page = report.run(run, Config()).read_text()
    assert "Nothing to compare" in page or "no base model to compare it with" in page
    assert "No plot of quality against cost" in page
    assert len(run.report_md.read_text()) < rendering.MAX_MARKDOWN


def test_zero_scored_is_unscored_not_zero(tmp_path):
    run = write_run(tmp_path, questions=12)
    value = json.loads(run.comparison_json.read_text())
    for result in value["variants"].values():
        for measured in result["metrics"].values():
            measured.update(value=None, ci95=None, n=0, n_unscored=12)
    for entry in value["pairs"]:
        entry.update(delta=None, ci95=None, p=None, p_adjusted=None, verdict="undecided")
    edit(run, **value)
    page = report.run(run, Config()).read_text()
    assert "has no scored answer, so there is no result" in page
    assert ">unscored<" in page


def test_the_gates_verdict_is_shown_on_the_results_that_it_judged(tmp_path):
    run = write_run(tmp_path, questions=12)
    assert "<dt>Gate</dt>" not in report.run(run, Config()).read_text()
    storage.write_json(
        run.gate_json,
        GateResult(
            run=run.name,
            comparison_sha256=storage.results_sha256(storage.read_record(run.comparison_json, Comparison)),
            verdict="pass",
            reason="no regression <b>beyond</b> the margin",
            exit_code=0,
            strict=False,
            baseline="b.json",
            baseline_run="b",
            baseline_commit=None,
            checks=[],
            seconds=0.1,
        ),
    )
    assert "<b>passed.</b> no regression &lt;b&gt;beyond" in report.run(run, Config()).read_text()
    edit(run, provenance={"stages": {"demo": {"command": "harness demo"}}})
    assert "<b>passed.</b>" in report.run(run, Config()).read_text(), "a command is no result"
    edit(run, alarms=[])
    page = report.run(run, Config()).read_text()
    assert "<b>out of date.</b>" in page and "beyond" not in page
    assert "**Gate: out of date.**" in run.report_md.read_text()


def test_several_runs_are_overlaid_and_put_side_by_side(tmp_path):
    one, two = write_run(tmp_path, "one", questions=24), write_run(tmp_path, "two", questions=24, seed=1)
    tested = [
        pair(left="one/adapter", right="two/adapter", metric="exact_match_normalized", delta=0.13, ci95=(0.05, 0.2))
    ]
    page = report.run(one, Config(), others=[two], tested=tested).read_text()
    assert "Runs side by side" in page and "two, dev" in page
    text = " ".join(Outline(page).text)
    assert re.search(r"Adapter\s+two\s+.*?\u221213\s+\u221220 to \u22125\s+worse", text), (
        "the pair is turned round: two minus one"
    )
    lines = (tmp_path / "reports" / "one-vs-two" / "report.md").read_text().splitlines()
    head = lines.index("**Runs side by side**") + 2
    assert re.fullmatch(
        r"\| Adapter \| two \| .* \| \u221213 \| \u221220 to \u22125 \| worse \| .* \|", lines[head + 3 + 2]
    )
    assert len({line.count("|") for line in lines[head : lines.index("", head)]}) == 1
    edit(two, split_id="another")
    storage.write_json(
        two.split_json, storage.read_record(two.split_json, SplitManifest).model_copy(update={"split_id": "another"})
    )
    assert "not comparable: other questions" in report.run(one, Config(), others=[two]).read_text()


def test_a_run_that_must_not_be_compared_is_overlaid_and_says_why(tmp_path, monkeypatch):
    """On the command line, where the runs are compared as well."""
    for at, name in enumerate(("one", "two")):
        write_run(tmp_path, name, questions=24, seed=at)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["report", "one", "two"])
    assert result.exit_code == 0, result.output
    assert "two is not compared: " in result.output
    page = (tmp_path / "reports" / "one-vs-two" / "report.html").read_text()
    text = " ".join(Outline(page).text)
    assert re.search(r"two is not compared: \S+", text) and re.search(r"Adapter\s+two\s.*?\s–\s+–\s+not compared", text)
    assert "two, dev" in page


def test_the_commands_that_made_a_run_are_in_their_order(reported, tmp_path):
    stages = {
        verb: {"command": f"harness {verb} --run r --set a='b c'"}
        for verb in ("score", "predict", "compare", "split", "gate", "demo")
    }
    found = provenance.commands({"stages": stages | {"train": {"status": "failed"}}})
    assert found == [
        f"harness {verb} --run r --set a='b c'" for verb in ("split", "predict", "score", "compare", "report")
    ]
    assert provenance.commands({}) == []
    page = reported.report_html.read_text()
    shown = re.search(r'<pre tabindex="0" id="commands"[^>]*><code>(.*?)</code></pre>', page, re.S)
    assert shown and shown[1].splitlines()[0] == "# harness at commit 0123456789abcdef0123456789abcdef01234567"
    assert shown[1].splitlines()[1:] == comparison_of(reported).provenance["commands"]
    run = write_run(tmp_path, questions=5)
    edit(run, provenance={"commands": ["harness <script>"], "git": {"commit": "c", "dirty": True}})
    page = report.run(run, Config()).read_text()
    assert "c, with changes that were not committed\nharness &lt;script&gt;<" in page
    edit(run, provenance={})
    assert "No commands: this run" in report.run(run, Config()).read_text()


@pytest.mark.parametrize(
    ("key", "value"), [("commands", "no list"), ("git", None), ("stages", {"split": []}), ("seeds", {"split": "0"})]
)
def test_provenance_of_another_shape_is_refused(reported, tmp_path, key, value):
    file = tmp_path / "comparison.json"
    shape = json.loads(reported.comparison_json.read_text()) | {"checksum": "", "provenance": {key: value}}
    file.write_text(json.dumps(shape))
    with pytest.raises(ArtifactError, match=rf"is damaged \(provenance\.{key}"):
        storage.read_record(file, Comparison)


def test_provenance_of_another_version_keeps_its_keys_and_values():
    written = {
        "config": {"train": {"warmup_ratio": 1, "betas": [0.9, 1]}, "description": None},
        "git": {},
        "machine": {"cores": None, "gpu": "T4"},
        "of_a_later_version": [1, 1.0, True],
        "seeds": {"split": 0},
        "stages": {"train": {"seconds": 12, "status": "failed"}},
        "variants": {"base": {"generation": {"temperature": 0, "do_sample": False, "stop": [2]}, "findings": []}},
    }
    read = TypeAdapter(Provenance).validate_python(written)
    assert json.dumps(read, sort_keys=True) == json.dumps(written, sort_keys=True)


# ------------------------------------------------------------------------------------------------------- first screen


def test_the_decision_is_the_comparisons_wherever_it_is_shown(reported):
    decided = comparison_of(reported).shipping
    assert decided is not None and decided.variant is not None
    page, text = reported.report_html.read_text(), reported.report_md.read_text()
    for sentence in (decided.title, decided.reason, decided.next_step):
        assert sentence.replace("'", "&#39;") in page and rendering.plain(sentence) in text
    assert f'<h1 id="headline">{decided.title}</h1>' in page
    assert page.index(decided.title) < page.index("Fine-tuning raised")


def test_the_identity_names_model_data_rows_date_and_commit(reported):
    inputs = report.read(reported)
    stages = {"score": {"ended": "2026-11-25T09:43:00+00:00"}, "split": {"ended": "2026-11-25T09:00:00+00:00"}}
    known = inputs.comparison.provenance | {"stages": stages}
    identity = first_screen.identity(
        replace(inputs, comparison=inputs.comparison.model_copy(update={"provenance": known}))
    )
    assert identity == [
        "tiny-llama3 fine-tuned on 2,520 rows of constitution_qa.json",
        "tested on 60 held-out questions in 40 groups",
        "25 Nov 2026, 09:43 UTC",
        "commit 0123456789",
    ]


def test_an_evaluation_names_its_models(reported):
    inputs = report.read(reported)
    config = {"predict": {"extra": {"mine": {"adapter": "me/my-adapter"}, "old": {"path": "/models/old"}}}}
    comparison = inputs.comparison.model_copy(update={"provenance": {"config": config}})
    assert (
        first_screen.identity(replace(inputs, comparison=comparison, train=None))[0]
        == "mine (me/my-adapter), old (old)"
    )


def test_title_and_note_are_kept_and_are_text(tmp_path):
    run = write_run(tmp_path, questions=12)
    report.set_title(run, f"Our model {' '.join(HOSTILE)}", "\n".join(HOSTILE))
    outline = Outline(report.run(run, Config()).read_text())
    assert outline.tags.count("script") == 5 and "img" not in outline.tags
    assert not any(name.startswith("on") for name, _ in outline.attributes)
    text = "".join(outline.text)
    assert all(text.count(rendering.visible(words).split()[0]) >= 2 for words in HOSTILE)
    assert "# Our model" in run.report_md.read_text() and "<img" not in run.report_md.read_text()
    report.set_title(run, None, "")
    kept = report.read(run).title
    assert kept.title.startswith("Our model") and kept.note == ""


def test_strengths_and_weaknesses_are_sure_ones(reported):
    comparison = comparison_of(reported)
    variant, overall = first_screen.shown_variant(comparison), 0.6
    assert variant is not None

    def bucket(name, value, low, high, n=50):
        return Breakdown(
            by="kind", bucket=name, variant=variant, metric=comparison.primary, value=value, ci95=(low, high), n=n
        )

    kinds = [
        bucket("part", 1, 0.9, 1),
        bucket("term", 0.55, 0.4, 0.7),
        bucket("scenario", 0.05, 0, 0.3, 19),
        bucket("rare", 0, 0, 0.9, 3),
    ]
    value = comparison.variants[variant].metrics[comparison.primary].model_copy(update={"value": overall})
    result = comparison.variants[variant].model_copy(update={"metrics": {comparison.primary: value}})
    strengths = first_screen.strengths(
        comparison.model_copy(update={"breakdowns": kinds, "variants": {variant: result}})
    )
    assert strengths.startswith(
        "Strong: part (100% of 50). Weak: scenario (1 of 19). Too few to decide: rare (0 of 3)."
    )


def test_three_real_answers(reported):
    inputs = report.read(reported)
    found = first_screen.examples(inputs)
    assert [entry["title"].split(" by ")[0] for entry in found] == ["Newly right", "Still wrong", "Lost"]
    asked = {question.id: question for question in inputs.questions}
    for entry in found:
        assert entry["question"] == asked[entry["id"]].question and entry["count"] >= 1
    assert [mark for _, _, mark in found[0]["answers"]] == ["wrong", "right"]
    assert [mark for _, _, mark in found[2]["answers"]] == ["right", "wrong"]


def test_provenance_speaks_in_words():
    split = {
        "source": "qa.json",
        "source_sha256": "ab" * 32,
        "n_train": 3161,
        "n_heldout": 359,
        "n_groups_train": 452,
        "n_groups_heldout": 52,
        "seed": 2,
        "split_id": "x",
    }
    found = provenance_section.provenance(
        {"git": {"commit": "c0ffee", "dirty": False}, "split": split, "schema_version": 1}
    )
    assert found["facts"] == [
        ("harness", "commit c0ffee, working tree clean"),
        (
            "questions",
            "qa.json (sha256 abababababab), seed 2: 3,161 training questions in 452 groups, 359 held out in 52",
        ),
    ]
    assert provenance_section.provenance({"split": {"seed": 0}})["facts"] == [("split", "seed 0")]


# ------------------------------------------------------------------------------------------------------------ wording


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0%"),
        (0.0004, "<0.1%"),
        (0.004, "0.4%"),
        (0.02, "2%"),
        (0.061, "6.1%"),
        (0.612, "61%"),
        (0.996, "99.6%"),
        (1, "100%"),
        (None, "unscored"),
    ],
)
def test_percent_never_rounds_to_nothing_or_all(value, text):
    assert headline.percent(value) == text


@pytest.mark.parametrize(
    ("delta", "text"), [(0.59, "+59"), (-0.029, "\u22122.9"), (0.0, "0"), (-0.0001, "0"), (0.005, "+0.5")]
)
def test_points(delta, text):
    assert headline.points(delta) == text


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("better", "raised"),
        ("worse", "lowered"),
        ("tied", "made no difference"),
        ("undecided", "It is undecided whether"),
    ],
)
def test_headline_says_what_was_tested(reported, word, said):
    comparison = comparison_of(reported)
    changed = comparison.model_copy(
        update={"pairs": [p.model_copy(update={"verdict": word}) if p.right == "base" else p for p in comparison.pairs]}
    )
    assert said in headline.headline(changed).text


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"endpoint": "http://127.0.0.1:1/v1", "model": "m"}, "mine is better than Base: exact match"),
        ({"adapter": "elsewhere/lora_model"}, "Fine-tuning raised exact match"),
    ],
)
def test_only_an_adapter_is_called_fine_tuning(reported, source, said):
    """Of a server or a replayed file nobody knows how it was made."""
    comparison = comparison_of(reported)
    pairs = [p for p in comparison.pairs if (p.left, p.right) == ("adapter", "base")]
    changed = comparison.model_copy(
        update={
            "variants": {"base": comparison.variants["base"], "mine": comparison.variants["adapter"]},
            "pairs": [p.model_copy(update={"left": "mine", "verdict": "better"}) for p in pairs],
            "provenance": {"config": {"predict": {"extra": {"mine": source}}}},
        }
    )
    assert headline.headline(changed).text.startswith(said)


def test_beaten_by_a_baseline_is_said(reported):
    comparison = comparison_of(reported)
    strong = comparison.model_copy(update={"baselines": {"nearest_train_copy": dict.fromkeys(METRICS, 0.99)}})
    assert "does not beat that" in headline.evidence(strong)[1].text
    assert "does not beat that" not in headline.evidence(comparison)[1].text


def test_pairs_are_found_in_either_order():
    stored = [pair(left="x", right="y", delta=0.1, ci95=(0.05, 0.2), verdict="better", wins=20, losses=10)]
    turned = headline.find_pair(stored, "y", "x", "m")
    assert turned and (turned.delta, turned.ci95, turned.verdict, turned.wins, turned.losses) == (
        -0.1,
        (-0.2, -0.05),
        "worse",
        10,
        20,
    )
    assert headline.find_pair(stored, "y", "z", "m") is None


def test_best_is_the_highest_and_ties_are_tested_ones(reported):
    comparison = comparison_of(reported)
    metric = "exact_match_normalized"
    best, ties = headline.best_and_ties(comparison, metric)
    values = {v: r.metrics[metric].value or 0 for v, r in comparison.variants.items()}
    assert best and values[best] == max(values.values())
    assert "base" not in ties and best not in ties


def test_variants_are_in_the_order_of_the_pipeline(reported):
    names = ["base", "adapter", "merged_16bit", "merged_4bit", "gguf_f16", "gguf_q8_0", "gguf_q4_k_m"]
    assert list(report.read(reported).comparison.variants) == names
