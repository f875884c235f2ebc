"""A simulation as Markdown, JSON and one SVG plot, for the docs."""

from __future__ import annotations

import json
from pathlib import Path

from harness.gate.simulation.simulate import AGAIN, Rate, Simulation
from savi.base.files import write_text_atomic

NAME = "gate_simulation"


def markdown(simulation: Simulation) -> str:
    """Both tables: error rates and savings."""
    p = simulation.settings
    out = [
        "# What the gate does when the truth is known\n\n",
        f"Made by `python -m harness simulate --sims {p['sims']} --saving-sims {p['saving_sims']} --seed {p['seed']} --discordance "
        f"{100 * p['discordance']:g} --rho {p['rho']:g} --margin {p['saving_margin']:g} --alpha {p['alpha']:g}`. {p['sims']:,} "
        "simulations a row; real numbers "
        "of questions, videos and tasks of the six benchmarks; each benchmark's own margin in the first table. A limit counts as kept "
        "within two standard errors at the limit. Powers lie at their limit by construction, so chance puts some of many rows outside: "
        f"such a row is measured again with {AGAIN} times the simulations and other random numbers, says so, and counts as measured then. "
        f"{_not_kept(simulation)}\n\n",
        "| what | benchmark | measured | limit | kept | |\n|---|---|---:|---:|---|---|\n",
    ]
    for what in dict.fromkeys(r.what for r in simulation.rates):
        out += [_rate(r) for r in simulation.rates if r.what == what]
    out.append(
        f"\n## Early stopping: share of the questions asked until every verdict is certain\n\nMargin {p['saving_margin']:g} points, "
        f"alpha {p['alpha']:g}; "
        f"mean over {p['saving_sims']:,} simulations (in brackets: exceeded in one of ten), in percent. Effects are the true whole-set "
        "differences. `all`: every benchmark decided by itself (`check --require each`); `mean`: only the mean over them (`check`).\n\n"
    )
    names = list(dict.fromkeys(x.benchmark for x in simulation.savings))
    out.append(f"| effect | discordant | {' | '.join(names)} |\n|---:|---:|{'---:|' * len(names)}\n")
    for effect, discordance in dict.fromkeys((x.effect, x.discordance) for x in simulation.savings):
        row = {x.benchmark: x for x in simulation.savings if (x.effect, x.discordance) == (effect, discordance)}
        cells = [f"{100 * row[n].share:.1f} ({100 * row[n].p90:.0f})" for n in names]
        out.append(f"| {effect:+g} | {discordance:g} % | {' | '.join(cells)} |\n")
    return "".join(out)


def _not_kept(simulation: Simulation) -> str:
    rows = [f"{r.what} ({r.benchmark})" for r in simulation.rates if not r.holds]
    return f"Not kept: {'; '.join(rows)}." if rows else "Every limit is kept."


def _rate(rate: Rate) -> str:
    limit = "" if rate.limit is None else f"{'>=' if rate.at_least else '<='} {rate.limit:.3f}"
    holds = "yes" if rate.holds else "**no**"
    return f"| {rate.what} | {rate.benchmark} | {rate.share:.4f} +- {rate.se:.4f} | {limit} | {holds} | {rate.detail} |\n"


def write(simulation: Simulation, folder: Path) -> None:
    """Write gate_simulation.md, .json and .svg into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    plot(simulation, folder / f"{NAME}.svg")
    write_text_atomic(folder / f"{NAME}.json", json.dumps(simulation.to_dict(), indent=1) + "\n")
    write_text_atomic(folder / f"{NAME}.md", markdown(simulation) + f"\n![savings and error rates]({NAME}.svg)\n")


def plot(simulation: Simulation, path: Path) -> None:
    """Savings by effect for each discordance, and error rates against their limit; no time stamp, so that the same run gives the same
    file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with matplotlib.rc_context({"svg.hashsalt": "gate", "font.size": 9}):
        fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
        for discordance in dict.fromkeys(x.discordance for x in simulation.savings):
            rows = sorted((x for x in simulation.savings if x.benchmark == "all" and x.discordance == discordance), key=lambda x: x.effect)
            left.plot([x.effect for x in rows], [100 * x.share for x in rows], marker="o", label=f"{discordance:g} % discordant")
        left.axvline(-simulation.settings["saving_margin"], color="0.6", linestyle=":")
        left.set(
            xlabel="true difference over the whole set (points)",
            ylabel="questions asked (%)",
            ylim=(0, 105),
            title="Early stopping, all six benchmarks",
        )
        left.legend(frameon=False)
        limited = [r for r in simulation.rates if r.limit is not None and not r.at_least]
        kinds = list(dict.fromkeys(r.what for r in limited))
        for i, what in enumerate(kinds):
            kind = [r for r in limited if r.what == what]
            heights = [i + 0.08 * (k - len(kind) / 2) for k in range(len(kind))]
            right.errorbar([100 * r.share for r in kind], heights, xerr=[200 * r.se for r in kind], fmt="o", markersize=3, linewidth=1)
        right.axvline(100 * simulation.settings["alpha"], color="0.6", linestyle=":")
        right.set(
            yticks=range(len(kinds)),
            yticklabels=kinds,
            xlabel="share of simulations (%), bars: 2 standard errors",
            title="Error rates; dotted: alpha",
        )
        right.invert_yaxis()
        fig.savefig(path, format="svg", metadata={"Date": None, "Creator": "harness simulate"})
        plt.close(fig)
