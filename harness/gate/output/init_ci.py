"""A CI job that gates one's own checkpoint, written from the committed reference file it compares with.

The reference says what must stay equal (benchmarks, frames, scale, versions), so the job it makes does not turn red by itself: the versions
go into a constraints file. Text and YAML only; nothing here installs or runs anything.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from harness.gate.decision import GateUsageError, Inconclusive
from harness.gate.settings import Require
from harness.integrity import UNKNOWN
from harness.records import Evaluation

Provider = Literal["github", "gitlab"]
WORKFLOW = {"github": ".github/workflows/gate.yml", "gitlab": "gate.gitlab-ci.yml"}
CONSTRAINTS = "gate-constraints.txt"
DATA, RUN, MODEL = "gate-data", "gate-run", "gate-model"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_RELEASE = re.compile(r"\d+(\.\d+)+")


@dataclass(frozen=True)
class Job:
    """What the CI job is to do. `model` is a checkpoint folder of the repository, a hub id, or (`results`) None."""

    reference: str
    evaluations: Mapping[str, Evaluation]
    model: str | None = None
    results: str | None = None
    """A folder where an earlier step leaves lmms-eval's results with samples."""
    install: str = "videosavi-harness"
    require: Require = "mean"
    inconclusive: Inconclusive = "fail"
    size: Literal["smoke", "micro"] = "micro"
    python: str = "3.11"

    def check(self) -> None:
        """Raises: GateUsageError: a combination that cannot work."""
        if (self.model is None) == (self.results is None):
            raise GateUsageError("name either a model to evaluate or, with --results, a folder of lmms-eval results")
        stock = any(e.score.provenance.media == UNKNOWN for e in self.evaluations.values())
        if stock != (self.results is not None):
            made = "lmms-eval results" if stock else "our own evaluations"
            raise GateUsageError(f"the reference is made of {made}; the candidate must be too (--results FOLDER for lmms-eval's)")

    @property
    def steps(self) -> dict[str, str]:
        """Shell lines by name, in order; the last is the gate."""
        out = {"Install": f"python -m pip install {self.install} -c {CONSTRAINTS} --extra-index-url {CPU_WHEELS}"}
        candidate = shlex.quote(self.results or RUN)
        if self.model is not None:
            first = next(iter(self.evaluations.values())).score
            names = ",".join(self.evaluations)
            synthetic = first.synthetic
            if synthetic:
                out["Make the synthetic benchmarks"] = f"python -m benchmarks micro --build-twins {DATA} --size {self.size}"
            else:
                out["Fetch the benchmarks"] = f"python -m benchmarks prepare {' '.join(self.evaluations)} --hf-home {DATA} --download"
            model = self.model
            if not Path(model).exists() and _HUB_ID.fullmatch(model):
                out["Fetch the model"] = f"hf download {model} --local-dir {MODEL}"
                model = MODEL
            frames = first.provenance.frames.get("num_frames")
            out["Evaluate"] = (
                f"python -m harness evaluate {shlex.quote(model)} --hf-home {DATA} --out {RUN}/eval --benchmarks {names} "
                f"--scale {shlex.quote(first.scale)} --num-frames {frames} --seed {first.provenance.seed}"
            )
        out["Gate"] = (
            f"python -m harness gate {candidate} --against {shlex.quote(self.reference)} --require {self.require} "
            f"--inconclusive {self.inconclusive} --junit gate.xml --summary gate-summary.md --out gate.json"
        )
        return out


def constraints(evaluations: Mapping[str, Evaluation]) -> str:
    """The reference's versions as pip constraints, without build tags (a CPU wheel and a CUDA wheel are one release)."""
    found: dict[str, str] = {}
    for e in evaluations.values():
        for name, version in e.score.provenance.versions.items():
            release = _RELEASE.match(version)
            if release and name != "savi":
                found[name] = release.group(0)
    lines = [f"{name}=={version}" for name, version in sorted(found.items())]
    return "\n".join(["# Versions that the gate's reference was made with; another release would change the scores.", *lines]) + "\n"


