"""Which of the usual faults makes a server's answers differ: a pure function of its reports, its replies, and the expected replies.

A fault is named by an experiment where one is possible. If greedy parameters remove the difference, the server's defaults are at fault; if the prompt
as token ids does, its template or tokenizer; if nothing does, the file or its end tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.records.verification import Culprit
from harness.verification.evidence import Expected, Observed, Reply, ServerFacts, Way

CHANCE = 0.02
"""Share of answers that may differ by rounding alone: another number of sequences or another build of llama.cpp breaks near-ties differently."""
UNLIKELY = 0.01
"""Probability below which the number of different answers is not attributed to chance."""
MOST_KL = 0.01
"""Nats, on average: the same file gives 1e-6 to 1e-4 in another build of llama.cpp (docs/gguf.md), a smaller type of the file more than this."""
CONTEXT_WORDS = ("context", "too long", "maximum length", "max_model_len")
Pairs = Sequence[tuple[Expected, Observed]]


def diagnose(
    facts: ServerFacts,
    pairs: Pairs,
    *,
    bos: int | None,
    max_new_tokens: int,
    flip_rate: float = 0.0,
    mean_kl: float | None = None,
    template: str | None = None,
    decode: Callable[[list[int]], str] = str,
) -> list[Culprit]:
    """What is wrong with a server; empty: nothing was found.

    Args:
        pairs: for each question our answer and the server's.
        bos: the tokenizer's BOS; None: it has none.
        flip_rate: share of our own answers that change with the batch size.
        mean_kl: divergence of the server's distributions from ours, nats; None: not measured.
        template: Ollama's template as the Modelfile has it.
        decode: token ids -> text, for messages.
    """
    prompts = _prompts(facts, pairs, bos, template, decode)
    found = [
        _context(facts, pairs, max_new_tokens),
        *prompts,
        _stop(pairs, prompts_differ=bool(prompts)),
        _sampling(facts, pairs),
    ]
    culprits = [culprit for culprit in found if culprit is not None]
    if not any(c.code in ("context", "bos", "template", "stop") for c in culprits):
        culprits += _weights(pairs, flip_rate, mean_kl)
    return culprits


def is_same(reply: Reply, expected: Expected) -> bool:
    """Whether a reply is our answer, but for the white space around it and an unfinished character at its end."""
    return reply.finish != "error" and plain_text(reply.text) == plain_text(expected.text)


def plain_text(text: str) -> str:
    """A text without the characters that servers trim or withhold."""
    return text.strip().rstrip("\ufffd").strip()


def too_many(different: int, n: int, rate: float) -> bool:
    """Whether so many different answers of n exceed chance: P(X >= different) < UNLIKELY, X binomial with n and max(rate, CHANCE)."""
    p = min(max(rate, CHANCE), 1.0)
    tail = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(different, n + 1))
    return different > 0 and tail < UNLIKELY


# ----------------------------------------------------------------------------------------------------------------- context


def _context(facts: ServerFacts, pairs: Pairs, max_new_tokens: int) -> Culprit | None:
    longest = max((len(expected.prompt_ids) for expected, _ in pairs), default=0) + max_new_tokens
    hint = f"give it {longest} tokens for each request (llama-server --ctx-size, times --parallel; Ollama num_ctx; vLLM --max-model-len)"
    if facts.context is not None and facts.context < longest:
        short = sum(len(expected.prompt_ids) + max_new_tokens > facts.context for expected, _ in pairs)
        message = f"a request may take {facts.context} tokens, and the longest prompt with its answer {longest}"
        return Culprit(code="context", message=message, hint=hint, questions=short)
    refused = [reply.error for reply in _plain(pairs) if any(word in reply.error.lower() for word in CONTEXT_WORDS)]
    if refused:
        return Culprit(
            code="context", message=f"the server refuses prompts: {refused[0]}", hint=hint, questions=len(refused)
        )
    cut = [r for r in _plain(pairs) if r.finish == "length" and r.tokens is not None and r.tokens < max_new_tokens]
    if cut:
        message = f"answers are cut after {min(r.tokens or 0 for r in cut)} of {max_new_tokens} tokens"
        return Culprit(code="context", message=message, hint=f"{hint}, or lift its own limit", questions=len(cut))
    return None


# ----------------------------------------------------------------------------------------------------------------- prompts


def _prompts(
    facts: ServerFacts, pairs: Pairs, bos: int | None, template: str | None, decode: Callable[[list[int]], str]
) -> list[Culprit]:
    """Whether the server's prompts differ from ours, by their ids, or else by their number of tokens."""
    by_ids = [(e, o.prompt_ids) for e, o in pairs if o.prompt_ids is not None]
    if by_ids:
        return _prompts_by_ids(by_ids, bos, decode)
    more = {way: _more_tokens(pairs, way) for way in ("plain", "exact")}
    if not any(more["plain"]):
        return _template_by_text(facts, pairs, template)
    counts = set(more["plain"])
    # Ollama's raw mode leaves its template out: a difference that remains is not the template's fault.
    if counts in ({1}, {-1}) and (facts.kind != "Ollama" or not more["exact"] or set(more["exact"]) == counts):
        return [_bos("double" if counts == {1} else "missing", len(pairs), "by the number of prompt tokens")]
    message = f"prompts have {min(counts):+d} to {max(counts):+d} tokens against ours"
    return [_template(message, sum(map(bool, more["plain"])))]


