"""The workflow of the pull request: valid by the code host's schema, and each of its steps run as a script, those of make as a plan."""

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
STEPS = [(name, job.get("env", {}), step) for name, job in PARSED["jobs"].items() for step in job["steps"]]
SCRIPTS = [(name, env, step["run"]) for name, env, step in STEPS if "run" in step and "CONFIG" in env]
"""The jobs of the gates; lint and tests would run this suite itself."""
MADE = [step for step in SCRIPTS if step[2].startswith("make ")]
OTHERS = [step for step in SCRIPTS if step not in MADE]


def job_config(job):
    return PARSED["jobs"][job]["env"]["CONFIG"]


def test_the_workflow_fits_the_schema():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(WORKFLOW)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def run(script, env, **settings):
    """A step as the runner runs it. Inputs are those of the dispatch form. `make` only prints its plan; the pipeline has its own tests."""
    typed = {"qa": "data/constitution_qa.json", "baseline": "reports/baseline.json"}
    given = {
        key: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda found: typed[found[1]], str(value))
        for key, value in env.items()
    }
    whole = {**os.environ, **given, "MAKEFLAGS": "n", **settings.pop("environment", {})}
    return subprocess.run(
        ["bash", "-e", "-c", script], env=whole, capture_output=True, text=True, timeout=60, **settings
    )


@pytest.mark.parametrize("job, env, script", MADE, ids=[f"{job}: {script}" for job, _, script in MADE])
def test_each_make_step_plans_its_stage(tmp_path, job, env, script):
    for name in ("Makefile", "harness", "data", "pyproject.toml", "requirements"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = run(script, env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    planned = re.findall(
        r"^\.venv/bin/harness run +(?:--until (\w+) +)?--run '(\S+)' --config '(\S+)'(.*)", done.stdout, re.MULTILINE
    )
    target = script.split()[-1]
    assert [until for until, *_ in planned] == {"setup": [], "train": ["train"], "eval": [""], "gate": [""]}[target]
    assert ("harness gate" in done.stdout) == (target == "gate")
    assert {(name, config) for _, name, config, _ in planned} <= {(job_config(job), job_config(job))}
    if "QA" in env:
        assert all("--qa 'data/constitution_qa.json'" in options for *_, options in planned)
    assert not (tmp_path / "runs").exists(), "a plan writes nothing"


@pytest.mark.parametrize("job, env, script", OTHERS, ids=[f"{job}: {script[:20]}" for job, _, script in OTHERS])
def test_each_other_step_runs_as_a_script(tmp_path, job, env, script):
    summary, gate_md = tmp_path / "summary", tmp_path / "reports" / env["CONFIG"] / "gate.md"
    environment = {"GITHUB_STEP_SUMMARY": str(summary)}
    assert run(script, env, cwd=tmp_path, environment=environment).returncode == 0
    assert summary.read_text() == "The gate did not come to a verdict.\n", "a set-up that failed leaves no gate.md"
    summary.unlink()
    gate_md.parent.mkdir(parents=True)
    gate_md.write_text("## Quality gate: Passed\n")
    assert run(script, env, cwd=tmp_path, environment=environment).returncode == 0
    assert summary.read_text() == gate_md.read_text()


def test_nothing_more_is_allowed_than_is_needed():
    assert PARSED["permissions"] == {"contents": "read"}
    for _, _, step in STEPS:
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/x@v1")), (
            "pinned, and the code host's own"
        )
        # An expression in a script is pasted in before the shell reads it: an injection, or a secret in the log.
        assert "${{" not in step.get("run", "")
    pulled = yaml.safe_dump(PARSED["jobs"]["embedded"])
    assert "secrets." not in pulled
