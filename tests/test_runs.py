"""Two runs and many: their page, the list of runs, quality over time."""

from __future__ import annotations

import json
import subprocess

import pytest
from typer.testing import CliRunner

from harness import storage
from harness.cli import app
from harness.config import Config
from harness.errors import ArtifactError, ConfigError
from harness.records import Comparison, Pair
from harness.report import runs, two_runs
from harness.stages import history, report
from harness.stages.compare import compare_runs
from tests.helpers.logged import messages
from tests.helpers.report_fixture import CONFIG, write_run
from tests.helpers.scored_run import make, questions


def difference(**changes) -> Pair:
    values = {
        "left": "b/adapter",
        "right": "a/adapter",
        "metric": "exact_match_normalized",
        "delta": 0.012,
        "ci95": (-0.005, 0.029),
    }
    more = {
        "p": 0.2,
        "p_adjusted": 0.2,
        "verdict": "undecided",
        "n": 359,
        "margin": 0.02,
        "mde": 0.03,
        "family": "confirmatory",
    }
    return Pair.model_validate(values | more | changes)


def test_a_report_of_two_runs_has_its_own_folder_and_headline(tmp_path):
    one, two = write_run(tmp_path, "one", questions=24), write_run(tmp_path, "two", questions=24, seed=1)
    alone = report.run(one, Config()).read_bytes()
    tested = [difference(left="one/adapter", right="two/adapter", delta=-0.012, ci95=(-0.029, 0.005))]
    path = report.run(one, Config(), others=[two], tested=tested)
    assert path == tmp_path / "reports" / "one-vs-two" / "report.html"
    assert one.report_html.read_bytes() == alone, "the report of the first run stays as it is"
    page = path.read_text()
    assert '<h1 id="headline">two against one: undecided (+1.2 points)</h1>' in page
    assert "<title>one vs two: two against one: undecided (+1.2 points)</title>" in page
    assert "95% interval −0.5 to +2.9" in page and "Runs side by side" in page
    assert path.with_suffix(".md").read_text().startswith("## two against one: undecided")
    refused = report.run(one, Config(), others=[two], refused={"two": "they differ in split"}).read_text()
    assert "two against one: not comparable" in refused and "They differ in split." in refused


def test_a_run_whose_name_is_taken_is_not_overwritten(tmp_path):
    one, two = write_run(tmp_path, "one", questions=12), write_run(tmp_path, "two", questions=12)
    write_run(tmp_path, "one-vs-two", questions=12)
    with pytest.raises(ConfigError, match="is the report of a run of that name"):
        report.run(one, Config(), others=[two])


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("better", "better by 1.2 points"),
        ("worse", "worse by 1.2 points"),
        ("tied", "no difference that matters"),
        ("identical", "the same answers"),
        ("undecided", "undecided (+1.2 points)"),
    ],
)
def test_a_pair_in_words(verdict, words):
    assert two_runs.in_words(difference(verdict=verdict)) == words


def test_compare_of_two_runs_says_b_against_a_first(tmp_path, monkeypatch):
    from harness.stages import score

    monkeypatch.chdir(tmp_path)
    asked = questions(n_groups=20)
    for name, answer in (("a", lambda q: "nothing"), ("b", lambda q: q.answer)):
        score.run(make(tmp_path, {"base": lambda q: "nothing", "adapter": answer}, name=name, asked=asked), CONFIG)
    quick = ["--set", "compare.resamples=200"]
    lines = CliRunner().invoke(app, ["compare", "a", "b", *quick]).stdout.splitlines()
    assert lines[0].startswith("b against a: better by 100 points (Adapter, exact match; difference +100 points")
    printed = CliRunner().invoke(app, ["compare", "a", "b", "--markdown", *quick]).stdout.splitlines()
    assert printed[0] == f"**{lines[0].replace('|', '')}**" and len({line.count("|") for line in printed[2:]}) == 1
    value = json.loads(CliRunner().invoke(app, ["compare", "a", "b", "--json", *quick]).stdout)
    assert value["summary"] == lines[0] and {pair["left"] for pair in value["pairs"]} == {"b/base", "b/adapter"}
    assert len(value["pairs"]) > len(printed[4:]), "every metric in JSON, the one that decides in the table"
    refused = CliRunner().invoke(app, ["compare", "--json"])
    assert refused.exit_code == 2 and "are for two runs" in refused.stderr
    assert all(p.left.startswith("b/") for p in compare_runs(storage.RunFolder("b"), storage.RunFolder("a"), CONFIG))