def _prompts_by_ids(
    by_ids: Sequence[tuple[Expected, list[int]]], bos: int | None, decode: Callable[[list[int]], str]
) -> list[Culprit]:
    kinds = [prompt_fault(e.prompt_ids, ids, bos) for e, ids in by_ids]
    found = [
        _bos(kind, kinds.count(kind), f"the prompt begins {decode(_first(by_ids, kinds, kind)[:4])!r}")
        for kind in ("double", "added", "missing")
        if kind in kinds
    ]
    if "template" in kinds:
        expected, ids = by_ids[kinds.index("template")]
        at = next((i for i, (a, b) in enumerate(zip(expected.prompt_ids, ids, strict=False)) if a != b), 0)
        ours, theirs = decode(expected.prompt_ids[at : at + 8]), decode(ids[at : at + 8])
        found.append(_template(f"from token {at} on it reads {theirs!r}, not {ours!r}", kinds.count("template")))
    return found


def _first(by_ids: Sequence[tuple[Expected, list[int]]], kinds: Sequence[str | None], kind: str) -> list[int]:
    return by_ids[list(kinds).index(kind)][1]


def prompt_fault(ours: Sequence[int], theirs: Sequence[int], bos: int | None) -> str | None:
    """None for equal prompts; `double`, `added` or `missing` for a wrong number of BOS; `template` for any other difference."""
    ours, theirs = list(ours), list(theirs)
    if ours == theirs:
        return None
    if bos is not None and theirs == [bos, *ours]:
        return "double" if ours[:1] == [bos] else "added"
    return "missing" if bos is not None and ours == [bos, *theirs] else "template"


def _bos(kind: str, questions: int, shown: str) -> Culprit:
    what = {
        "double": "prompts begin with one BOS too many",
        "added": "prompts start with a BOS that they do not have in training",
        "missing": "the BOS is missing in front of prompts",
    }[kind]
    hint = {
        "double": "send the text without BOS, or take it out of the template: the server adds one",
        "added": "export again, or set tokenizer.ggml.add_bos_token in the GGUF file to false",
        "missing": "export again, or set tokenizer.ggml.add_bos_token in the GGUF file to true",
    }[kind]
    return Culprit(code="bos", message=f"{what} ({shown})", hint=hint, questions=questions)


def _template(message: str, questions: int) -> Culprit:
    hint = "serve with the template of training: the file's own (--jinja), or the Modelfile beside the file"
    return Culprit(code="template", message=message, hint=hint, questions=questions)


def _template_by_text(facts: ServerFacts, pairs: Pairs, template: str | None) -> list[Culprit]:
    """Ollama's template against the Modelfile's, where the answers differ."""
    if template is None or facts.template is None or facts.template.strip() == template.strip():
        return []
    different = sum(not is_same(reply, e) for (e, _), reply in zip(pairs, _plain(pairs), strict=True))
    return [_template("Ollama's template is not the Modelfile's", different)] if different else []


def _more_tokens(pairs: Pairs, way: Way) -> list[int]:
    """Prompt tokens by the server's count beyond ours."""
    replies = [(e, o.replies.get(way)) for e, o in pairs]
    return [r.prompt_tokens - len(e.prompt_ids) for e, r in replies if r is not None and r.prompt_tokens is not None]


