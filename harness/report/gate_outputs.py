"""The gate's decision for people and machines: lines, gate.md, junit.xml, and annotations of a code host.

Questions and answers are untrusted: in Markdown they are put in code spans, from XML the characters that XML forbids are removed, in annotations line breaks are escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from harness.records import GateCheck, GateResult, GateVerdict
from harness.registry import metric_label
from harness.report.headline import GATE_WORDS, percent, points
from harness.report.page import MAX_MARKDOWN, code, plain
from harness.variants import label as variant_label

WORST_FIRST: tuple[GateVerdict, ...] = ("incomparable", "regression", "inconclusive", "improvement", "pass")
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot represent (its production 2, Char)."""
MAX_ANNOTATIONS = 10
"""Most annotations of each level: the code host shows no more for one step."""
MAX_CHANGES = 30


def lines(result: GateResult) -> Iterator[str]:
    """The result for a terminal: what did not pass or got better, then the verdict."""
    for check in _sorted(result):
        if check.verdict != "pass":
            yield f"{check.verdict}: {check.name}: {check.message}"
    passed = sum(check.verdict == "pass" for check in result.checks)
    if result.checks:
        yield f"{passed} of {len(result.checks)} checks passed"
    yield from (f"differs: {line}" for line in result.differs)
    yield from (f"note: {line}" for line in result.notes)
    if result.verdict == "inconclusive":
        yield f"{'error' if result.exit_code else 'warning'}: a loss of the margin cannot be excluded; more held-out questions would decide"
    yield f"gate: {result.verdict}: {result.reason}"
    if result.hint:
        yield result.hint


def markdown(result: GateResult) -> str:
    """`gate.md`: for a job's summary or a comment on a pull request."""
    baseline = f"Baseline: run {code(result.baseline_run)} in {code(result.baseline)}"
    commit = f", commit {code(result.baseline_commit[:12])}" if result.baseline_commit else ""
    parts = [
        f"## Quality gate: {GATE_WORDS[result.verdict]}",
        plain(result.reason),
        f"Run {code(result.run)}. {baseline}{commit}.",
    ]
    if result.hint:
        sentence, _, command = result.hint.rpartition(": ")
        parts.append(f"{sentence[0].upper()}{sentence[1:]}:\n\n    {command}")
    if result.differs:
        parts.append("### What differs\n\n" + "\n".join(f"- {plain(line)}" for line in result.differs))
    remarkable = [check for check in _sorted(result) if check.verdict != "pass"]
    if remarkable:
        parts.append("### Checks that did not simply pass\n\n" + _table(remarkable))
    if result.examples:
        first = result.examples[0]
        head = f"### Where {plain(variant_label(first.variant))} lost most, {plain(metric_label(first.metric))}"
        parts.append(
            head
            + "\n\n"
            + "\n".join(
                f"{number}. {code(e.question)}  \n   expected {code(e.expected)}  \n   answered {code(e.answer)}"
                f"  \n   {percent(e.before)} before, {percent(e.after)} now"
                for number, e in enumerate(result.examples, 1)
            )
        )
    if result.changes:
        more = [f"- and {len(result.changes) - MAX_CHANGES} more"] if len(result.changes) > MAX_CHANGES else []
        listed = [f"- {plain(line)}" for line in result.changes[:MAX_CHANGES]]
        parts.append("### What else changed since the baseline\n\n" + "\n".join(listed + more))
    if result.notes:
        parts.append("\n".join(f"Note: {plain(note)}." for note in result.notes))
    passed = [check for check in result.checks if check.verdict == "pass"]
    if passed:
        parts.append(f"<details><summary>{len(passed)} checks passed</summary>\n\n{_table(passed)}\n\n</details>")
    text = "\n\n".join(parts) + "\n"
    # Only the list of passed checks can be that long, and it comes last.
    return text if len(text) <= MAX_MARKDOWN else "\n\n".join(parts[:-1])[:MAX_MARKDOWN] + "\n"


def _table(checks: list[GateCheck]) -> str:
    rows = [f"| {check.verdict} | {plain(check.name)} | {_delta(check)} | {plain(check.message)} |" for check in checks]
    return "\n".join(["| verdict | check | change | numbers |", "| --- | --- | ---: | --- |", *rows])


def _delta(check: GateCheck) -> str:
    return "" if check.delta is None else points(check.delta)


def junit(result: GateResult) -> str:
    """`junit.xml`: a test case for each check, its message the numbers. Incomparable is an error, inconclusive is skipped (a failure if strict)."""
    cases = [(check.name, check.verdict, check.message) for check in result.checks]
    if result.verdict == "incomparable":
        cases.append(("comparable", "incomparable", f"{result.reason} {result.hint}".strip()))
    kinds = {
        "regression": "failure",
        "incomparable": "error",
        "inconclusive": "failure" if result.strict else "skipped",
    }
    tags = [kinds.get(verdict) for _, verdict, _ in cases]
    counts = {f"{tag}s" if tag != "skipped" else tag: str(tags.count(tag)) for tag in ("failure", "error", "skipped")}
    root = ElementTree.Element("testsuites", {"name": "quality gate", "tests": str(len(cases)), **counts})
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        {"name": _xml(f"gate {result.run}"), "tests": str(len(cases)), **counts, "time": f"{result.seconds:.2f}"},
    )
    for (name, verdict, message), tag in zip(cases, tags, strict=True):
        kind, _, what = name.partition("/")
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": _xml(f"gate.{kind}"), "name": _xml(what or kind), "time": "0"}
        )
        if tag:
            ElementTree.SubElement(
                case, tag, {"message": _xml(message), **({} if tag == "skipped" else {"type": verdict})}
            )
        else:
            ElementTree.SubElement(case, "system-out").text = _xml(f"{verdict}: {message}")
    if result.examples:
        ElementTree.SubElement(suite, "system-out").text = _xml(
            "\n".join(f"{e.question}\n  expected: {e.expected}\n  answered: {e.answer}" for e in result.examples)
        )
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _xml(text: str) -> str:
    return NOT_XML.sub("", text)


def workflow_commands(result: GateResult) -> Iterator[str]:
    """Workflow commands that put errors and warnings on the pull request. Source: GitHub, "Workflow commands for GitHub Actions"."""
    if result.verdict == "incomparable":
        yield _annotation("error", "quality gate: incomparable", f"{result.reason} {result.hint}")
    open_level = "error" if result.strict else "warning"
    for verdict, level in (("regression", "error"), ("inconclusive", open_level), ("improvement", "notice")):
        for check in [check for check in _sorted(result) if check.verdict == verdict][:MAX_ANNOTATIONS]:
            yield _annotation(level, f"quality gate: {verdict}: {check.name}", check.message)


def _annotation(level: str, title: str, message: str) -> str:
    return f"::{level} title={_escaped(title).replace(':', '%3A').replace(',', '%2C')}::{_escaped(message)}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _sorted(result: GateResult) -> list[GateCheck]:
    """The worst verdict first, and the largest loss first within it."""
    return sorted(result.checks, key=lambda check: (WORST_FIRST.index(check.verdict), check.delta or 0.0))
