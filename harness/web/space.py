"""A folder for Hugging Face Spaces: the page with one GGUF of a run, which answers on their free CPU tier. Written here, and run from there.

The folder holds the app, this package, the tokenizer, pinned requirements, and the GGUF or the name under which the hub has it; `space.json` holds
the prompt and the settings of generation. Questions of the run are published only where `examples` asks for it.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from harness import storage, variants
from harness.backends import Execution, Generation, Source
from harness.config import Config
from harness.errors import ArtifactError, ConfigError
from harness.prediction.jobs import Job
from harness.prompt import CHAT_TEMPLATE_FILES, TOKENIZER_FILES
from harness.records import Comparison, GateResult, Question
from harness.storage import RunFolder
from harness.web import session as sessions
from harness.web.session import Session

REQUIRED = (
    "gguf",
    "gradio",
    "httpx",
    "huggingface_hub",
    "jinja2",
    "numpy",
    "packaging",
    "psutil",
    "pydantic",
    "PyYAML",
    "rouge_score",
    "scipy",
    "transformers",
    "xllamacpp",
)
"""The app's dependencies, pinned to the installed versions."""
SETTINGS, GGUF, TOKENIZER = "space.json", "model.gguf", "tokenizer"
APP = '''"""Answers questions with one GGUF file, with the prompt that it was trained with. Written by `harness space`."""

from pathlib import Path

from harness.web.space import run

if __name__ == "__main__":
    run(Path(__file__).resolve().parent)
'''
README = """
# {title}

Answers questions with {label}, a fine-tuned model in GGUF format, on a CPU. The prompt and the settings of generation are those that the model was
evaluated with.

Run it here: `pip install -r requirements.txt && python app.py`. Push it: `hf upload YOUR_NAME/SPACE . --repo-type space`.
"""
PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Made:
    """What was written."""

    variant: str
    size_bytes: int
    """Of all files."""


def write(
    run: RunFolder,
    config: Config,
    folder: Path,
    *,
    variant: str | None = None,
    hub: str | None = None,
    title: str | None = None,
    examples: int = 0,
) -> Made:
    """Writes the folder atomically.

    Args:
        variant: a GGUF of the run; None: the smallest that the gate has nothing against.
        hub: `owner/name/file.gguf`, where the hub has the same file, which is then not copied.
        examples: held-out questions with their references that are published with it.

    Raises:
        ConfigError: the folder is not empty, the variant is not a GGUF, or `hub` is not such a name; ArtifactError: the run has no GGUF.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("is not empty", "give a new folder", file=folder)
    session = sessions.open_run(run, config)
    job = session.job(_chosen(run, session, variant))
    if config.prompt.few_shot:
        raise ConfigError(
            "prompt.few_shot needs the training questions, which a Space would publish",
            "make the Space of a run without few-shot examples",
        )
    extra = config.predict.extra.get(job.variant)
    settings = {
        "title": title or f"Ask {run.name}",
        "variant": job.variant,
        "hub": _hub(hub),
        "sha256": job.weights_sha256,
        "size_bytes": job.size_bytes,
        "prompt": ((extra.prompt if extra else None) or config.prompt).model_dump(mode="json"),
        "generation": asdict(job.generation),
        "examples": [{"question": q.question, "answer": q.answer} for q in session.heldout[:examples]],
    }
    scratch = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with storage.storage_errors(scratch):
            _fill(scratch, job, settings)
            size = sum(file.stat().st_size for file in scratch.rglob("*") if file.is_file())
            if folder.exists():
                folder.rmdir()
            scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return Made(job.variant, size)


def _fill(folder: Path, job: Job, settings: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    shutil.copytree(PACKAGE, folder / "harness", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    if (PACKAGE.parent / "LICENSE").is_file():
        shutil.copyfile(PACKAGE.parent / "LICENSE", folder / "harness" / "LICENSE")
    if settings["hub"] is None:
        shutil.copyfile(job.source.path, folder / GGUF)
    assert job.tokenizer is not None
    (folder / TOKENIZER).mkdir()
    for name in (*TOKENIZER_FILES, *CHAT_TEMPLATE_FILES, "config.json"):
        if (job.tokenizer / name).is_file():
            shutil.copyfile(job.tokenizer / name, folder / TOKENIZER / name)
    front = {
        "title": settings["title"],
        "emoji": "💬",
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "gradio",
        "sdk_version": _installed("gradio"),
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        "pinned": False,
    }
    text = README.format(title=" ".join(settings["title"].split()), label=variants.label(job.variant))
    head = yaml.safe_dump(front, allow_unicode=True, sort_keys=False)
    for name, content in {
        "README.md": f"---\n{head}---\n{text}",
        "app.py": APP,
        "requirements.txt": "".join(f"{name}=={_installed(name)}\n" for name in REQUIRED),
        ".gitattributes": "*.gguf filter=lfs diff=lfs merge=lfs -text\n",
    }.items():
        (folder / name).write_text(content, encoding="utf-8")
    storage.write_json(folder / SETTINGS, settings)


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        raise ConfigError(
            f"{name} is not installed, and the Space needs it", "pip install 'qa-harness[gguf,web]'"
        ) from None


def _chosen(run: RunFolder, session: Session, variant: str | None) -> str:
    """The variant named, or the smallest GGUF that can be shipped: one that passes the decision's limits, else one that fails none of them."""
    extra = session.config.predict.extra
    files = [n for n in session.names if (extra[n].backend == "llamacpp" if n in extra else variants.is_gguf(n))]
    if not files:
        raise ArtifactError("has no GGUF file", f"run harness export --run {run.name}", file=run.path)
    if variant is not None:
        if variant not in files:
            raise ConfigError(f"{variant!r} is not a GGUF file of run {run.name}", f"use one of {', '.join(files)}")
        return variant
    refused: set[str] = set()
    passed: set[str] = set()
    if run.gate_json.exists():
        checks = storage.read_record(run.gate_json, GateResult).checks
        refused = {check.variant for check in checks if check.verdict == "regression"}
    if run.comparison_json.exists() and (shipping := storage.read_record(run.comparison_json, Comparison).shipping):
        refused |= {candidate.variant for candidate in shipping.candidates if candidate.verdict == "fail"}
        passed = {candidate.variant for candidate in shipping.candidates if candidate.verdict == "pass"}
    fine = [name for name in files if name not in refused]
    if not fine:
        raise ConfigError(f"no GGUF file of run {run.name} can be shipped", "name one all the same: --variant NAME")
    return min([n for n in fine if n in passed] or fine, key=lambda name: session.job(name).size_bytes)


