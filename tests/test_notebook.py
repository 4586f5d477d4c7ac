"""The notebook that users open: it runs, and its two forms are the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import small_run

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "evaluate_your_adapter.ipynb"
PROJECT = NOTEBOOK.parent.parent


def test_both_forms_are_the_same() -> None:
    jupytext = pytest.importorskip("jupytext")
    text, cells = (jupytext.read(NOTEBOOK.with_suffix(ending)).cells for ending in (".py", ".ipynb"))
    assert [(c.cell_type, c.source) for c in text] == [(c.cell_type, c.source) for c in cells]
    assert not any(c.get("outputs") for c in cells), "outputs are not committed"


@pytest.mark.slow
def test_the_notebook_judges_an_adapter_of_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    small_run.save_adapter(tmp_path / "lora", PROJECT / "data" / "tiny-llama3", std=0.2)
    rows = [{"id": f"q{i}", "question": q, "answer": a} for i, (q, a) in enumerate(small_run.QUESTIONS)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["device=cpu", "predict.max_new_tokens=8", "predict.fidelity_questions=0", "compare.resamples=100"]
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (chosen,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    chosen.source += f"\nADAPTER, SETTINGS = 'lora', {settings}"
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [str(o["data"]) for c in notebook.cells for o in c.get("outputs", []) if "data" in o]
    assert any("text/html" in text and "mine" in text for text in shown)
    assert (tmp_path / "reports" / "notebook" / "report.html").exists()
