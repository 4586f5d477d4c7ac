"""Results as pandas tables, and as files for a spreadsheet. pandas is imported only here, and only when a table is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import storage
from harness.errors import ConfigError
from harness.records import Comparison, HistoryPoint, Prediction, PredictionSet, Question, Score, ScoreSet
from harness.storage import RunFolder

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("csv", "parquet", "xlsx")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""First characters of a cell that a spreadsheet would run as a formula (OWASP, CSV Injection)."""


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise ConfigError("tables need pandas", "pip install 'qa-harness[tables]'") from None
    return pandas


def _frame(rows: list[dict[str, Any]], types: dict[str, str]) -> pd.DataFrame:
    frame = _pandas().DataFrame(rows, columns=list(types))
    return frame.astype(types)


def questions(run: RunFolder) -> pd.DataFrame:
    """One row a question: `id`, `question`, `answer` (the reference), `references` (further ones, a list), `group`, `kind`, `nearest_train` (0..1)."""
    types = {
        "id": "string",
        "question": "string",
        "answer": "string",
        "references": "object",
        "group": "string",
        "kind": "string",
        "nearest_train": "Float64",
    }
    rows = [q.model_dump() for q in storage.read_records(run.heldout_jsonl, Question)]
    return _frame([{name: row[name] for name in types} for row in rows], types)


def answers(run: RunFolder) -> pd.DataFrame:
    """One row a variant and question: `variant`, `id`, `text`, `finish_reason`, `tokens` (generated), `seconds`, `error`."""
    types = {
        "variant": "string",
        "id": "string",
        "text": "string",
        "finish_reason": "string",
        "tokens": "Int64",
        "seconds": "float64",
        "error": "string",
    }
    rows = []
    for variant in storage.read_record(run.predict_json, PredictionSet).variants:
        for p in storage.iter_records(run.prediction(variant)[0], Prediction):
            tokens = p.tokens if p.tokens is not None else len(p.answer_ids) or None
            rows.append({**p.model_dump(include=set(types)), "variant": variant, "tokens": tokens})
    return _frame(rows, types)


def scores(run: RunFolder) -> pd.DataFrame:
    """One row a variant, question and metric: `variant`, `id`, `group`, `metric`, `score` (0..1; missing: unscored)."""
    types = {"variant": "string", "id": "string", "group": "string", "metric": "string", "score": "Float64"}
    rows = [
        {"variant": variant, "id": s.id, "group": s.group, "metric": metric, "score": value}
        for variant in storage.read_record(run.score_json, ScoreSet).variants
        for s in storage.iter_records(run.score(variant)[0], Score)
        for metric, value in s.scores.items()
    ]
    return _frame(rows, types)


def pairs(run: RunFolder) -> pd.DataFrame:
    """One row a pair and metric: `left`, `right`, `metric`, `delta` (left minus right, 0..1), `low`, `high` (95% interval), `p`, `verdict`, `n`, `contract`."""
    types = {
        "left": "string",
        "right": "string",
        "metric": "string",
        "delta": "Float64",
        "low": "Float64",
        "high": "Float64",
        "p": "Float64",
        "verdict": "string",
        "n": "int64",
        "contract": "string",
    }
    rows = []
    for pair in storage.read_record(run.comparison_json, Comparison).pairs:
        low, high = pair.ci95 or (None, None)
        rows.append({**pair.model_dump(include=set(types)), "low": low, "high": high})
    return _frame(rows, types)


def history(run: RunFolder) -> pd.DataFrame:
    """One row a logged step of the training: `step`, `epoch`, `seconds`, `loss`, `dev_loss`, `learning_rate`; empty without a training."""
    types = {
        "step": "int64",
        "epoch": "float64",
        "seconds": "float64",
        "loss": "Float64",
        "dev_loss": "Float64",
        "learning_rate": "Float64",
    }
    points = storage.read_records(run.history_jsonl, HistoryPoint) if run.history_jsonl.exists() else []
    rows = [point.model_dump() for point in points]
    return _frame([{name: row.get(name) for name in types} for row in rows], types)


def wide(run: RunFolder) -> pd.DataFrame:
    """One row a question: its texts, then each variant's answer, then each variant's scores, as `variant: metric`."""
    frame = questions(run).drop(columns=["references", "nearest_train"]).set_index("id")
    texts, scored = answers(run), scores(run)
    for variant in texts["variant"].unique():
        frame[variant] = texts[texts["variant"] == variant].set_index("id")["text"]
    for variant in scored["variant"].unique():
        table = scored[scored["variant"] == variant].pivot(index="id", columns="metric", values="score")
        for metric in table.columns:
            frame[f"{variant}: {metric}"] = table[metric]
    return frame.reset_index()


def export_answers(run: RunFolder, format: str, out: Path | None = None) -> Path:
    """Writes `wide` as csv, parquet or xlsx and returns the file's path.

    In csv and xlsx a text that a spreadsheet would run as a formula gets an apostrophe in front: answers are untrusted.

    Raises:
        ConfigError: another format, or a package that it needs is missing.
    """
    if format not in FORMATS:
        raise ConfigError(f"no format {format!r}", f"use one of {', '.join(FORMATS)}")
    frame, path = wide(run), out or run.reports / f"answers.{format}"
    if format != "parquet":
        frame = frame.rename(columns=_guarded)
        for name in frame.columns:
            if str(frame[name].dtype).startswith("string"):
                frame[name] = frame[name].map(_guarded, na_action="ignore")
    try:
        with storage.atomic_path(path) as temporary:
            if format == "csv":
                frame.to_csv(temporary, index=False, encoding="utf-8")
            elif format == "parquet":
                frame.to_parquet(temporary, index=False)
            else:
                with _pandas().ExcelWriter(temporary, engine="openpyxl") as writer:
                    frame.map(_legal).to_excel(writer, index=False)
    except ImportError as error:
        raise ConfigError(f"{format} needs {error.name}", "pip install 'qa-harness[tables]'") from None
    return path


def _guarded(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text


def _legal(value: Any) -> Any:
    """Without the control characters that no spreadsheet file can hold."""
    return "".join(c for c in value if c >= " " or c in "\t\n\r") if isinstance(value, str) else value
