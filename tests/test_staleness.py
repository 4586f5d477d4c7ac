"""What is run again after a change: the fingerprints of the stages decide it, from contents and never from times."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from harness import storage
from harness.records import SplitManifest
from harness.stages import compare, report, score
from harness.storage import fingerprint, hashing
from harness.storage.fingerprint import closure, code_sha256, up_to_date
from tests.helpers.scored_run import CONFIG, make

PACKAGE = Path(fingerprint.__file__).parent.parent
STAGES = ("split", "train", "export", "predict", "score", "compare", "report")
CHANGED = "\n\ndef changed(x):\n    return x\n"

# What decides the output of which stages. Each line of the upper part was once missed by make, by a verb, or by both.
DECIDES = {
    "analysis/statistics.py": {"score", "compare"},
    "models/devices.py": {"train", "predict"},
    "models/base_model.py": {"split", "train", "export", "predict", "score"},
    "prediction/journal.py": {"predict"},
    "records/scoring.py": {"score", "compare", "report"},
    "records/gating.py": {"compare", "report"},
    "metrics/citations.py": {"split", "score", "compare"},
    "questions/paraphrase.py": {"split"},
    "training/step.py": {"train"},
    "formats/merged.py": {"export", "predict"},
    "backends/decoding/decoder.py": {"predict"},
    "report/charts/forest.py": {"report"},
    "prompt.py": {"train", "predict", "export"},
    "storage/strict_json.py": {"split", "train", "export", "predict", "score"},
    "config/training.py": set(),
    "storage/run_folder.py": set(),
    "doctor/checks.py": set(),
    "stages/demo.py": set(),
    **{f"stages/{stage}.py": {stage} for stage in STAGES},
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the harness's sources."""
    place = tmp_path_factory.mktemp("copy") / "harness"
    return shutil.copytree(PACKAGE, place, ignore=shutil.ignore_patterns("__pycache__"))


def codes(package: Path) -> dict[str, str]:
    closure.cache_clear()
    code_sha256.cache_clear()
    return {stage: code_sha256(f"harness.stages.{stage}", package) for stage in STAGES}


@pytest.mark.parametrize("file", DECIDES)
def test_a_changed_source_changes_the_code_of_what_it_decides(package: Path, file: str) -> None:
    before, source = codes(package), (package / file).read_text()
    (package / file).write_text(source + CHANGED)
    after = codes(package)
    (package / file).write_text(source)
    assert {stage for stage in STAGES if before[stage] != after[stage]} == DECIDES[file]


def test_comments_docstrings_and_layout_change_nothing(package: Path) -> None:
    file, before = package / "training" / "plan.py", codes(package)
    source = file.read_text()
    file.write_text(source.replace('"""', '"""Otherwise. ', 1).replace("\n\n\n", "\n\n\n\n# a remark\n"))
    assert file.read_text() != source and codes(package) == before
    file.write_text(source)


def test_every_module_is_found_that_a_stage_loads() -> None:
    found = closure("harness.stages.predict")
    assert {"harness.backends.transformers", "harness.backends.llamacpp"} <= set(found), "named in a registry"
    assert "harness.backends.decoding.kernels" in found, "imported by what a registry names"
    assert "harness.records.comparison" not in found, "taken from a package: only where the name is defined"


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("analysis/statistics.py", ["score", "compare", "report"]),
        ("analysis/buckets.py", ["compare", "report"]),
        ("report/sections.py", ["report"]),
        ("training/step.py", []),
        ("config/training.py", []),
    ],
)
def test_what_runs_again(
    tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch, file: str, expected: list[str]
) -> None:
    """Runs the stages after a change of one file: no old interval is left on the leaderboard."""
    run = make(tmp_path, {"base": lambda _: "nothing", "adapter": lambda q: q.answer})

    def written() -> dict[str, int]:
        for stage in (score, compare, report):
            stage.run(run, CONFIG)
        outputs = {"score": run.score("adapter")[0], "compare": run.comparison_json, "report": run.report_html}
        return {stage: output.stat().st_ino for stage, output in outputs.items()}

    def code(module: str) -> str:
        return code_sha256(module, package)

    monkeypatch.setattr(storage, "code_sha256", code)
    source = (package / file).read_text()
    codes(package)
    before = written()
    assert written() == before
    (package / file).write_text(source + CHANGED)
    codes(package)
    after = written()
    (package / file).write_text(source)
    assert [stage for stage in before if before[stage] != after[stage]] == expected


def test_a_manifest_that_is_missing_damaged_or_of_other_inputs_is_not_up_to_date(tmp_path: Path) -> None:
    run = make(tmp_path, {"base": lambda _: "nothing"})
    assert up_to_date(run.split_json, SplitManifest, "f", lambda _: True)
    assert not up_to_date(run.split_json, SplitManifest, "g", lambda _: True)
    assert not up_to_date(run.split_json, SplitManifest, "f", lambda _: False)
    run.split_json.write_text(run.split_json.read_text().replace("qa.json", "qb.json"))
    assert not up_to_date(run.split_json, SplitManifest, "f", lambda _: True)
    run.split_json.unlink()
    assert not up_to_date(run.split_json, SplitManifest, "f", lambda _: True)


class TestLargeFiles:
    @pytest.fixture
    def file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(hashing, "LARGE_BYTES", 1000)
        file = tmp_path / "weights"
        file.write_bytes(b"x" * 2000)
        os.utime(file, (time.time() - 60, time.time() - 60))
        return file

    def test_is_hashed_once(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = hashing.sha256_large(file)
        assert first == hashing.sha256_file(file)
        monkeypatch.setattr(hashing, "sha256_file", lambda _: pytest.fail("hashed again"))
        assert hashing.sha256_large(file) == first

    def test_another_content_time_or_file_is_seen(self, file: Path) -> None:
        first = hashing.sha256_large(file)
        file.write_bytes(b"y" * 2000)
        assert hashing.sha256_large(file) == hashing.sha256_file(file) != first
        other = file.with_name("other")
        other.write_bytes(b"z" * 2000)
        os.utime(other, ns=(file.stat().st_mtime_ns, file.stat().st_mtime_ns))
        other.replace(file)
        assert hashing.sha256_large(file) == hashing.sha256_file(file)

    def test_a_file_that_was_just_written_is_not_remembered(self, file: Path) -> None:
        file.write_bytes(b"y" * 2000)
        stamp = file.stat()
        hashing.sha256_large(file)
        file.write_bytes(b"z" * 2000)
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert hashing.sha256_large(file) == hashing.sha256_file(file)

    @pytest.mark.parametrize("note", ["", "nonsense", "1 2 3 " + "0" * 64, "\xff"])
    def test_a_damaged_note_is_not_believed(self, file: Path, tmp_path: Path, note: str) -> None:
        first = hashing.sha256_large(file)
        (kept,) = (tmp_path / "cache").rglob("hashes/*")
        kept.write_text(note, encoding="latin-1")
        assert hashing.sha256_large(file) == first

    def test_a_cache_that_cannot_be_written_is_done_without(self, file: Path, tmp_path: Path) -> None:
        (tmp_path / "cache").write_text("")
        assert hashing.sha256_large(file) == hashing.sha256_file(file)
