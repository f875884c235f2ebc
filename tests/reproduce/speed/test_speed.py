"""The speed table: FLOPs against torch's own count, honest rounds, and a smoke run of every kind of case."""

from __future__ import annotations

import itertools
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from reproduce.speed import cases as speed
from reproduce.speed import cli as speed_cli
from reproduce.speed import probe as speed_probe
from reproduce.speed.case import CASES, GPU_ONLY, PRESETS, Case, on_cpu
from reproduce.speed.cases import build, measure, wanted_cases
from reproduce.speed.dpo import dpo_setup
from reproduce.speed.flops import dpo_flops, generation_flops, prefix_flops, text_flops, vision_flops
from reproduce.speed.model import EIGHT_B, SMOKE, make_frames, make_model, make_text
from savi.engine import causal

app = typer.Typer()
speed_cli.register(app)


@app.command("other")
def other() -> None:
    """A second command, so that typer keeps the first one's name."""


def counted(run: object) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()  # type: ignore[operator]
    return float(counter.get_total_flops())


def test_text_flops_are_what_torch_counts() -> None:
    lm = make_model(SMOKE, "cpu")
    lm.model.set_attn_implementation("eager")
    n = 24
    torch_says = counted(lambda: lm.model(input_ids=torch.arange(20, 20 + n)[None], logits_to_keep=1, use_cache=False))
    not_causal = 4.0 * SMOKE.layers * SMOKE.hidden * (n * n - n * (n + 1) / 2)  # plain products do the hidden half as well
    rotary = 2.0 * n * SMOKE.hidden // SMOKE.heads / 2
    assert text_flops(SMOKE, n) == pytest.approx(torch_says - not_causal, rel=2e-3, abs=2 * rotary)


def test_prefix_flops_are_what_torch_counts() -> None:
    from savi.engine.prefix import PrefixCache, cache_keyword, complete_prefix

    lm = make_model(SMOKE, "cpu")
    lm.model.set_attn_implementation("eager")
    n = 24
    ids, cache = torch.arange(20, 20 + n)[None], {cache_keyword(lm.model): PrefixCache(lm.text_config)}
    torch_says = counted(lambda: complete_prefix(lambda: lm.model(input_ids=ids, use_cache=True, **cache)))
    not_causal = 4.0 * (SMOKE.layers - 1) * SMOKE.hidden * (n * n - n * (n + 1) / 2)
    rotary = 2.0 * n * SMOKE.hidden // SMOKE.heads / 2
    assert prefix_flops(SMOKE, n) == pytest.approx(torch_says - not_causal, rel=2e-3, abs=2 * rotary)
    assert prefix_flops(SMOKE, n) < text_flops(SMOKE, n, scored=0)


def test_vision_flops_are_what_torch_counts() -> None:
    lm = make_model(SMOKE, "cpu")
    lm.model.set_attn_implementation("eager")
    pixels = torch.randn(3, 3, SMOKE.image, SMOKE.image)
    torch_says = counted(lambda: lm.model.get_image_features(pixels, return_dict=True))
    assert vision_flops(SMOKE, 3) == pytest.approx(torch_says, rel=0.02)


def test_a_cache_does_not_change_the_sum() -> None:
    whole = text_flops(EIGHT_B, 500, scored=0)
    parts = text_flops(EIGHT_B, 300, scored=0) + text_flops(EIGHT_B, 200, 300, scored=0)
    assert parts == pytest.approx(whole, rel=1e-12)


def test_limits_at_8b() -> None:
    """The ratios by FLOPs that the targets were set from."""
    shared, alone = generation_flops(EIGHT_B, frames=32, prefix=8290, question=80, new=150, prompts=6)
    assert 5.2 < alone / shared < 5.8
    packed, trl = dpo_flops(EIGHT_B, frames=32, prefix=8290, question=80, answer=150, pairs=6, lora=False, reference=False)
    assert 10 < trl / packed < 16
    stricter, _ = dpo_flops(EIGHT_B, frames=32, prefix=8290, question=80, answer=150, pairs=6, lora=False, reference=True)
    assert stricter > packed


