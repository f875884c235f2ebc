"""One self-contained HTML file about a run: opens offline, asks nothing of any network, runs only its own script.

`write_report(run_dir)` reads the folder (`harness.report.data`), compares base and last (`compare`), draws (`charts`), packs the
question browser (`questions`, `frames`) and renders `templates/report.html.j2` with autoescape. Style and script are
inlined and named by hash in a strict Content-Security-Policy, so text in the data cannot run even if an escape were missed.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import jinja2
from markupsafe import Markup

from harness.report import charts, details, views
from harness.report.compare import compare_all, mean_score
from harness.report.data import RunData, provenance_differences
from harness.report.frames import collect_pictures, find_data_folder
from harness.report.questions import MAX_PAGE, questions_payload
from harness.report.read import read_run
from harness.report.text import legible, script_json
from harness.tables.published import PAPER_DIR
from savi.base.files import write_text_atomic

REPORT_FILE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"


def _asset(name: str) -> tuple[Markup, str]:
    """A template asset for inlining, and its CSP source expression."""
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    return Markup(text), f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"  # noqa: S704  (a file of this package)


def _environment() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters["signed"] = charts.signed
    env.filters["legible"] = legible
    env.filters["pct"] = lambda v: "—" if v is None else f"{v:.1f}"
    env.filters["p"] = lambda v: "—" if v is None else "< 0.001" if v < 0.001 else f"{v:.3f}"
    env.filters["count"] = lambda v: "—" if v is None else f"{v:,}"
    env.filters["duration"] = details.duration
    return env


def render(run: RunData, *, data: Path | None = None) -> str:
    """The whole page as text. `data` is the folder that videos lie in (HF_HOME); found from the run where None."""
    stages = run.measured
    changes = compare_all(stages[0].evaluations, stages[-1].evaluations, run.benchmarks) if len(stages) > 1 else {}
    summary = views.summary(run, changes)
    pictures = collect_pictures(run, data or find_data_folder(run.path, run.run))
    questions, cut = questions_payload(run, pictures.index, max_chars=MAX_PAGE - sum(map(len, pictures.sheets)))
    rows = views.score_rows(run, changes)
    css, css_hash = _asset("report.css")
    js, js_hash = _asset("report.js")
    policy = f"default-src 'none'; img-src data:; style-src {css_hash}; script-src {js_hash}; base-uri 'none'; form-action 'none'"
    differences = provenance_differences(stages)
    unmatched = sum(c.unmatched for c in changes.values())
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            summary=summary,
            css=css,
            js=js,
            policy=policy,
            rows=rows,
            score_charts=views.score_charts(run, rows),
            mean_label=f"Mean over {summary.benchmarks}",
            means=[mean_score(s.evaluations, views.complete(run)) for s in stages] if views.complete(run) else [],
            gains=views.gains(run),
            credit=views.credit(run),
            gates=views.gate_views(run),
            heat=views.heat(run),
            discordance=views.discordance(changes),
            pairs=details.pair_view(run),
            curves=details.curves(run),
            statuses=details.statuses(run),
            costs=details.costs(run),
            provenance=details.provenance(run),
            differences=differences,
            unmatched=unmatched,
            pictures=pictures,
            cut=cut,
            synthetic=run.synthetic,
            questions=Markup(questions),  # noqa: S704  (made by script_json)
            sheets=Markup(script_json(pictures.sheets)),  # noqa: S704
            first=stages[0] if stages else None,
            last=stages[-1] if stages else None,
            kind=views.kind,
        )
    )


def write_report(run_dir: Path, out: Path | None = None, *, data: Path | None = None, published_folder: Path = PAPER_DIR) -> Path:
    """Write the report of a run folder to `out` (default: report.html in it) and return the path.

    Parts of the run that are missing or unreadable are shown as not there.

    Raises:
        ReportError: the folder is not there or holds nothing that a run writes.
    """
    path = out or run_dir / REPORT_FILE
    write_text_atomic(path, render(read_run(run_dir, published_folder=published_folder), data=data))
    return path
