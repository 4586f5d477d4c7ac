"""Conversations: `messages` (role, content) and ShareGPT (from, value); one turn is a row."""

from __future__ import annotations

from typing import Any

from harness.questions.rows import MAX_DEPTH
from harness.storage import strict_json

KEYS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns", "contents", "chosen")
ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "question"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "bard", "bing", "answer"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
SEVERAL, UNANSWERED, UNASKED, TOOLS, UNKNOWN = (
    "of several turns",
    "without an answer",
    "that the assistant begins",
    "with tools or media",
    "with unknown roles",
)


class LeftOut(Exception):
    """A row that is not a question with an answer; its text says why, as in "31 of several turns"."""


def turns_of(value: Any) -> Any:
    """The turns of a conversation that a table holds as JSON text; anything else unchanged."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            return strict_json.loads(value, max_depth=MAX_DEPTH)
        except ValueError:
            return value
    return value


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of turns, or the JSON text of one."""
    value = turns_of(value)
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and bool(_role_key(value[0]))


def convert(turns: Any, *, last: bool) -> dict[str, Any]:
    """`question`, `answer`, and where there are any `system` and `context`, of a list of turns.

    Args:
        last: of several turns take the last, with those before it as context; else they are left out.

    Raises:
        LeftOut: several turns, no answer, or what is not text.
    """
    turns = turns_of(turns)
    if not is_conversation(turns):
        raise LeftOut(UNANSWERED)
    system, spoken = _spoken(turns)
    while spoken and spoken[-1][0] == "user":
        spoken.pop()
    if len(spoken) < 2:
        raise LeftOut(UNANSWERED)
    if spoken[0][0] != "user" and not (last and len(spoken) > 2):
        raise LeftOut(UNASKED)
    values: dict[str, Any] = {"question": spoken[-2][1], "answer": spoken[-1][1]}
    if len(spoken) > 2:
        if not last:
            raise LeftOut(SEVERAL)
        values["context"] = "\n\n".join(f"{role.capitalize()}: {text}" for role, text in spoken[:-2])
    return values | ({"system": system} if system else {})


def _spoken(turns: list[Any]) -> tuple[str, list[tuple[str, str]]]:
    """The system turns' text, and (role, text) of the others; turns of one role in a row are joined."""
    system: list[str] = []
    spoken: list[tuple[str, str]] = []
    for turn in turns:
        if not isinstance(turn, dict) or not (key := _role_key(turn)):
            raise LeftOut(UNKNOWN)
        name = str(turn[key]).strip().casefold()
        if name in ("tool", "function", "observation", "function_call", "ipython") or turn.get("tool_calls"):
            raise LeftOut(TOOLS)
        role, text = ROLES.get(name), _text(turn)
        if role is None:
            raise LeftOut(UNKNOWN)
        if role == "system":
            system.append(text)
        elif spoken and spoken[-1][0] == role:
            spoken[-1] = (role, f"{spoken[-1][1]}\n\n{text}")
        else:
            spoken.append((role, text))
    return "\n\n".join(filter(None, system)), spoken


def _role_key(turn: dict[str, Any]) -> str | None:
    for role, content in (
        ("role", "content"),
        ("from", "value"),
        ("role", "value"),
        ("role", "text"),
        ("role", "parts"),
    ):
        if role in turn and content in turn:
            return role
    return None


def _text(turn: dict[str, Any]) -> str:
    content = next((turn[key] for key in ("content", "value", "text", "parts") if key in turn), None)
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) < len(parts):
            raise LeftOut(TOOLS)
        content = "\n".join(texts)
    if content is None:
        raise LeftOut(TOOLS)
    return content if isinstance(content, str) else str(content)
