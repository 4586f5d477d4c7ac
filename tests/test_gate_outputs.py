"""What the gate writes for people and machines: JUnit, Markdown and workflow commands."""

from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.records import GateCheck, GateExample, GateResult
from harness.report import gate_outputs
from tests.helpers.gated_run import gated, right, right_but

HOSTILE = "</failure>]]> ``` | # @nobody <img src=x> \x00\x1b[31m \ufffe \u202e\n::error::no %0A"


def result_of(message="", text=HOSTILE, **changes):
    check = GateCheck(
        kind="baseline",
        name="baseline/adapter/token_f1",
        variant="adapter",
        verdict="regression",
        message=message,
        limit=0.02,
    )
    example = GateExample(
        id="q", variant="adapter", metric="token_f1", before=1, after=0, question=text, expected=text, answer=text
    )
    fields = {
        "run": "r",
        "verdict": "regression",
        "reason": message or "x",
        "exit_code": 1,
        "strict": False,
        "baseline": "b.json",
        "baseline_run": "old",
        "baseline_commit": None,
        "checks": [check],
        "examples": [example],
        "seconds": 0.0,
    }
    return GateResult.model_validate({**fields, **changes})


@given(st.text(max_size=60))
@settings(max_examples=60)
def test_junit_is_well_formed_whatever_was_answered(text):
    root = ElementTree.fromstring(gate_outputs.junit(result_of(text, text)).encode())
    assert [case.get("name") for case in root.iter("testcase")] == ["adapter/token_f1"]
    assert len(root.findall(".//failure")) == 1


def test_junit_has_a_case_for_each_check(tmp_path):
    result = gated(tmp_path, right, right_but(5))
    suite = ElementTree.fromstring((tmp_path / "reports/new/junit.xml").read_bytes())[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == (str(len(result.checks)), "3", "0"), (
        "no kind lost more than the others"
    )
    cases = {f"{case.get('classname')}.{case.get('name')}": case for case in suite.iter("testcase")}
    assert len(cases) == len(result.checks)
    failure = cases["gate.baseline.adapter/exact_match_normalized"].find("failure")
    assert failure is not None and "100% -> 80%, -20 points" in (failure.get("message") or "")


@pytest.mark.parametrize("strict, tag", [(False, "skipped"), (True, "failure")])
def test_inconclusive_is_skipped_unless_strict(strict, tag):
    check = result_of().checks[0].model_copy(update={"verdict": "inconclusive"})
    root = ElementTree.fromstring(gate_outputs.junit(result_of(checks=[check], verdict="inconclusive", strict=strict)))
    assert len(root.findall(f".//{tag}")) == 1


def test_answers_are_text_in_markdown():
    text = gate_outputs.markdown(result_of("a | b <b>", HOSTILE))
    assert "a \\| b &lt;b&gt;" in text
    assert not any(line.startswith(("::", "#  @", "<img")) for line in text.splitlines())
    answered = next(line for line in text.splitlines() if "answered" in line)
    assert answered.count("````") == 2 and "\x1b" not in text and "\u202e" not in text


def test_markdown_fits_a_comment():
    many = [
        result_of().checks[0].model_copy(update={"name": f"x/{i}", "verdict": "pass", "message": "m" * 90})
        for i in range(600)
    ]
    text = gate_outputs.markdown(result_of(checks=[*result_of().checks, *many]))
    assert len(text) < 65_536 and "Regression" in text and "| pass |" not in text


def test_workflow_commands_are_escaped():
    lines = list(gate_outputs.workflow_commands(result_of("100%\r\n::warning::x")))
    assert lines == ["::error title=quality gate%3A regression%3A baseline/adapter/token_f1::100%25%0D%0A::warning::x"]
    many = [result_of().checks[0].model_copy(update={"name": f"x/{i}"}) for i in range(30)]
    assert len(list(gate_outputs.workflow_commands(result_of(checks=many)))) == 10