def github(job: Job) -> str:
    """A GitHub Actions workflow: evaluate, gate, upload the evidence, comment the table on the pull request."""
    lines = job.steps
    steps: list[dict[str, Any]] = [
        {"uses": "actions/checkout@v4", "with": {"lfs": True}},
        {"uses": "actions/setup-python@v5", "with": {"python-version": job.python, "cache": "pip", "cache-dependency-path": CONSTRAINTS}},
    ]
    if "Fetch the benchmarks" in lines:
        steps.append({"uses": "actions/cache@v4", "with": {"path": DATA, "key": f"gate-data-{'-'.join(job.evaluations)}"}})
    steps += [{"name": name, "run": line} for name, line in lines.items()]
    steps += [
        {"name": "Show the table", "if": "always()", "run": 'cat gate-summary.md >> "$GITHUB_STEP_SUMMARY"'},
        {
            "name": "Comment the table on the pull request",
            "if": "always() && github.event_name == 'pull_request'",
            "continue-on-error": True,
            "env": {"GH_TOKEN": "${{ github.token }}", "PULL_REQUEST": "${{ github.event.pull_request.number }}"},
            "run": 'gh pr comment "$PULL_REQUEST" --body-file gate-summary.md --edit-last --create-if-none',
        },
        {
            "name": "Keep the evidence",
            "if": "always()",
            "uses": "actions/upload-artifact@v4",
            "with": {"name": "gate", "path": f"gate.xml\ngate.json\ngate-summary.md\n{job.results or f'{RUN}/eval'}\n"},
        },
    ]
    flow = {
        "name": "gate",
        "on": {"pull_request": None, "workflow_dispatch": None},
        "permissions": {"contents": "read", "pull-requests": "write"},
        "jobs": {"gate": {"runs-on": "ubuntu-latest", "timeout-minutes": 60, "steps": steps}},
    }
    return _head(job) + yaml.safe_dump(flow, sort_keys=False, width=1000)


def gitlab(job: Job) -> str:
    """A GitLab CI job: the same lines, the JUnit report in the merge request, the table as a note where GATE_TOKEN is set."""
    note = (
        'if [ -n "$GATE_TOKEN" ] && [ -f gate-summary.md ]; then curl --silent --fail --request POST --header "PRIVATE-TOKEN: $GATE_TOKEN" '
        '--form "body=<gate-summary.md" "$CI_API_V4_URL/projects/$CI_PROJECT_ID/merge_requests/$CI_MERGE_REQUEST_IID/notes"; fi'
    )
    flow = {
        "gate": {
            "image": f"python:{job.python}",
            "rules": [{"if": "$CI_PIPELINE_SOURCE == 'merge_request_event'"}],
            "script": list(job.steps.values()),
            "after_script": [note],
            "artifacts": {
                "when": "always",
                "reports": {"junit": "gate.xml"},
                "paths": ["gate.xml", "gate.json", "gate-summary.md", job.results or f"{RUN}/eval"],
            },
        }
    }
    return _head(job) + yaml.safe_dump(flow, sort_keys=False, width=1000)


def _head(job: Job) -> str:
    return (
        f"# Written by `python -m harness init-ci`. Commit it with {job.reference} and {CONSTRAINTS}.\n"
        "# Red for a regression (exit 1), a gate that cannot tell (3, unless --inconclusive says otherwise), scores that cannot be\n"
        "# compared (4). A new reference: `python -m harness reference RUN FILE`, then init-ci again.\n"
    )


def files(job: Job, provider: Provider) -> dict[str, str]:
    """Every file to write, by its path in the repository."""
    job.check()
    return {WORKFLOW[provider]: github(job) if provider == "github" else gitlab(job), CONSTRAINTS: constraints(job.evaluations)}