def test_rounds_are_interleaved_and_ratios_taken_within_a_round() -> None:
    order: list[str] = []
    ours, slow, fast = itertools.cycle([1.0, 2.0, 4.0]), itertools.cycle([50.0, 50.0, 50.0]), itertools.cycle([3.0, 6.0, 8.0])

    def way(name: str, seconds: itertools.cycle[float]) -> object:
        def run() -> float:
            order.append(name)
            return next(seconds)

        return run

    ways = {"ours": way("ours", ours), "slow": way("slow", slow), "fast": way("fast", fast)}
    row = measure(Case("c", "c", ways, "ours", ("slow", "fast"), 5.0, times={"fast": 2.0}), 3, "cpu", warm_up=False)  # type: ignore[arg-type]
    assert order == ["ours", "slow", "fast"] * 3
    assert row.against == "fast", "the better opponent counts"
    assert row.seconds["fast"] == [6.0, 12.0, 16.0]
    assert (row.ratio, row.ratio_low, row.ratio_high) == (6.0, 4.0, 6.0)
    assert row.met is True
    assert row.to_json()["met"] is True


def test_the_mix_has_the_benchmarks_questions_and_videos() -> None:
    from benchmarks.catalog import select
    from reproduce.speed.generation import questions_a_video

    dealt = questions_a_video()
    assert sum(dealt.values()) == sum(b.videos for b in select(None))
    assert sum(count * number for count, number in dealt.items()) == sum(b.n for b in select(None))
    assert min(dealt) == 1, "most videos have nothing to share: the mix must not forget them"


def test_texts_have_the_stated_lengths() -> None:
    lm = make_model(SMOKE, "cpu")
    assert len(lm.prompt_ids(make_text(18, 0))) == 19
    assert len(lm.prefix_ids(make_frames(4, SMOKE.image))) == 2 + 4 * (SMOKE.frame_tokens + 3)


@pytest.mark.parametrize("name", ["generation-6x150", "dpo-6-lora", "dpo-1-full", "evaluation-mix", "decode-4x6"])
def test_a_case_runs(name: str) -> None:
    case = build(name, PRESETS["smoke"])
    row = measure(case, 1, "cpu", warm_up=False)
    assert row.ratio > 0
    assert set(row.seconds) == set(case.ways)
    assert all(value[0] > 0 for value in row.seconds.values())
    json.dumps(row.to_json())


