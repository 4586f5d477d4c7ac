"""Untrusted content is in the report as text only, in HTML and in Markdown."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from harness import storage
from harness.config import Config
from harness.records import PromptForm
from harness.report import page as rendering
from harness.stages import report
from tests.helpers.report_fixture import HOSTILE, Outline, edit, write_run


def test_policy_names_the_hash_of_each_script(reported):
    page = reported.report_html.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy and "unsafe" not in policy[1] and policy[1].startswith("default-src 'none'; script-src 'sha256-")
    script = re.search(r"<script>(.*?)</script>", page, re.S)
    packed = re.search(r'id="plotly">(.*?)</script>', page, re.S)
    style = re.search(r"<style>(.*?)</style>", page, re.S)
    assert script and packed and style
    for text in (script[1], zlib.decompress(base64.b64decode(packed[1])).decode(), style[1]):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy[1]
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)


def test_hostile_text_stays_text(tmp_path):
    run = write_run(tmp_path, questions=27, hostile=True)
    value = json.loads(run.comparison_json.read_text())
    value["alarms"] = [{"code": text[:40], "variant": None, "message": text} for text in HOSTILE]
    value["provenance"]["config"] = {HOSTILE[0]: HOSTILE[1], "nested": {"key": HOSTILE[4]}}
    value["fidelity"] = [{"left": HOSTILE[0], "right": HOSTILE[2], "identical": 0.5, "token_agreement": 0.5, "n": 2}]
    edit(run, **value)
    page = report.run(run, Config()).read_text()
    outline = Outline(page)
    assert outline.tags.count("script") == 5 and outline.tags.count("img") == 0
    assert not [name for name, _ in outline.attributes if name.startswith("on") or name == "style"]
    assert not [value for _, value in outline.attributes if value and value.lower().startswith("javascript:")]
    assert "\u202e" not in page and "\u2028" not in page and "\x00" not in page
    assert "⟨U+202E⟩" in page and rendering.visible("\ud800") == "⟨U+D800⟩"
    json.loads(re.search(r'id="figures">(.*?)</script>', page, re.S)[1])  # type: ignore[index]


@given(st.text(st.characters(exclude_categories=[]), max_size=60))
def test_code_spans_hold_any_text(text):
    span = rendering.code(text)
    if not text.split():
        assert span == "(empty)"
        return
    fence = re.match("`+", span)
    assert fence and span.endswith(fence[0]) and "\n" not in span
    inner = span[len(fence[0]) : -len(fence[0])]
    assert fence[0] not in re.findall("`+", inner)
    assert not rendering.INVISIBLE.search(span)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_plain_markdown_holds_no_markup(text):
    shown = rendering.plain(text)
    assert (
        not re.search(r"(?<!\\)(\\\\)*[`*_\[\]|#~]", shown.replace("&#", ""))
        and not set("<>@") & set(shown)
        and "://" not in shown
    )


@given(
    st.recursive(
        st.text(max_size=20) | st.none(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    )
)
def test_islands_cannot_be_closed_and_lose_nothing(value):
    island = str(rendering._island(value))
    assert island.isascii() and not set("<>&") & set(island)
    assert json.loads(island) == value


def test_markdown_stays_under_the_limit(tmp_path):
    run = write_run(tmp_path, questions=40, hostile=True)
    edit(run, alarms=[{"code": "runaway", "variant": None, "message": "x" * 900}] * 100)
    report.run(run, Config())
    text = run.report_md.read_text()
    assert len(text) < 65_000 and text.endswith("Cut: the whole report is in report.html.\n")


def test_markdown_of_long_answers_is_short_and_whole(tmp_path):
    run = write_run(tmp_path, questions=400)
    for variant in ("base", "adapter", "merged_16bit", "gguf_q4_k_m"):
        lines = [json.loads(line) for line in run.prediction(variant)[0].read_text().splitlines()]
        storage.write_jsonl(
            run.prediction(variant)[0], [line | {"text": f"`{line['text']}` " + "word | " * 3000} for line in lines]
        )
    report.run(run, Config())
    text = run.report_md.read_text()
    assert len(text) < 65_000 and text.count("<details>") == text.count("</details>") >= 1
    assert text.startswith("## Ship: yes, as ") and "The whole report is report.html." in text and "21,0" in text, (
        "the length of what was cut"
    )


def test_markdown_has_verdict_table_alarms_and_folded_regressions(reported):
    text = reported.report_md.read_text()
    assert text.count("<details>") == text.count("</details>") >= 1
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 6 + 2 + 7 + 2 and {row.count("|") for row in rows} == {7}
    assert sum("**ship this**" in row for row in rows) == 1
    assert "alarm" in text


def test_the_first_prompt_is_shown_as_text(reported):
    form = PromptForm(
        format="chat",
        template=None,
        chat_template_sha256="0",
        system=None,
        enable_thinking=None,
        few_shot=0,
        opening="",
        first="<|im_start|>user\n<script>alert(1)</script>",
        first_tokens=12,
    )
    inputs = replace(report.read(reported), prompts={"base": form, "adapter": form})
    html = rendering.html(inputs, [], [], {}, {}, "fingerprint")
    assert html.count("How the first question was put") == 1
    assert "chat template, 12 tokens</summary>" in html
    assert "&lt;|im_start|&gt;user\n&lt;script&gt;alert(1)&lt;/script&gt;" in html
