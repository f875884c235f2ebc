"""A simulation as Markdown, JSON and one SVG plot, for the docs."""

from __future__ import annotations

import json
from pathlib import Path

from harness.gate.simulation.simulate import Rate, Simulation
from savi.base.files import write_text_atomic

NAME = "gate_simulation"


def markdown(s: Simulation) -> str:
    """Both tables: error rates and savings."""
    p = s.settings
    out = [
        "# What the gate does when the truth is known\n\n",
        f"Made by `python -m harness simulate --sims {p['sims']} --saving-sims {p['saving_sims']} --seed {p['seed']} --discordance "
        f"{100 * p['discordance']:g} --rho {p['rho']:g} --margin {p['saving_margin']:g} --alpha {p['alpha']:g}`. {p['sims']:,} "
        "simulations a row; real numbers "
        "of questions, videos and tasks of the six benchmarks; each benchmark's own margin in the first table. A limit counts as kept "
        "within two standard "
        "errors.\n\n",
        "| what | benchmark | measured | limit | kept | |\n|---|---|---:|---:|---|---|\n",
    ]
    for what in dict.fromkeys(r.what for r in s.rates):
        out += [_rate(r) for r in s.rates if r.what == what]
    out.append(
        f"\n## Early stopping: share of the questions asked until every verdict is certain\n\nMargin {p['saving_margin']:g} points, "
        f"alpha {p['alpha']:g}; "
        f"mean over {p['saving_sims']:,} simulations (in brackets: exceeded in one of ten), in percent. Effects are the true whole-set "
        "differences. `all`: every benchmark decided by itself (`check --require each`); `mean`: only the mean over them (`check`).\n\n"
    )
    names = list(dict.fromkeys(x.benchmark for x in s.savings))
    out.append(f"| effect | discordant | {' | '.join(names)} |\n|---:|---:|{'---:|' * len(names)}\n")
    for effect, discordance in dict.fromkeys((x.effect, x.discordance) for x in s.savings):
        row = {x.benchmark: x for x in s.savings if (x.effect, x.discordance) == (effect, discordance)}
        cells = [f"{100 * row[n].share:.1f} ({100 * row[n].p90:.0f})" for n in names]
        out.append(f"| {effect:+g} | {discordance:g} % | {' | '.join(cells)} |\n")
    return "".join(out)


def _rate(r: Rate) -> str:
    limit = "" if r.limit is None else f"{'>=' if r.at_least else '<='} {r.limit:.3f}"
    return f"| {r.what} | {r.benchmark} | {r.share:.4f} +- {r.se:.4f} | {limit} | {'yes' if r.holds else '**no**'} | {r.detail} |\n"


def write(s: Simulation, folder: Path) -> None:
    """Write gate_simulation.md, .json and .svg into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    plot(s, folder / f"{NAME}.svg")
    write_text_atomic(folder / f"{NAME}.json", json.dumps(s.to_dict(), indent=1) + "\n")
    write_text_atomic(folder / f"{NAME}.md", markdown(s) + f"\n![savings and error rates]({NAME}.svg)\n")


def plot(s: Simulation, path: Path) -> None:
    """Savings by effect for each discordance, and error rates against their limit; no time stamp, so that the same run gives the same
    file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with matplotlib.rc_context({"svg.hashsalt": "gate", "font.size": 9}):
        fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
        for discordance in dict.fromkeys(x.discordance for x in s.savings):
            rows = sorted((x for x in s.savings if x.benchmark == "all" and x.discordance == discordance), key=lambda x: x.effect)
            left.plot([x.effect for x in rows], [100 * x.share for x in rows], marker="o", label=f"{discordance:g} % discordant")
        left.axvline(-s.settings["saving_margin"], color="0.6", linestyle=":")
        left.set(
            xlabel="true difference over the whole set (points)",
            ylabel="questions asked (%)",
            ylim=(0, 105),
            title="Early stopping, all six benchmarks",
        )
        left.legend(frameon=False)
        limited = [r for r in s.rates if r.limit is not None and not r.at_least]
        kinds = list(dict.fromkeys(r.what for r in limited))
        for i, what in enumerate(kinds):
            kind = [r for r in limited if r.what == what]
            heights = [i + 0.08 * (k - len(kind) / 2) for k in range(len(kind))]
            right.errorbar([100 * r.share for r in kind], heights, xerr=[200 * r.se for r in kind], fmt="o", markersize=3, linewidth=1)
        right.axvline(100 * s.settings["alpha"], color="0.6", linestyle=":")
        right.set(
            yticks=range(len(kinds)),
            yticklabels=kinds,
            xlabel="share of simulations (%), bars: 2 standard errors",
            title="Error rates; dotted: alpha",
        )
        right.invert_yaxis()
        fig.savefig(path, format="svg", metadata={"Date": None, "Creator": "harness simulate"})
        plt.close(fig)
