"""One self-contained HTML file about a run: opens offline, asks nothing of any network, runs only its own script.

`write_report(run_dir)` reads the folder (`harness.report.data`), compares base and last (`compare`), draws (`charts`), packs what can be
browsed (`browse`) and renders `templates/report.html.j2` with autoescape. Style and script are inlined and named by hash in a strict
Content-Security-Policy, so text in the data cannot run even if an escape were missed. Videos are not in the file: it plays them from where
they lie, if that is on the same machine.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import jinja2
from markupsafe import Markup

from harness.report import charts, details, views
from harness.report.browse.frames import Budget, Pictures, collect_pair_pictures, collect_pictures, wanted_videos
from harness.report.browse.media import Link, find_data_folder, link_from, pair_clips, question_clips
from harness.report.browse.pairs import pairs_payload
from harness.report.browse.questions import MAX_PAGE, questions_payload
from harness.report.compare import compare_all, mean_score
from harness.report.data import RunData, provenance_differences
from harness.report.read import read_run
from harness.report.text import legible, script_json
from harness.tables.published import PAPER_DIR
from savi.base.files import write_text_atomic

REPORT_FILE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Live:
    """What a page that a server renders knows of it: the address that tells the files' state, and that state."""

    state: str
    version: str


def _csp_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def style() -> tuple[Markup, str]:
    """The style sheet for inlining, and its CSP source expression."""
    text = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return Markup(text), _csp_hash(text)  # noqa: S704  (a file of this package)


def script() -> tuple[Markup, str]:
    """The script, put together from its parts, and its CSP source expression."""
    parts = [p.read_text(encoding="utf-8") for p in sorted((TEMPLATES / "js").glob("*.js"))]
    text = '"use strict";\n(() => {\n' + "".join(parts) + "})();\n"
    return Markup(text), _csp_hash(text)  # noqa: S704  (files of this package)


def environment() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters["signed"] = charts.signed
    env.filters["legible"] = legible
    env.filters["pct"] = lambda v: "—" if v is None else f"{v:.1f}"
    env.filters["p"] = lambda v: "—" if v is None else "< 0.001" if v < 0.001 else f"{v:.3f}"
    env.filters["count"] = lambda v: "—" if v is None else f"{v:,}"
    env.filters["when"] = lambda s: datetime.fromtimestamp(s, UTC).strftime("%Y-%m-%d %H:%M")
    env.filters["duration"] = details.duration
    return env


def content_policy(css_hash: str, js_hash: str, *, live: bool = False, forms: bool = False) -> str:
    """The Content-Security-Policy of a page: its own style and script, pictures inside it, videos beside it, and nothing else.

    `live`: it may ask its own server whether files have changed; `forms`: it may send a form there.
    """
    connect, form = "connect-src 'self'; " if live else "", "'self'" if forms else "'none'"
    return (
        f"default-src 'none'; img-src data:; media-src 'self'; style-src {css_hash}; script-src {js_hash}; "
        f"{connect}base-uri 'none'; form-action {form}"
    )


def _browsing(run: RunData, data: Path | None, link: Link, budget: Budget | None) -> dict[str, object]:
    """What the template needs for the question and the pair browser."""
    pictures = collect_pictures(run, data, budget) if budget else Pictures(note="Pictures of the videos were left out.")
    of_pairs = collect_pair_pictures(run, budget) if budget else Pictures()
    sheets = pictures.sheets + of_pairs.sheets
    clip = question_clips(data, link)
    numbers = {key: len(pictures.sheets) + i for key, i in of_pairs.index.items()}
    pairs = pairs_payload(run, lambda stage: pair_clips(run.path / stage.key, link), numbers)
    room = MAX_PAGE - sum(map(len, sheets)) - (len(pairs.text) if pairs else 0)
    questions, cut = questions_payload(run, pictures.index, clip=clip, max_chars=room)
    return {
        "pictures": pictures,
        "cut": cut,
        "clips": any(clip(v) for _, v in wanted_videos(run)),
        "pair_rows": pairs,
        "questions": Markup(questions),  # noqa: S704  (made by script_json, as are the next two)
        "sheets": Markup(script_json(sheets)),  # noqa: S704
        "pair_rows_json": Markup(pairs.text if pairs else ""),  # noqa: S704
    }


def render(
    run: RunData, *, link: Link, data: Path | None = None, live: Live | None = None, home: str = "", budget: Budget | None = None
) -> str:
    """The whole page as text.

    `data` is the folder that videos lie in (HF_HOME); found from the run where None. `link` gives the address that a video may be played
    from. `live`: the page is served, and looks whether the run has gone on. `home`: the address of an index of runs. `budget`: for
    pictures of the videos in the page; without one there are none.
    """
    stages = run.measured
    changes = compare_all(stages[0].evaluations, stages[-1].evaluations, run.benchmarks) if len(stages) > 1 else {}
    summary = views.summary(run, changes)
    rows = views.score_rows(run, changes)
    css, css_hash = style()
    js, js_hash = script()
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            summary=summary,
            css=css,
            js=js,
            policy=content_policy(css_hash, js_hash, live=live is not None),
            live=live,
            home=home,
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
            differences=provenance_differences(stages),
            unmatched=sum(c.unmatched for c in changes.values()),
            synthetic=run.synthetic,
            first=stages[0] if stages else None,
            last=stages[-1] if stages else None,
            kind=views.kind,
            **_browsing(run, data or find_data_folder(run.path, run.run), link, budget),
        )
    )


def write_report(run_dir: Path, out: Path | None = None, *, data: Path | None = None, published_folder: Path = PAPER_DIR) -> Path:
    """Write the report of a run folder to `out` (default: report.html in it) and return the path.

    Parts of the run that are missing or unreadable are shown as not there.

    Raises:
        ReportError: the folder is not there or holds nothing that a run writes.
    """
    path = out or run_dir / REPORT_FILE
    write_text_atomic(path, render(read_run(run_dir, published_folder=published_folder), link=link_from(path), data=data, budget=Budget()))
    return path
