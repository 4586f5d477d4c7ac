"""The usual names of columns, in the languages that files are made in; names are compared without case, spaces and punctuation at their ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

QUESTION = """
    question query q prompt instruction input problem question_text user human questions inputs frage fragen
    pregunta pergunta domanda vraag pytanie soru вопрос ερώτηση प्रश्न सवाल প্রশ্ন கேள்வி ప్రశ్న سوال سؤال السؤال
    שאלה คำถาม câu_hỏi pertanyaan 问题 問題 提问 質問 質問文 질문
""".split()
ANSWER = """
    answer answers a response completion output reply solution answer_text target ground_truth expected_answer
    expected_output gold assistant outputs targets responses antwort antworten respuesta réponse reponse resposta
    risposta antwoord odpowiedź cevap yanıt ответ απάντηση उत्तर जवाब উত্তর பதில் సమాధానం جواب إجابة الإجابة
    الجواب תשובה คำตอบ câu_trả_lời trả_lời jawaban 答案 回答 答え 解答 답변 답 대답
""".split()
ANSWER_OF_LAST_RESORT = """
    correct_answer best_answer gold_answer final_answer reference_answer golden_answer golden_answers
    correct_answers gold_answers reference_answers reference references expected long_answer short_answer
    short_answers chosen label
""".split()
"""Fallback names, if a file has no column with a usual name."""
CONTEXT = ("context", "passage", "paragraph", "background", "document", "contexts", "contexto", "contexte", "kontext")
SYSTEM = ("system", "system_prompt", "system_message")
CHOICES = ("choices", "options", "distractors")

SPACES = re.compile(r"[\s_\-]+")
ENDS = ":：?？*#.\"'` \t\ufeff\u200b"


@lru_cache(maxsize=4096)
def fold_name(name: str) -> str:
    """A column's name as it is compared: "Question Text:" is "question_text"."""
    return SPACES.sub("_", name.strip().strip(ENDS).strip().casefold()) or name.strip()


def fold(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row by folded names; of two names that fold to one, the first."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        found.setdefault(fold_name(key), value)
    return found


def are_sentences(found: Iterable[str]) -> bool:
    """Whether the column names are really texts, so that the file has no header."""
    return any(len(name.split()) > 3 or name.rstrip().endswith(("?", "？", "؟", "।")) for name in found)
