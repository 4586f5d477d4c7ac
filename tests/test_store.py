"""Run folders: what is written is whole or not there, and one process at a time holds a folder."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import storage
from harness.errors import ArtifactError, BusyError, ConfigError, StorageError
from harness.records import HistoryPoint, ScoreSet
from harness.storage import RunFolder

HOLD = """
import sys, time
from harness.storage import RunFolder
with RunFolder("r", sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


# ------------------------------------------------------------------------------------------------------------ writing


def test_a_failure_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    storage.write_json(file, {"old": 1})

    def rows() -> Any:
        yield {"a": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.write_jsonl(file, rows())
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(file, {"x": float("nan")})
    assert storage.read_json(file) == {"old": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_rename_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("1")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with (
        pytest.raises(StorageError, match="no space left on device; free some space"),
        storage.atomic_path(folder) as temporary,
    ):
        temporary.mkdir()
        (temporary / "new").write_text("2")
    assert [p.name for p in folder.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with storage.atomic_path(tmp_path / "model") as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert [p.name for p in (tmp_path / "model").rglob("*")] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    storage.write_json(file, {"old": 1})
    code = "import os, sys; from pathlib import Path; from harness import storage\nwith storage.atomic_path(Path(sys.argv[1])) as t: t.write_text('half'); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(file)]).returncode == -signal.SIGKILL
    assert storage.read_json(file) == {"old": 1}


def test_equal_values_give_equal_bytes(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "a", {"b": 1, "a": "§ ü"})
    storage.write_json(tmp_path / "b", {"a": "§ ü", "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == '{\n  "a": "§ ü",\n  "b": 1\n}\n'.encode()


@pytest.mark.parametrize("error", [13, 28, 30, 122])
def test_what_the_system_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(error, os.strerror(error), str(tmp_path / "x"))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(StorageError) as raised:
        storage.write_text(tmp_path / "x", "")
    assert raised.value.exit_code == 2
    assert str(raised.value).startswith(f"{tmp_path}/x: cannot write: {os.strerror(error).lower()}; ")
    assert ("free some space" in str(raised.value)) == (error in (28, 122))


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File, folder of files, and the folder that holds the name: a power cut loses none of them."""
    synced, target, named = [], tmp_path / "model", []
    fsync, replace = os.fsync, os.replace

    def watched(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(source: Path, place: Path) -> None:
        named.append(len(synced))
        replace(source, place)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(os, "replace", renamed)
    with storage.atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "weights").write_text("1")
    assert [p.name for p in synced[: named[0]]] == ["model", "weights"]
    assert synced[named[0] :] == [tmp_path]


def test_a_file_that_cannot_be_read_is_not_called_unwritable(tmp_path: Path) -> None:
    base, file = tmp_path / "none" / "base", tmp_path / "out" / "x"
    unreadable = r"none/base: cannot read: no such file or directory; check the path and its permissions$"
    with pytest.raises(StorageError, match=unreadable), storage.atomic_path(file) as temporary:
        temporary.write_bytes(base.read_bytes())
    with (
        pytest.raises(StorageError, match=r"x: cannot write: no space left on device; free some space"),
        storage.atomic_path(file),
    ):
        # shutil.copyfile names the file that it was reading.
        raise OSError(errno.ENOSPC, "No space left on device", str(base))
    with pytest.raises(StorageError, match=r"x: cannot write: is a directory; check the path"):
        (tmp_path / "out" / "x").mkdir(parents=True)
        storage.write_text(tmp_path / "out" / "x", "")


@pytest.mark.parametrize(
    ("error", "reported"),
    [
        (
            RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "no space left on device; free some space",
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 704 vs 598"),
            "torch could not write all of it; free some space",
        ),
        (OSError(errno.EFBIG, "File too large"), r"file too large; raise the limit on the size of files \(ulimit -f\)"),
    ],
)
def test_a_librarys_write_error_is_recognised(error: Exception, reported: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=rf"x: cannot write: {reported}"), storage.storage_errors(tmp_path / "x"):
        raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("of another kind"), ArtifactError("is missing"), OSError("without a number")]
)
def test_other_errors_stay_what_they_are(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as raised, storage.storage_errors(tmp_path / "x"):
        raise error
    assert raised.value is error


def test_a_file_where_a_folder_is_needed_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(StorageError, match=r"runs\S*: cannot write: .*; check the path and its permissions"):
        storage.write_text(RunFolder("r", tmp_path).run_json, "")
    with pytest.raises(StorageError, match=r"runs\S*: cannot write"), RunFolder("r", tmp_path).lock():
        pass


def test_space_is_checked(tmp_path: Path) -> None:
    storage.need_space(tmp_path / "not" / "yet" / "there", 1)
    with pytest.raises(StorageError, match=r"there: needs 1000000000.00 GB and \d+\.\d\d GB are free; free some space"):
        storage.need_space(tmp_path / "not" / "yet" / "there", 10**18)


# ------------------------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "cannot be read"),
        ("", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "is damaged"),
        ('{"step": 1}', r"is damaged \(epoch: field required\)"),
        ('{"step": "x", "epoch": 1, "seconds": 1}', r"is damaged \(step: "),
        ('{"step": 1, "epoch": 1, "seconds": 1, "stray": 1}', r"is damaged \(stray: extra inputs"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(
        ArtifactError, match=rf"x.json: {problem}.*; delete it and run the stage that writes it again"
    ) as error:
        storage.read_record(tmp_path / "x.json", HistoryPoint)
    assert "\n" not in str(error.value)


def test_a_changed_manifest_is_named(tmp_path: Path) -> None:
    file, written = tmp_path / "x.json", ScoreSet(fingerprint="f", variants=["base"])
    storage.write_json(file, written)
    assert storage.read_record(file, ScoreSet) == written
    text = file.read_text()
    storage.write_text(file, text.replace("base", "bare"))
    for read in (storage.read_json, lambda path: storage.read_record(path, ScoreSet)):
        with pytest.raises(
            ArtifactError,
            match=r"x.json: is damaged or was changed: its checksum does not match; delete it and run the stage",
        ):
            read(file)
    # Handwritten, or by an older harness.
    storage.write_text(file, '{"fingerprint": "f", "variants": ["bare"]}')
    assert storage.read_record(file, ScoreSet).variants == ["bare"]


def test_lines_that_are_not_what_their_manifest_says_are_named(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text("1")
    storage.check_written(file, storage.sha256_file(file), "score")
    storage.check_written(file, "", "score")
    with pytest.raises(
        ArtifactError,
        match=r"x.jsonl: is damaged or was changed: it is not what score wrote; run harness score --force again$",
    ):
        storage.check_written(file, "0" * 64, "score --force")


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ArtifactError, match=r"x.json: cannot be read"):
        storage.read_json(tmp_path / "x.json")


def test_a_missing_file_says_what_to_run(tmp_path: Path) -> None:
    for read in (storage.read_json, storage.sha256_file, lambda p: storage.read_records(p, HistoryPoint)):
        with pytest.raises(ArtifactError, match=r"x: is missing; check the path"):
            read(tmp_path / "x")


def test_the_first_bad_line_is_named(tmp_path: Path) -> None:
    point = storage.dumps(HistoryPoint(step=1, epoch=0.1, seconds=1.0))
    (tmp_path / "x.jsonl").write_text(f"{point}\n{point}\n{point[:-5]}\n")
    with pytest.raises(ArtifactError, match=r"x.jsonl, row 3: is damaged"):
        storage.read_records(tmp_path / "x.jsonl", HistoryPoint)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    )
)
def test_canonical_json_reads_back(value: Any) -> None:
    assert json.loads(storage.dumps(value)) == value


def test_the_hash_of_a_tree_is_of_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = storage.sha256_tree(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert storage.sha256_tree(tmp_path) != first
    (tmp_path / "b").rename(tmp_path / "a")
    (tmp_path / "log").write_text("x")
    assert storage.sha256_tree(tmp_path, lambda p: p.name != "log") == first


# -------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name", ["..", ".", "a/b", "/etc", "a..b", "", "-x", ".hidden", "a\n", "a b", "ü", "x" * 101, "a\0"]
)
def test_names_that_would_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run name .* is not usable") as error:
        RunFolder(name, tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError):
        RunFolder("r", tmp_path).prediction(name)
    with pytest.raises(ConfigError):
        RunFolder("r", tmp_path).score(name)


@pytest.mark.parametrize("name", ["gguf_../../x", "gguf_/etc/x", "../x"])
def test_formats_that_would_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        RunFolder("r", tmp_path).artifact(name)


def test_usual_names_are_taken(tmp_path: Path) -> None:
    run = RunFolder("llama3-8b_v1.2", tmp_path)
    assert run.path == tmp_path / "runs" / "llama3-8b_v1.2"
    assert run.artifact("gguf_q4_k_m").relative_to(run.path) == Path("gguf/model-q4_k_m.gguf")


# --------------------------------------------------------------------------------------------------------------- lock


def holder(root: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    )
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


def test_a_second_process_learns_who_holds_the_folder(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with (
            pytest.raises(BusyError, match=rf"runs/r is in use by process {process.pid}; wait for it to end"),
            RunFolder("r", tmp_path).lock(),
        ):
            pass
    finally:
        process.kill()
        process.communicate()
    # The lock of a process that was killed is free at once, though its files are still there.
    with RunFolder("r", tmp_path).lock():
        assert (tmp_path / "runs/r/.lock").read_text() == f"{os.getpid()} {socket.gethostname()}"
    assert not (tmp_path / "runs/r").exists(), "nothing was written, so nothing is left"


def test_the_lock_is_free_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), RunFolder("r", tmp_path).lock():
            raise ZeroDivisionError
    with RunFolder("r", tmp_path).lock(), RunFolder("other", tmp_path).lock():
        pass


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    run = RunFolder("r", tmp_path)
    for left in (run.path / ".adapter.x.tmp", run.scores / ".base.jsonl.y.tmp", run.reports / ".report.html.z.tmp"):
        left.mkdir(parents=True)
        (left / "half").write_text("half")
    kept = run.path / "adapter"
    kept.mkdir()
    with run.lock():
        pass
    assert not list(tmp_path.rglob("*.tmp"))
    assert kept.is_dir()


@pytest.mark.parametrize(
    ("link", "letter"),
    [
        (".adapter.x.tmp", "replaced/letter"),
        (".adapter.x.tmp/replaced", "letter"),
        ("adapter", ".x.tmp/replaced/letter"),
    ],
)
def test_the_target_of_a_link_in_a_received_run_is_left_alone(tmp_path: Path, link: str, letter: str) -> None:
    """What a killed process left is cleared away, and a folder that was being replaced goes back; neither reaches elsewhere."""
    run, home = RunFolder("r", tmp_path), tmp_path / "home"
    (home / letter).parent.mkdir(parents=True)
    (home / letter).write_text("mine")
    (run.path / link).parent.mkdir(parents=True)
    (run.path / link).symlink_to(home)
    with run.lock():
        pass
    assert (home / letter).read_text() == "mine"