def _hub(name: str | None) -> dict[str, str] | None:
    if name is None:
        return None
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if not (owner and repository and file.endswith(".gguf")):
        raise ConfigError(f"--hub {name!r} is not OWNER/NAME/FILE.gguf", "name the file on the hub")
    return {"repo_id": f"{owner}/{repository}", "filename": file}


# ---------------------------------------------------------------------------------------------------------- in the Space


def open_folder(folder: Path, *, in_process: bool = False) -> Session:
    """The session of a Space's folder; ArtifactError if the hub's file is not the one that the folder was made for."""
    settings: Any = storage.read_json(folder / SETTINGS)
    path = folder / GGUF
    if settings["hub"] is not None:
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(**settings["hub"]))
        if storage.sha256_large(path) != settings["sha256"]:
            raise ArtifactError("is another file than the one evaluated", "upload that one again", file=path)
    generation = settings["generation"]
    job = Job(
        variant=settings["variant"],
        backend="llamacpp",
        source=Source(path),
        generation=Generation(**{**generation, "stop_ids": tuple(generation["stop_ids"])}),
        execution=Execution(),
        weights_sha256=settings["sha256"],
        size_bytes=settings["size_bytes"],
        questions=[],
        prompts=[],
        tokenizer=folder / TOKENIZER,
        tokenizer_sha256="",
        split_id="",
        lines=folder / "answers.jsonl",
        manifest=folder / "answers.json",
    )
    examples = [
        Question(id=f"example-{i}", row=i, question=e["question"], answer=e["answer"], group=f"example-{i}")
        for i, e in enumerate(settings["examples"], 1)
    ]
    config = Config.model_validate({"prompt": settings["prompt"]})
    return Session([job.variant], lambda _: job, config, heldout=examples, in_process=in_process)


def run(folder: Path) -> None:
    """Serves the page where Spaces expect it: GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say where, this machine's 7860 by default."""
    from harness.web import page

    session = open_folder(folder)
    made = page.Page(session, str(storage.read_json(folder / SETTINGS)["title"]), page.Keep(), page.Limits())
    serving = page.Serving(
        os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    )
    page.serve(made, serving)
    page.wait()
