"""Runs with a baseline, for tests of the gate."""

from typing import Any

from harness.config import Config
from harness.gating import baseline
from harness.stages import compare, gate, score
from tests.helpers.scored_run import CONFIG, make, questions

MANY = questions(n_groups=95, size=3)
NO_COSTS = {"size_ratio": {}, "fidelity": {}, "divergence": {}}


def config(**changes):
    return Config.model_validate({**CONFIG.model_dump(), "gate": {**NO_COSTS, **changes}})


def right(question):
    return question.answer


def untuned(question):
    return "nothing"


def right_but(every: int, answer: Any = "nothing") -> Any:
    """Wrong on one of every so many questions, spread over the groups."""
    return lambda q: answer if q.row % every == 0 else q.answer


def scored(root, name, answers, **changes):
    run = make(root, {"base": untuned, **answers}, name=name, asked=changes.pop("asked", MANY), **changes)
    score.run(run, CONFIG)
    compare.run(run, CONFIG)
    return run


def gated(root, before, after, settings=None, *, strict=False, **changes):
    """The result of a run whose adapter answers `after`, against a baseline whose adapter answered `before`."""
    settings = settings or config()
    old = scored(root, "old", before if isinstance(before, dict) else {"adapter": before})
    path = root / "baseline.json"
    path.unlink(missing_ok=True)  # Saving over one remembers its best means.
    baseline.save(path, baseline.snapshot(old, settings), settings, confirm=lambda _: True)
    new = scored(root, "new", after if isinstance(after, dict) else {"adapter": after}, **changes)
    return gate.run(new, settings, baseline_file=path, strict=strict)
