"""predictions, a running server -> verification/<variant>.json: does the server answer as measured, and if not, why not.

The server is asked as its users do, by text or messages, with its own defaults. Questions whose answers differ are asked again with greedy decoding,
and bypassing its template; the change that removes the difference shows the cause (`harness.verification.diagnosis`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from harness import storage, variants
from harness.analysis import fidelity
from harness.analysis.listed_divergence import listed_kl
from harness.config import Config, ExtraVariant
from harness.errors import ConfigError, ModelError, redacted
from harness.formats import modelfile
from harness.prediction import answers
from harness.prediction.asking import Asker
from harness.prediction.fidelity_probe import REFERENCE_TOKENS
from harness.prediction.jobs import base_folder, few_shots
from harness.prompt import Prompter
from harness.questions.asking import system_of
from harness.records import Prediction, PredictionManifest, Question
from harness.records.verification import ServedAnswer, Verification
from harness.storage import RunFolder
from harness.verification import diagnosis
from harness.verification.evidence import WAYS, Expected, Observed, Put, Reply, Server, ServerFacts, Way
from harness.verification.ollama_server import OllamaServer
from harness.verification.openai_server import OpenAIServer

log = logging.getLogger(__name__)

OLLAMA = "ollama:"
ASKED_AGAIN = 8
"""Questions whose answers differ that are asked in the other ways too, at most."""
Api = Literal["completions", "chat"]


@dataclass(frozen=True)
class Chosen:
    """What is asked, and what was answered by the run."""

    variant: str
    manifest: PredictionManifest
    questions: list[Question]
    expected: list[Expected]
    puts: list[Put]
    tokenizer: Any
    is_chat: bool
    stop_ids: tuple[int, ...]
    references: list[list[int]]
    """Reference answers as token ids, up to the length that the fidelity probe measured."""


def run(
    run: RunFolder,
    config: Config,
    server: str,
    *,
    variant: str | None = None,
    n: int = 24,
    model: str | None = None,
    api: Api | None = None,
) -> Verification:
    """Asks `n` held-out questions through a running server and compares with the run's own answers.

    Args:
        server: `http(s)://HOST:PORT`, with or without `/v1`, or `ollama:NAME`.
        variant: whose answers are expected; none: the GGUF file that the server names, else q4_k_m or the last one that answered.
        model: the served model's name, where the server has several.
        api: how a client asks; none: chat where the run's prompts are chats.
    Raises:
        ConfigError: the variant has no answers, or the config's prompt is another than theirs; ModelError: the server cannot be asked at all;
        ArtifactError: no answers.
    """
    # Checked before anything is loaded: a wrong address is the most frequent mistake.
    if not server.startswith((OLLAMA, "http://", "https://")):
        raise ConfigError(f"--server {redacted(server)} is not a server", "give http://HOST:PORT or ollama:NAME")
    chosen = _choose(run, config, variant or _default(run, server, model), n)
    how: Api = api or ("chat" if chosen.is_chat else "completions")
    served = _open(run, config, server, chosen, model, how)
    try:
        facts = served.facts()
        log.info(f"verify: {facts.kind}, {facts.model}, against {len(chosen.puts)} answers of {chosen.variant}")
        observed = list(_observe(served, chosen))
        facts = served.facts()
    finally:
        served.close()
    pairs = list(zip(chosen.expected, observed, strict=True))
    plain = [o.replies["plain"] for o in observed]
    divergences = _divergences(run, chosen, plain)
    culprits = diagnosis.diagnose(
        facts,
        pairs,
        bos=chosen.tokenizer.bos_token_id,
        max_new_tokens=config.predict.max_new_tokens,
        flip_rate=float(chosen.manifest.noise.get("flip_rate", 0.0)),
        mean_kl=float(np.mean(divergences)) if divergences else None,
        template=_ollama_template(run, config) if facts.kind == "Ollama" else None,
        decode=chosen.tokenizer.decode,
    )
    if not culprits and all(reply.finish == "error" for reply in plain):
        raise ModelError(f"answers nothing: {plain[0].error}", "look at the server's own log", file=redacted(server))
    found = _verification(server, facts, how, chosen, plain, culprits, divergences)
    storage.write_json(run.path / "verification" / f"{chosen.variant}.json", found)
    return found


def _verification(
    server: str,
    facts: ServerFacts,
    how: Api,
    chosen: Chosen,
    plain: list[Reply],
    culprits: list[Any],
    divergences: list[float],
) -> Verification:
    same = [diagnosis.is_same(reply, expected) for reply, expected in zip(plain, chosen.expected, strict=True)]
    answered = sum(reply.finish != "error" for reply in plain)
    return Verification(
        variant=chosen.variant,
        server=redacted(server),
        kind=facts.kind,
        model=facts.model,
        api=how,
        context=facts.context,
        defaults={k: v for k, v in facts.defaults.items() if isinstance(v, int | float | str | bool)},
        n=len(plain),
        answered=answered,
        agreement=sum(same) / answered if answered else 0.0,
        mean_kl=float(np.mean(divergences)) if divergences else None,
        max_kl=max(divergences, default=None),
        positions=len(divergences),
        culprits=culprits,
        passed=not culprits,
        answers=[
            ServedAnswer(id=e.id, ours=e.text, plain=reply.text, same=is_same, error=reply.error)
            for e, reply, is_same in zip(chosen.expected, plain, same, strict=True)
        ],
    )


# --------------------------------------------------------------------------------------------------------- what is asked


def _default(run: RunFolder, server: str, model: str | None) -> str:
    """The variant that a server most likely serves, by the names in what the user typed; q4_k_m, which most people serve, otherwise."""
    answered = [n for n in variants.VARIANTS if n != variants.BASE_FEW_SHOT and run.prediction(n)[1].exists()]
    files = [name for name in answered if variants.is_gguf(name)]
    said = f"{server} {model or ''}".lower()
    named = [name for name in files if name.removeprefix(variants.GGUF) in said]
    for name in (*named[:1], "gguf_q4_k_m", *files[-1:], variants.MERGED, *answered[-1:]):
        if name in answered:
            return name
    raise ConfigError("no variant of this run has answered", "run harness predict first")


def _choose(run: RunFolder, config: Config, variant: str, n: int) -> Chosen:
    """The questions, as they can be sent, with our answers to them."""
    known = [
        name for name in variants.VARIANTS if name != variants.BASE_FEW_SHOT
    ]  # its prompts are not those of a server's user
    if variant not in known:
        raise ConfigError(f"no variant {variant!r} of the run's own to verify", f"use one of {', '.join(known)}")
    lines, file = run.prediction(variant)
    manifest = storage.read_record(file, PredictionManifest)
    predictions = {p.id: p for p in storage.read_records(lines, Prediction)}
    questions = storage.read_split(run)[1]
    asked = [questions[i] for i in fidelity.subset([q.id for q in questions], n)]
    asked = [q for q in asked if q.id in predictions and predictions[q.id].finish_reason != "error"]
    if not asked:
        raise ConfigError(f"{variant} answered none of the questions", "run harness predict", file=lines)
    asker = Asker(config, asked, base_folder(config, [variant]), lambda prompt: few_shots(run, prompt, asked))
    asking = asker.by_run
    own = [predictions[q.id] for q in asked]
    if [p.prompt_ids for p in own] != asking.prompts:
        hint = "give the --config and --set that the run was answered with"
        raise ConfigError(f"the prompts of {variant}'s answers are not this config's", hint, file=lines)
    prompter = Prompter(asking.loaded, config.prompt)
    shots = few_shots(run, config.prompt, asked)
    chats: list[Any] = asker.by_text(ExtraVariant(backend="endpoint", path="server", api="chat")).prompts
    return Chosen(
        variant=variant,
        manifest=manifest,
        questions=asked,
        expected=[
            Expected(p.id, p.prompt_ids, p.answer_ids, p.text, p.finish_reason == "stop" and not p.unclosed)
            for p in own
        ],
        puts=[
            Put(q.question, prompter.text(q.question, examples, system_of(q)), messages, p.prompt_ids)
            for q, examples, messages, p in zip(asked, shots, chats, own, strict=True)
        ],
        tokenizer=asking.loaded,
        is_chat=prompter.format == "chat",
        stop_ids=asking.generation.stop_ids,
        references=[prompter.answer_ids(q.answer)[:REFERENCE_TOKENS] for q in asked],
    )


def _open(run: RunFolder, config: Config, server: str, chosen: Chosen, model: str | None, api: Api) -> Server:
    limit = config.predict.max_new_tokens
    if not server.startswith(OLLAMA):
        return OpenAIServer(server, model, api, limit, chosen.stop_ids)
    if config.prompt.few_shot and api == "completions":
        hint = "verify a run without prompt.few_shot, or serve it with llama-server"
        raise ConfigError("Ollama's template holds one question, and prompts have examples", hint)
    file = run.gguf / f"Modelfile-{chosen.variant.removeprefix(variants.GGUF)}"
    return OllamaServer(server.removeprefix(OLLAMA), api, limit, str(file))


def _ollama_template(run: RunFolder, config: Config) -> str | None:
    folder = run.merged_16bit
    if not folder.is_dir():
        return None
    return modelfile.template(modelfile.serving(folder, config.prompt, config.predict.max_new_tokens))


# ------------------------------------------------------------------------------------------------------------ the replies


def _observe(served: Server, chosen: Chosen) -> Iterator[Observed]:
    """Asks each question in the plain way, and up to ASKED_AGAIN of those with a different answer in the other ways too."""
    again = 0
    for i, (put, expected) in enumerate(zip(chosen.puts, chosen.expected, strict=True), 1):
        replies: dict[Way, Reply] = {"plain": _ask(served, put, "plain")}
        if not diagnosis.is_same(replies["plain"], expected) and again < ASKED_AGAIN:
            again += 1
            replies |= {way: _ask(served, put, way) for way in WAYS if way != "plain"}
        yield Observed(replies, served.prompt_ids(put))
        if i % 10 == 0:
            log.info(f"verify: {i}/{len(chosen.puts)}")


def _ask(served: Server, put: Put, way: Way) -> Reply:
    """A reply, without the reasoning in front of it, as our answers are read."""
    reply = served.ask(put, way)
    return replace(reply, text=answers.read(None, [], [], reply.text).text)


def _divergences(run: RunFolder, chosen: Chosen, plain: Sequence[Reply]) -> list[float]:
    """KL at the positions where both sides are known: from the end of the prompt on, as long as the server's tokens equal the reference's."""
    file = run.prediction(chosen.variant)[0].with_suffix(fidelity.SUFFIX)
    if not chosen.manifest.logprobs_sha256 or not file.exists() or not any(reply.listed for reply in plain):
        return []
    measured = _measured(file)
    to_id = _ids_by_text(chosen.tokenizer) if any(i is None for r in plain for p in r.listed for _, i, _ in p) else {}
    found = []
    for expected, reference, reply in zip(chosen.expected, chosen.references, plain, strict=True):
        rows = measured.get(expected.id, np.empty((0, 0)))
        for at, (row, position) in enumerate(zip(rows, reply.listed, strict=False)):
            if at and list((reply.ids or ())[:at]) != reference[:at]:
                break
            named = [(token if token is not None else to_id.get(text, -1), value) for text, token, value in position]
            if listed := {i: value for i, value in named if 0 <= i < len(row)}:
                found.append(listed_kl(row, listed))
    return found


def _measured(file: Path) -> dict[str, np.ndarray]:
    """Question id -> our log-probabilities along its reference answer, shape (tokens, vocabulary)."""
    with np.load(file) as stored:
        ends = np.cumsum(stored["lengths"])
        return dict(zip(stored["ids"].tolist(), np.split(stored["logprobs"], ends[:-1]), strict=True))


def _ids_by_text(tokenizer: Any) -> dict[str, int]:
    """Token text -> id, of the texts that are one token's alone."""
    texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    found: dict[str, int] = {}
    for i, text in enumerate(texts):
        found[text] = -1 if text in found else i
    return found