def test_the_list_of_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["runs"]).stdout == "no runs yet: harness run starts one\n"
    write_run(tmp_path, "good", questions=12)
    write_run(tmp_path, "truncated", questions=12).comparison_json.write_text("{")
    (tmp_path / "runs" / "begun").mkdir()
    (tmp_path / "reports" / "good-vs-truncated").mkdir()
    found = {row.run: row for row in runs.rows(tmp_path)}
    assert list(found) == ["begun", "good", "truncated"]
    good = found["good"]
    assert good.stage == "compare" and good.value is not None and good.decision
    assert "truncated/comparison.json" in found["truncated"].problem and found["begun"].stage == ""
    done = CliRunner().invoke(app, ["runs"])
    assert done.exit_code == 0 and "truncated: " in done.stdout
    printed = json.loads(CliRunner().invoke(app, ["runs", "--json"]).stdout)
    assert [row["run"] for row in printed] == list(found) and printed[1]["value"] == pytest.approx(good.value)


def test_history_joins_only_equal_questions(tmp_path):
    with pytest.raises(ArtifactError, match="there is no history yet"):
        history.run(tmp_path)
    for name, ended in (("one", "2026-01-01"), ("two", "2026-02-01"), ("three", "2026-03-01")):
        run = write_run(tmp_path, name, questions=20)
        found = storage.read_record(run.comparison_json, Comparison)
        changes: dict = {"provenance": {"stages": {"score": {"ended": f"{ended}T00:00:00+00:00"}}}}
        storage.write_json(
            run.comparison_json, found.model_copy(update=changes | ({"split_id": "x" * 64} if name == "three" else {}))
        )
    page = history.run(tmp_path).read_text()
    assert page.index("2026-01-01") < page.index("2026-02-01") < page.index("2026-03-01")
    assert "<script" not in page and page.count("not comparable with the one before") == 7
    figure = page[page.index("<h3><bdi>Adapter") :].partition("</svg>")[0]
    joined = [line.count(",") for line in figure.split('points="')[1:] for line in [line.partition('"')[0]]]
    assert joined == [2, 1], "one line over the two that are comparable, and a single point"


def test_history_reads_the_baselines_from_git(tmp_path):
    root = history.Path(__file__).parent.parent
    text = (root / "reports" / "baseline.json").read_text()
    (tmp_path / "reports").mkdir()

    def git(*arguments: str) -> None:
        who = ["-c", "user.name=n", "-c", "user.email=e@example.invalid"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    for at, content in enumerate((text, '{"schema_version": 0}', text + " ")):
        (tmp_path / "reports" / "baseline.json").write_text(content)
        git("add", "-A")
        git("commit", "-qm", str(at))
    with messages() as logged:
        page = history.run(tmp_path).read_text()
    assert page.count("<bdi>baseline ") == 2 * sum(len(v["means"]) for v in json.loads(text)["variants"].values())
    assert any("is of another version of the harness, and is left out" in line for line in logged)


def test_the_card_has_intervals_hashes_and_valid_metadata(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path, questions=40, hostile=True)
    report.set_title(run, "Ours <script>", "A note")
    done = CliRunner().invoke(app, ["card", "--run", "demo"])
    assert done.exit_code == 0 and done.stdout == "card: reports/demo/card.md\n", done.output
    text = run.card_md.read_text()
    card = huggingface_hub.ModelCard(text)
    comparison = storage.read_record(run.comparison_json, Comparison)
    assert card.data.model_name == "Ours <script>" and card.data.get("base_model") is None, "a folder is no Hub model"
    found = {entry.metric_type: entry for entry in card.data.eval_results}
    measured = comparison.variants["adapter"].metrics["exact_match_normalized"]
    assert set(found) == set(comparison.variants["adapter"].metrics)
    entry = found["exact_match_normalized"]
    assert entry.metric_args["signature"] == measured.signature and len(entry.metric_args["ci95"]) == 2
    assert entry.dataset_revision == comparison.split_id
    body = text.partition("\n---\n")[2]
    assert "<script>" not in body and "## Limits" in body and comparison.split_id in body


def test_nothing_is_uploaded_unless_asked_and_a_refusal_is_one_line(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, questions=12)
    asked: list[str] = []

    def refuse(self, repository, **_):
        asked.append(repository)
        raise OSError("no network\nmore")

    monkeypatch.setattr(huggingface_hub.ModelCard, "validate", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub.ModelCard, "push_to_hub", refuse)
    assert CliRunner().invoke(app, ["card", "--run", "demo"]).exit_code == 0 and not asked
    done = CliRunner().invoke(app, ["card", "--run", "demo", "--push", "me/model"])
    assert done.exit_code == 2 and asked == ["me/model"]
    assert "the card was not uploaded to me/model: no network; check the name" in done.stderr
