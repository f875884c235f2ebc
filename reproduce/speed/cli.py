"""`python -m reproduce speed`: the engine's speed, side by side with what a user would run instead."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Annotated, Any

import typer

from savi.base.cli import stop
from savi.base.errors import ExitCode
from savi.base.files import write_text_atomic
from savi.base.former import former_options, listed

EPILOG = "Takes about a minute (smoke), most of an hour on one CPU core (cpu); fix the number of threads with OMP_NUM_THREADS."


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("speed", epilog=EPILOG)(speed_command)


@former_options(out="--json")
def speed_command(
    preset: Annotated[
        str,
        typer.Option(
            help="cpu (small model, true lengths), gpu (8B shape, true lengths), gpu-quick (a part of gpu, under 4 minutes) "
            "or smoke (all small)."
        ),
    ] = "cpu",
    case: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this case; repeated or with commas. Default: all. gate, report: those commands at full size; start: start-up."
        ),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds a case (default: the preset's).")] = None,
    memory: Annotated[bool, typer.Option("--memory/--no-memory", help="Measure peak memory, in processes of their own.")] = True,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write all figures to this file, as JSON.")] = None,
    svg_file: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Also draw the ratios, ranges and targets here.")] = None,
    try_on_cpu: Annotated[
        bool, typer.Option("--try-on-cpu", help="A GPU preset at the smoke shape on a CPU: shows that it runs, nothing about speed.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be measured, with lengths and FLOPs; run nothing.")] = False,
) -> None:
    """Measure asking, evaluating and DPO on shared prefixes against one prompt at a time, a stock adapter and TRL's DPOTrainer."""
    from dataclasses import replace

    from reproduce.speed import gate as speed_gate
    from reproduce.speed import start
    from reproduce.speed.case import CASES, PRESETS, on_cpu
    from reproduce.speed.cases import run, wanted_cases

    asked, commands_timed = listed(case), (*speed_gate.CASES, start.CASE)
    if preset not in PRESETS:
        stop(f"no preset {preset!r}; choose one of {', '.join(PRESETS)}", ExitCode.USAGE)
    chosen = on_cpu(PRESETS[preset]) if try_on_cpu else PRESETS[preset]
    if rounds is not None:
        chosen = replace(chosen, rounds=rounds, dpo_rounds=rounds)
    try:
        engine = [name for name in asked if name not in commands_timed]
        names = wanted_cases(chosen, engine) if engine or not asked else []
    except KeyError as error:
        stop(f"no case {error.args[0]!r}; choose from {', '.join((*CASES, *commands_timed))}", ExitCode.USAGE)
    timed = asked or (commands_timed if chosen.device == "cpu" else ())
    commands = [name for name in commands_timed if name in timed and (asked or not try_on_cpu)]
    if svg_file is not None and not names:
        stop("--svg draws ratios of the engine's cases: name one", ExitCode.USAGE)
    if dry_run:
        typer.echo(_plan(chosen, [*names, *commands]))
        return
    if names and chosen.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            stop(
                f"preset {preset} needs a CUDA GPU, and torch sees none; use --preset cpu, --try-on-cpu to see that it runs, or --dry-run",
                ExitCode.MACHINE,
            )
    report: dict[str, Any] = run(chosen, names, typer.echo, memory=memory) if names else {"preset": chosen.name, "cases": []}
    if names:
        typer.echo(table(report))
    if start.CASE in commands:
        report["start"] = start.run_start(chosen.rounds, typer.echo)
    if any(name in speed_gate.CASES for name in commands):
        share = speed_gate.SMALL_SHARE if chosen.name == "smoke" else 1.0
        report["commands"] = speed_gate.run_commands(commands, chosen.rounds, typer.echo, share=share)
    if out is not None:
        write_text_atomic(out, json.dumps(report, indent=2, sort_keys=True) + "\n")
    if svg_file is not None:
        from reproduce.speed.plot import plot_ratios

        write_text_atomic(svg_file, plot_ratios(report))