# -------------------------------------------------------------------------------------------------------------- the answers


def _stop(pairs: Pairs, *, prompts_differ: bool) -> Culprit | None:
    """Answers that continue past our end, or end before it, without sampling."""
    on = early = 0
    shown = ""
    for expected, observed in pairs:
        ways: list[Way] = ["exact"] if prompts_differ else ["greedy", "exact"]
        replies = [r for way in ways if (r := observed.replies.get(way)) is not None and r.finish != "error"]
        if behind := [r for r in replies if _runs_on(r, expected)]:
            on += 1
            shown = shown or plain_text(behind[0].text)[len(plain_text(expected.text)) :][:40]
        early += any(_stops_early(r, expected) for r in replies)
    if on:
        message = f"answers run on behind their end token, with {shown!r}"
        hint = "name the end token as a stop (export writes it into the file and the Modelfile), and do not ignore it"
        return Culprit(code="stop", message=message, hint=hint, questions=on)
    if early:
        hint = "take the stop text that ends them out of the server's settings or the Modelfile"
        return Culprit(code="stop", message="answers are stopped before their end", hint=hint, questions=early)
    return None


def _runs_on(reply: Reply, expected: Expected) -> bool:
    theirs, ours = plain_text(reply.text), plain_text(expected.text)
    return expected.is_whole and bool(ours) and theirs != ours and theirs.startswith(ours)


def _stops_early(reply: Reply, expected: Expected) -> bool:
    theirs, ours = plain_text(reply.text), plain_text(expected.text)
    return reply.finish == "stop" and theirs != ours and ours.startswith(theirs)


def _sampling(facts: ServerFacts, pairs: Pairs) -> Culprit | None:
    hint = "start it with --temp 0 --top-k 1 --repeat-penalty 1, use the Modelfile beside the file, or send temperature 0 with each request"
    if named := not_greedy(facts.defaults):
        message = f"without parameters in a request the server answers with {named}"
        return Culprit(code="sampling", message=message, hint=hint, questions=len(pairs))
    repaired = sum(
        (greedy := o.replies.get("greedy")) is not None and is_same(greedy, e) and not is_same(o.replies["plain"], e)
        for e, o in pairs
    )
    if repaired:
        message = "its defaults change answers: they are ours once greedy parameters are sent"
        return Culprit(code="sampling", message=message, hint=hint, questions=repaired)
    return None


def not_greedy(defaults: Mapping[str, Any]) -> str:
    """The sampling parameters that make answers other than the most probable ones, in words; empty: none."""

    def value(name: str, neutral: float) -> float:
        found = defaults.get(name, neutral)
        return float(found) if isinstance(found, int | float) else neutral

    found = []
    if value("temperature", 0) > 0 and value("top_k", 0) != 1:
        found.append(f"temperature {value('temperature', 0):.3g}")
    if abs(value("repeat_penalty", 1) - 1) > 1e-6 and value("repeat_last_n", 64) != 0:
        found.append(f"repeat_penalty {value('repeat_penalty', 1):.3g}")
    for name in ("presence_penalty", "frequency_penalty", "dry_multiplier"):
        if value(name, 0) != 0:
            found.append(f"{name} {value(name, 0):.3g}")
    return ", ".join(found)


def _weights(pairs: Pairs, flip_rate: float, mean_kl: float | None) -> list[Culprit]:
    """Differences in answers or distributions that no other fault explains."""
    last = [(e, o.replies.get("exact") or o.replies.get("greedy") or o.replies["plain"]) for e, o in pairs]
    different = sum(r.finish != "error" and not is_same(r, e) for e, r in last)
    if too_many(different, len(pairs), flip_rate):
        message = f"{different} of {len(pairs)} answers differ with the same prompts and greedy parameters"
    elif mean_kl is not None and mean_kl > MOST_KL:
        message = f"the next token's probabilities differ with the same prompts, by {mean_kl:.2g} nats on average"
    else:
        return []
    hint = "check that it serves this very file, of this type, without a further adapter or a quantised cache"
    return [Culprit(code="weights", message=message, hint=hint, questions=different)]


def _plain(pairs: Pairs) -> list[Reply]:
    return [observed.replies["plain"] for _, observed in pairs]
