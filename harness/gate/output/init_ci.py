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
from typing import Any, get_args

import yaml

from benchmarks.benchmark import TwinSize
from benchmarks.catalog import CATALOG, select
from harness.gate.decision import GateUsageError
from harness.gate.policy import Inconclusive, Provider, Require
from harness.integrity import UNKNOWN
from harness.records import Evaluation
from harness.scoring import describe, question_id
from savi.base.digests import sha256_bytes

WORKFLOW = {"github": ".github/workflows/gate.yml", "gitlab": "gate.gitlab-ci.yml"}
CONSTRAINTS = "gate-constraints.txt"
DATA, RUN, MODEL = "gate-data", "gate-run", "gate-model"
REFERENCE, CANDIDATE = f"{RUN}/base", f"{RUN}/iter-1"
"""The reference and the candidate as stages of one run, so that the report shows them side by side."""
REPORT = "gate-report.html"
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
    """A requirement, and pip's options if any."""
    require: Require = "mean"
    inconclusive: Inconclusive = "fail"
    twins_seed: int = 1
    """Seed of the synthetic benchmarks, where the reference is of those."""
    python: str = "3.11"

    def check(self) -> None:
        """Raises: GateUsageError: a combination that cannot work."""
        if (self.model is None) == (self.results is None):
            raise GateUsageError("name either a model to evaluate or, with --results, a folder of lmms-eval results")
        stock = any(e.score.provenance.media == UNKNOWN for e in self.evaluations.values())
        if stock != (self.results is not None):
            made = "lmms-eval results" if stock else "our own evaluations"
            raise GateUsageError(f"the reference is made of {made}; the candidate must be too (--results FOLDER for lmms-eval's)")

    def steps(self) -> dict[str, str]:
        """Shell lines by name, in order; the last two are the gate and the report.

        Raises:
            GateUsageError: the reference is not of the synthetic benchmarks of `twins_seed`.
        """
        out = {"Install": f"python -m pip install {self.install} -c {CONSTRAINTS}"}
        candidate = shlex.quote(self.results or CANDIDATE)
        if self.model is not None:
            first = next(iter(self.evaluations.values())).score
            names = ",".join(self.evaluations)
            synthetic = first.synthetic
            if synthetic:
                size = twin_size(self.evaluations, self.twins_seed)
                out["Make the synthetic benchmarks"] = (
                    f"python -m benchmarks micro --build-twins {DATA} --size {size} --seed {self.twins_seed}"
                )
            else:
                out["Fetch the benchmarks"] = f"python -m benchmarks prepare {' '.join(self.evaluations)} --data {DATA} --download"
            model = self.model
            if not Path(model).exists() and _HUB_ID.fullmatch(model):
                out["Fetch the model"] = f"hf download {model} --local-dir {MODEL}"
                model = MODEL
            frames = first.provenance.frames.get("num_frames")
            out["Evaluate"] = (
                f"python -m harness evaluate {shlex.quote(model)} --data {DATA} --out {CANDIDATE}/eval --benchmarks {names} "
                f"--scale {shlex.quote(first.scale)} --num-frames {frames} --seed {first.provenance.seed}"
            ) + (f" --limit {first.limit}" if first.limit is not None else "")
        out["Gate"] = (
            f"python -m harness gate {candidate} --against {shlex.quote(self.reference)} --require {self.require} "
            f"--inconclusive {self.inconclusive} --junit gate.xml --summary gate-summary.md --out {CANDIDATE}/gate.json"
        )
        unpack = [f"python -m harness reference {shlex.quote(self.reference)} {REFERENCE}/eval"]
        if self.results is not None:
            unpack.append(f"python -m harness reference {candidate} {CANDIDATE}/eval")
        data = f" --data {DATA}" if self.model is not None else ""
        out["Report"] = " && ".join([*unpack, f"python -m harness report {RUN} --out {REPORT}{data}"])
        return out


def twin_size(evaluations: Mapping[str, Evaluation], seed: int) -> TwinSize:
    """The size of the synthetic benchmarks that evaluations are of, told by the number of questions.

    Raises:
        GateUsageError: of no size, or of another seed than `seed`: the job would never be comparable.
    """
    n = {name: e.score.n_expected for name, e in evaluations.items()}
    asked = {s: {b.name: len(b.tasks) * b.twin_task(s) for b in select(list(n))} for s in get_args(TwinSize)}
    size = next((s for s, wanted in asked.items() if wanted == n), None)
    if size is None:
        counts = ", ".join(f"{name} {count:,}" for name, count in n.items())
        raise GateUsageError(f"the reference is of synthetic benchmarks, but its numbers of questions ({counts}) are of no size")
    name = min(n, key=lambda x: n[x])
    b = CATALOG[name]
    rows = b.twin(seed, b.twin_task(size)).rows
    made = {question_id(t, describe(b, t, doc)) for t, c in zip(b.tasks, b.configs, strict=True) for doc in rows[c]}
    if not {r.question_id.split("-")[0] for r in evaluations[name].records} <= made:
        raise GateUsageError(
            f"the reference's questions of {name} are not those of seed {seed}: give --twins-seed (1 by `python -m benchmarks micro`; "
            "runs of `python -m reproduce paper` say theirs in run.json, evaluation.twins_seed)"
        )
    return size


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
    lines = job.steps()
    steps: list[dict[str, Any]] = [
        {"uses": "actions/checkout@v4", "with": {"lfs": True}},
        {"uses": "actions/setup-python@v5", "with": {"python-version": job.python, "cache": "pip", "cache-dependency-path": CONSTRAINTS}},
    ]
    if job.model is not None:
        media = sha256_bytes("".join(e.score.provenance.media for e in job.evaluations.values()).encode())
        steps.append({"uses": "actions/cache@v4", "with": {"path": DATA, "key": f"gate-data-{media[:16]}"}})
    always = {"Report": {"if": "always()", "continue-on-error": True}}
    steps += [{"name": name, **always.get(name, {}), "run": line} for name, line in lines.items()]
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
            "with": {"name": "gate", "path": "\n".join(_kept(job)) + "\n"},
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
    steps = job.steps()
    flow = {
        "gate": {
            "image": f"python:{job.python}",
            "rules": [{"if": "$CI_PIPELINE_SOURCE == 'merge_request_event'"}],
            "script": [line for name, line in steps.items() if name != "Report"],
            "after_script": [steps["Report"], note],
            "artifacts": {
                "when": "always",
                "reports": {"junit": "gate.xml"},
                "paths": _kept(job),
            },
        }
    }
    return _head(job) + yaml.safe_dump(flow, sort_keys=False, width=1000)


def _kept(job: Job) -> list[str]:
    """Files to keep of a run of the job."""
    return ["gate.xml", "gate-summary.md", REPORT, CANDIDATE, *([job.results] if job.results else [])]


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