def table(report: dict[str, Any]) -> str:
    """The report as Markdown: a line a case, notes below."""
    from reproduce.speed.pipeline import BUSY, BUSY_TARGET_PCT

    lines = [
        "| case | ours (s) | against (s) | ratio [range] | target | limit by FLOPs | share of limit | memory ours / theirs (MB) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for row in report["cases"]:
        ours, theirs = (statistics.median(row["seconds"][row[key]]) for key in ("ours", "against"))
        memory = row["memory_mb"]
        least = row["memory_against"]
        grown = f"{memory[row['ours']]:.0f} / {memory[least]:.0f}" if row["ours"] in memory and least in memory else "–"
        if grown != "–" and least != row["against"]:
            grown += f" ({least})"
        if row["memory_met"] is not None:
            grown += (
                f" = 1/{row['memory_ratio']:.1f} (target under 1/{row['memory_target']:g}: {'met' if row['memory_met'] else 'not met'})"
            )
        target = "–" if row["target"] is None else f"{row['target']:g}x {'met' if row['met'] else 'not met'}"
        if row["name"] == "prefetch":
            target = _idle(row["extras"])
        if BUSY in row["extras"]:
            busy = row["extras"][BUSY]
            target = f"GPU busy {BUSY_TARGET_PCT:g} %: {'met' if busy >= BUSY_TARGET_PCT else 'not met'} ({busy:.0f} %)"
        limit = "–" if row["limit"] is None else f"{row['limit']:.1f}x"
        share = "–" if row["share_of_limit"] is None else f"{100 * row['share_of_limit']:.0f} %"
        ratio = f"{row['ratio']:.2f}x [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
        lines.append(f"| {row['title']} | {ours:.2f} | {row['against']}: {theirs:.2f} | {ratio} | {target} | {limit} | {share} | {grown} |")
        extras = "; ".join(_extra(key, value) for key, value in row["extras"].items())
        others = [way for way in row["seconds"] if way not in (row["ours"], row["against"])]
        also = "; ".join(f"{way}: {statistics.median(row['seconds'][way]):.2f} s" for way in others)
        further = [f"{way}: {memory[way]:.0f} MB" for way in memory if way not in (row["ours"], row["memory_against"])]
        rate = row["tflops_per_s"].get(row["ours"])
        mfu = "" if rate is None else f"{rate:.3g} TFLOP/s, {100 * rate / report['matmul_peak_tflops']:.0f} % of the matmul peak"
        said = ". ".join(part for part in (*row["notes"], mfu, extras, also, "; ".join(further)) if part)
        if said:
            notes.append(f"- {row['title']}: {said}.")
    head = f"Preset {report['preset']}; {', '.join(f'{key} {value}' for key, value in report['machine'].items())}."
    if report["preset"] == "smoke" or "tried on a CPU" in report["preset"]:
        head += " Lengths and sizes are tiny: this shows that everything runs; its ratios say nothing about speed."
    return "\n".join([head, "", *lines, "", *notes])


def _extra(key: str, value: float) -> str:
    """A further figure with its unit, which its name ends in where it is a percentage."""
    return f"{key.removesuffix('_pct')} {value:.1f} %" if key.endswith("_pct") else f"{key} {value:.3g}"


def _idle(extras: dict[str, float]) -> str:
    """The prefetch case's target is a share of the wall time, and holds where decoding is at most half of it."""
    if extras["decoding in turn_pct"] > 50:
        return "–"
    return f"idle under 5 %: {'met' if extras['idle_pct'] < 5 else 'not met'} ({extras['idle_pct']:.1f} %)"


def _plan(preset: Any, names: list[str]) -> str:
    """What would be measured: shapes, lengths and the limit by FLOPs, from numbers alone."""
    from reproduce.speed.flops import dpo_flops, generation_flops

    shape = preset.shape
    prefix = preset.frames * (shape.frame_tokens + 3) + 2
    lines = [
        f"preset {preset.name} on {preset.device}: hidden {shape.hidden}, {shape.layers} layers, {shape.dtype}; "
        f"{preset.frames} frames of {shape.frame_tokens} tokens, prefix {prefix}, question {preset.question}, answer {preset.answer}",
        f"rounds: {preset.rounds} (DPO {preset.dpo_rounds}); nothing is run",
    ]
    for name in names:
        if name.startswith("generation-"):
            prompts, new = (6, preset.new_tokens[0]) if name == "generation-6x150" else (18, preset.new_tokens[1])
            ours, theirs = generation_flops(shape, frames=preset.frames, prefix=prefix, question=preset.question, new=new, prompts=prompts)
            lines.append(f"  {name}: {ours / 1e12:.3f} against {theirs / 1e12:.3f} TFLOP, limit {theirs / ours:.2f}x")
        elif name.startswith("dpo-"):
            _, pairs, method = name.split("-")
            training = preset.training
            length = preset.frames * (training.frame_tokens + 3) + 2
            counted = {"frames": preset.frames, "prefix": length, "question": preset.question, "answer": preset.answer, "pairs": int(pairs)}
            ours, theirs = dpo_flops(training, **counted, lora=method == "lora", reference=False)
            lines.append(f"  {name}: {ours / 1e12:.3f} against {theirs / 1e12:.3f} TFLOP, limit {theirs / ours:.2f}x")
        else:
            lines.append(f"  {name}")
    return "\n".join(lines)
