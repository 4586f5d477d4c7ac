"""The workflow of the pull request: valid by the code host's schema, and each of its steps run as a script."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / ".github" / "workflows" / "quality.yml"
PARSED = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
STEPS = [(name, job["env"], step) for name, job in PARSED["jobs"].items() for step in job["steps"]]
SCRIPTS = [(name, env, step["run"]) for name, env, step in STEPS if "run" in step]
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_the_workflow_fits_the_schema():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(WORKFLOW)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("job, env, script", SCRIPTS, ids=[f"{job}: {script}" for job, _, script in SCRIPTS])
def test_each_step_runs_as_a_script(tmp_path, job, env, script):
    """With a `make` that notes what it is asked for: the targets themselves are the pipeline's tests."""
    noted, summary, tools = tmp_path / "noted", tmp_path / "summary", tmp_path / "bin"
    tools.mkdir()
    (tools / "make").write_text(f'#!/bin/sh\necho "$@" >> {noted}\n')
    (tools / "make").chmod(0o755)
    gate_md = tmp_path / "reports" / env["CONFIG"] / "gate.md"
    gate_md.parent.mkdir(parents=True)
    gate_md.write_text("## Quality gate: Passed\n")
    settings = {**env, "PATH": f"{tools}:{os.environ['PATH']}", "GITHUB_STEP_SUMMARY": str(summary)}
    subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env=settings, check=True, timeout=30)
    if "make" in script:
        asked = noted.read_text().split()
        assert asked and set(asked) <= TARGETS
    else:
        assert summary.read_text() == gate_md.read_text()


@pytest.mark.parametrize("job", PARSED["jobs"])
def test_a_job_goes_from_set_up_to_gate_and_keeps_the_report(job):
    steps = PARSED["jobs"][job]["steps"]
    made = [step["run"].split()[-1] for step in steps if step.get("run", "").startswith("make")]
    assert made == ["setup", "train", "eval", "gate"]
    kept = [step for step in steps if "upload-artifact" in step.get("uses", "")]
    assert f"reports/{PARSED['jobs'][job]['env']['CONFIG']}/report.html" in kept[0]["with"]["path"]
    # A failed gate is when they are wanted.
    assert all(step["if"] == "always()" for step in steps if step in kept or "GITHUB_STEP_SUMMARY" in step.get("run", ""))


def test_the_pull_request_runs_the_default_and_the_gpu_only_by_hand():
    events = PARSED[True]  # YAML 1.1 reads `on` as true
    assert set(events) == {"pull_request", "workflow_dispatch"}
    jobs = PARSED["jobs"]
    assert (jobs["embedded"]["env"]["CONFIG"], jobs["embedded"]["if"]) == ("tiny", "github.event_name == 'pull_request'")
    assert (jobs["llama3-8b"]["env"]["CONFIG"], jobs["llama3-8b"]["if"]) == ("llama3-8b", "github.event_name == 'workflow_dispatch'")
    assert "self-hosted" in jobs["llama3-8b"]["runs-on"]


def test_nothing_more_is_allowed_than_is_needed():
    assert PARSED["permissions"] == {"contents": "read"}
    for _, _, step in STEPS:
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/x@v1")), "pinned, and the code host's own"
        # An expression in a script is pasted in before the shell reads it: an injection, or a secret in the log.
        assert "${{" not in step.get("run", "")
    pulled = yaml.safe_dump(PARSED["jobs"]["embedded"])
    assert "secrets." not in pulled