def test_a_decoding_step_is_held_to_what_memory_allows() -> None:
    """The limit counts weights and prefixes once and each row's branch: at 8B the figures the prototype's table states."""
    from reproduce.speed import decode

    lm = make_model(SMOKE, "cpu")
    prefix = lm.watch(make_frames(4, SMOKE.image)).prefix
    bytes_of = [decode._step_bytes(lm, [prefix] * videos, tokens) for videos, tokens in ((1, 0), (2, 0), (1, 10))]
    per_token = 2 * SMOKE.layers * SMOKE.kv_heads * (SMOKE.hidden // SMOKE.heads) * 4
    assert bytes_of[1] - bytes_of[0] == per_token * prefix.length
    assert bytes_of[2] - bytes_of[0] == pytest.approx(10 * per_token)
    embeddings = lm.model.get_input_embeddings().weight.numel()
    read = sum(p.numel() for p in lm.family.text_model(lm.model).parameters()) - embeddings + lm.model.lm_head.weight.numel()
    assert bytes_of[0] - per_token * prefix.length == pytest.approx(4 * read, rel=0.01)


def test_stock_steps_are_timed_from_token_to_token() -> None:
    """What reading the video takes is in none of them."""
    case = build("decode-1x6", replace(PRESETS["smoke"], decode_tokens=6))
    whole = time.perf_counter()
    step = case.ways["stock generate"]()
    whole = time.perf_counter() - whole
    assert step is not None
    assert 0 < 5 * step / 6 < whole


def test_an_opponent_that_does_not_fit_is_left_out() -> None:
    def too_large() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    ways = {"ours": lambda: 1.0, "batch 1": lambda: 4.0, "batch 6": too_large}
    row = measure(Case("c", "c", ways, "ours", ("batch 1", "batch 6"), None, memory_against="batch 6"), 2, "cpu", warm_up=True)  # type: ignore[arg-type]
    assert (row.against, row.ratio, row.notes) == ("batch 1", 4.0, ["batch 6: out of memory"])
    assert "batch 6" not in row.seconds
    with pytest.raises(RuntimeError, match="out of memory in batch 6"):
        measure(Case("c", "c", ways, "ours", ("batch 6",), None), 1, "cpu", warm_up=False)  # type: ignore[arg-type]
    with pytest.raises(torch.OutOfMemoryError):
        measure(Case("c", "c", {"ours": too_large, "b": lambda: 1.0}, "ours", ("b",), None), 1, "cpu", warm_up=False)  # type: ignore[dict-item]


def test_checkpointing_on_both_sides_leaves_the_same_gradients() -> None:
    found = []
    for checkpointing in (False, True):
        case, policy = dpo_setup(replace(on_cpu(PRESETS["gpu"]), checkpointing=checkpointing), "dpo-6-lora", 6, lora=True)
        assert list(case.ways)[2:] == ["TRL, batch 1", "TRL, batch 2", "TRL, batch 3", "TRL, batch 6"]
        for way in ("packed", "TRL, batch 3"):
            case.ways[way]()
            found.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    for other in found[1:]:
        assert float((other - found[0]).norm() / found[0].norm()) < 1e-3


def test_a_gpu_preset_can_be_tried_on_a_cpu() -> None:
    done = CliRunner().invoke(app, ["speed", "--preset", "gpu-quick", "--try-on-cpu", "--case", "decode-1x6", "--case", "dpo-6-lora"])
    assert done.exit_code == 0, done.output
    assert "gpu-quick (tried on a CPU)" in done.output
    assert "times the memory limit" in done.output


def test_a_packed_step_leaves_the_gradients_of_trls_step() -> None:
    """The two ways really do the same work: the speed of a wrong gradient is worth nothing."""
    case, policy = dpo_setup(PRESETS["smoke"], "dpo-6-full", 6, lora=False)
    found = []
    for way in ("packed", "packed, reference and features in the step", "TRL, batch 6", "TRL, batch 1"):
        case.ways[way]()
        found.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    assert float(found[0].norm()) > 0
    for other_way in found[1:]:
        assert float((other_way - found[0]).norm() / found[0].norm()) < 1e-3


def test_the_probe_prints_what_a_way_adds(capsys: pytest.CaptureFixture[str]) -> None:
    assert speed_probe.main(["smoke", "generation-6x150", "shared prefix"]) == 0
    assert json.loads(capsys.readouterr().out)["growth_mb"] >= 0


def test_growth_is_the_ways_own() -> None:
    """A peak before, or one of the process that started this one, must not hide it."""
    peak = bytearray(200 * 2**20)
    del peak
    assert speed_probe.cpu_growth_mb(lambda: len(bytearray(60 * 2**20))) == pytest.approx(60, abs=10)
    assert speed_probe.cpu_growth_mb(lambda: None) < 10


def test_a_run_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "growth_mb", lambda preset, name, way: 100.0 if way == "one at a time" else 7.0)
    file, picture = tmp_path / "speed.json", tmp_path / "speed.svg"
    words = ["speed", "--preset", "smoke", "--case", "generation-6x150", "--rounds", "1", "--out", str(file), "--svg", str(picture)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    report = json.loads(file.read_text())
    assert [row["name"] for row in report["cases"]] == ["generation-6x150"]
    assert report["cases"][0]["memory_mb"] == {"shared prefix": 7.0, "one at a time": 100.0}
    assert "7 / 100" in done.output
    assert "<svg" in picture.read_text()
    assert report["matmul_peak_tflops"] > 0


def test_memory_is_measured_where_the_preset_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[tuple[str, str]] = []
    monkeypatch.setattr(speed, "growth_mb", lambda preset, name, way: float(not probed.append((name, way))))
    case = Case("c", "c", {"a": lambda: 1.0, "b": lambda: 2.0}, "a", ("b",), None, memory=("a", "b"))
    monkeypatch.setattr(speed, "build", lambda name, preset: replace(case, name=name))
    monkeypatch.setattr(speed, "machine", lambda preset: {})
    monkeypatch.setattr(speed, "matmul_tflops", lambda device, dtype: 1.0)
    monkeypatch.setattr(speed, "copy_gb_per_s", lambda device: 1.0)
    some = replace(PRESETS["cpu"], rounds=1, memory_cases=PRESETS["smoke"].memory_cases)  # no warm-up
    speed.run(some, ["generation-6x150", "generation-18x16"], print)
    assert probed == [("generation-6x150", "a"), ("generation-6x150", "b")]
    speed.run(some, ["generation-6x150"], print, memory=False)
    assert len(probed) == 2
    speed.run(replace(some, memory_cases=None), ["generation-18x16"], print)
    assert probed[2:] == [("generation-18x16", "a"), ("generation-18x16", "b")]


def test_waiting_is_told_apart_from_the_first_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that takes longer than decoding waits for the first video only."""
    import time

    from reproduce.speed import generation as speed_generation

    monkeypatch.setattr(speed_generation, "reply", lambda *_: time.sleep(0.15))
    case = build("prefetch", PRESETS["smoke"])
    row = measure(case, 1, "cpu", warm_up=False)
    assert set(row.extras) == {"idle_pct", "idle with the first video_pct", "decoding in turn_pct"}
    assert 0 <= row.extras["idle_pct"] < row.extras["idle with the first video_pct"] < 100
    assert 0 < row.extras["decoding in turn_pct"] < 100


def test_dry_run_of_the_gpu_preset_needs_no_gpu() -> None:
    done = CliRunner().invoke(app, ["speed", "--preset", "gpu", "--dry-run"])
    assert done.exit_code == 0
    assert "hidden 4096, 32 layers, bfloat16" in done.output
    shared, alone = generation_flops(EIGHT_B, frames=32, prefix=8290, question=80, new=150, prompts=6)
    assert f"limit {alone / shared:.2f}x" in done.output
    assert "dpo-6-full" not in done.output, "full fine-tuning of 8B does not fit one GPU"


def test_wrong_names_are_usage_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CliRunner().invoke(app, ["speed", "--preset", "tpu"]).exit_code == 2
    done = CliRunner().invoke(app, ["speed", "--case", "nothing"])
    assert done.exit_code == 2
    assert "'nothing'" in done.output
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert CliRunner().invoke(app, ["speed", "--preset", "gpu"]).exit_code == 5


def test_the_kernels_that_read_are_compared_where_both_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(causal, "causal_kernel", lambda *_, **__: asked.append(os.environ["SAVI_ATTENTION"]) or "torch")
    row = measure(build("reading", PRESETS["smoke"]), 2, "cpu", warm_up=False)
    assert list(dict.fromkeys(asked)) == ["flash-attn", "torch"]
    assert row.against == "torch" and row.ratio > 0
    monkeypatch.setattr(speed, "flash_attn_installed", lambda: True)
    assert "reading" in wanted_cases(PRESETS["gpu"], [])
    assert "reading" not in wanted_cases(PRESETS["cpu"], ["reading"])
    monkeypatch.setattr(speed, "flash_attn_installed", lambda: False)
    assert "reading" not in wanted_cases(PRESETS["gpu"], [])


def test_cases_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "flash_attn_installed", lambda: False)
    assert wanted_cases(PRESETS["cpu"], []) == [name for name in CASES if name not in (*GPU_ONLY, "reading")]
    assert wanted_cases(PRESETS["cpu"], ["decode-4x6"]) == ["decode-4x6"]
    assert wanted_cases(PRESETS["gpu"], []) == [
        name for name in CASES if not name.startswith("micro-") and not name.endswith("-full") and name != "reading"
    ]
    assert wanted_cases(on_cpu(PRESETS["gpu"]), []) == wanted_cases(PRESETS["gpu"], [])
    assert wanted_cases(on_cpu(PRESETS["gpu-quick"]), []) == wanted_cases(PRESETS["gpu-quick"], [])
    assert wanted_cases(replace(PRESETS["cpu"], full_fine_tuning=False), ["dpo-6-full", "dpo-6-lora", "generation-18x16"]) == [
        "generation-18x16",
        "dpo-6-lora",
    ]
