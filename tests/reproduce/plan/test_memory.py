"""What a plan says training holds, against the bytes that small models really hold."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from reproduce.paper import cli
from reproduce.plan.memory import ModelSizes, TrainingMemory, activation_memory, sizes_of, training_memory, ways_to_train
from reproduce.plan.plan import make_plan
from reproduce.scale import load_scale
from reproduce.speed.model import SMOKE, Shape, make_frames, make_model
from savi.loop.preferences import write_pairs
from savi.training.losses import Logps, step_loss
from savi.training.packing import PackedRow, PairTokens, VideoPrefix, pack, packed_logps
from savi.training.settings import DPOSettings
from savi.training.trainer import masters_in_float32, trainable
from savi.training.tree_attention import use_tree_attention
from tests.reproduce.plan.live import LiveBytes
from tests.savi.launched import ENV, ROOT
from tests.savi.scripted import random_pairs, write_clips
from tests.savi.tiny import tiny_checkpoint

WITHIN = 0.2


def sizes(shape: Shape, lm: object, policy: torch.nn.Module) -> ModelSizes:
    """As the model has them."""
    named = dict(policy.named_parameters())
    adapters = sum(p.numel() for name, p in named.items() if "lora_" in name)
    text = sum(p.numel() for name, p in named.items() if ("language_model" in name or "lm_head" in name) and "lora_" not in name)
    frozen = sum(p.numel() for p in named.values()) - text - adapters
    return ModelSizes(text, frozen, shape.layers, shape.hidden, shape.intermediate, shape.vocabulary, adapters)


@pytest.mark.parametrize("answer", [4, 20])
@pytest.mark.parametrize("layers", [2, 6])
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("lora", [0, 4])
def test_a_steps_activations(lora: int, checkpointing: bool, layers: int, answer: int) -> None:
    """All that a forward and a backward pass make and hold: activations, logits, the bfloat16 copies of what is trained. Gradients come as
    activations go. The plan is an upper bound, as `gradient_checkpointing: auto` wants it."""
    shape = replace(SMOKE, layers=layers, dtype="bfloat16")
    lm = make_model(shape, "cpu")
    settings = DPOSettings(lora_r=lora, lora_alpha=8)
    policy = trainable(lm, settings)
    counted = sizes(shape, lm, policy)
    if checkpointing:
        lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    features = lm.features(make_frames(32, shape.image))
    ids = lm.prefix_ids(features).cpu()
    positions, next_pos = lm.family.positions(ids, features)
    said = tuple(range(20, 20 + answer))
    pairs = tuple(PairTokens(tuple(range(20, 40)), said, said[::-1]) for _ in range(6))
    batch = pack([PackedRow(VideoPrefix(ids, positions, next_pos, features), pairs)], lm.family, dtype=torch.bfloat16, device="cpu")
    policy.train()
    with masters_in_float32(lm.model, policy), use_tree_attention(lm.model), LiveBytes() as live:
        with torch.autocast("cpu", torch.bfloat16):
            logps = packed_logps(policy, batch, lm.family)
            known = torch.zeros_like(logps)
            loss = step_loss(Logps(logps, known, batch.lengths), settings.objective, step_pairs=batch.pairs, step_chosen_tokens=1)
        loss.backward()
    tokens, scored = batch.input_ids.numel(), int(batch.lengths.sum())
    needed = activation_memory(counted, tokens=tokens, scored=scored, checkpointing=checkpointing)
    whole = training_memory(counted, gpus=1, sharding="none", activations=needed)
    assert 0.6 < live.peak / (whole.activations + whole.in_use) < 1.15


COUNT = """
import json, os, sys
sys.path.insert(0, os.getcwd())
from pathlib import Path
import savi.training.trainer as trainer
from savi.engine.video_lm import VideoLM
from savi.loop.preferences import read_pairs
from savi.training.settings import DPOSettings
base, pairs, out, settings = sys.argv[1:]

def held(tensors):
    local = [getattr(t, "_local_tensor", t) for t in tensors]
    return sum(t.numel() * t.element_size() for t in local)

class Counting(trainer.Keeper):
    def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        super().on_optimizer_step(args, state, control, **kwargs)
        parameters = list(self.trainer.model.parameters())
        moments = [v for of in self.trainer.optimizer.state.values() for k, v in of.items() if k.startswith("exp_avg")]
        gradients = [p.grad for p in parameters if p.grad is not None]
        found = {"weights": held(parameters), "gradients": held(gradients), "optimiser": held(moments)}
        Path(out, f"bytes-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))

trainer.Keeper = Counting
lm = VideoLM.from_pretrained(Path(base), device="cpu")
named = dict(lm.model.named_parameters())
Path(out).mkdir(exist_ok=True)
trainer.train(lm, read_pairs(pairs), DPOSettings.model_validate_json(settings), out)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    tiny_checkpoint(folder / "base", layers=2, dtype=torch.bfloat16)
    write_pairs(folder / "pairs.jsonl", random_pairs(write_clips(folder / "clips", 2), per_video=1))
    (folder / "count.py").write_text(COUNT)
    return folder


def counted(folder: Path, processes: int, settings: DPOSettings) -> list[dict[str, int]]:
    """Bytes of weights, gradients and optimiser in each process, at the end of a step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = folder / f"{processes}-{settings.sharding}-{settings.lora_r}"
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--master-addr=127.0.0.1"]
    arguments = [f"--master-port={port}", str(folder / "count.py"), str(folder / "base"), str(folder / "pairs.jsonl"), str(out)]
    done = subprocess.run(
        [*run, *arguments, settings.model_dump_json()], cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"bytes-{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("processes", [1, 2])
def test_weights_gradients_and_optimiser(processes: int, lora: int, folder: Path) -> None:
    """A bfloat16 model, whole in one process and in the shards of two."""
    from savi.engine.video_lm import VideoLM

    sharding = "none" if processes == 1 else "fsdp2"
    settings = DPOSettings(learning_rate=1e-3, pairs_per_step=2, lora_r=lora, lora_alpha=8, sharding=sharding)
    lm = VideoLM.from_pretrained(folder / "base", device="cpu")
    text = lm.text_config
    of = SMOKE.__class__(
        text.hidden_size, text.num_hidden_layers, 1, 1, text.intermediate_size, text.vocab_size, 1, 1, 1, 1, dtype="bfloat16"
    )
    planned = training_memory(sizes(of, lm, trainable(lm, settings)), gpus=processes, sharding=sharding, activations=0.0)
    for found in counted(folder, processes, settings):
        for part, count in found.items():
            assert count == pytest.approx(getattr(planned, part), rel=0.02), part


def test_a_model_in_shards_needs_what_is_left_of_it() -> None:
    sizes_8b = replace(sizes_of(load_scale("8b")), adapters=0.0)
    one, eight = (training_memory(sizes_8b, gpus=n, sharding=s, activations=0.0) for n, s in ((1, "none"), (8, "fsdp2")))
    assert one.gradients == pytest.approx(8 * eight.gradients)
    assert one.optimiser == pytest.approx(8 * eight.optimiser)
    assert one.weights / 8 < eight.weights < one.weights / 6, "the vision tower stays whole"
    assert eight.peak >= eight.start == one.weights
    with pytest.raises(ValueError, match="deepspeed"):
        training_memory(sizes_8b, gpus=8, sharding="deepspeed", activations=0.0)


def test_the_8b_scale_on_one_gpu_and_on_eight() -> None:
    """The sizes are InternVL2.5-8B's own; 25 GB were measured for a LoRA step of 6 pairs with checkpointing on an H200, without its
    optimiser and with no videos kept."""
    sizes_8b = sizes_of(load_scale("8b"))
    assert sizes_8b.intermediate == pytest.approx(14336, rel=0.02)
    peft = 64 * 32 * (4 * 4096 + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    assert sizes_8b.adapters == pytest.approx(peft, rel=0.02)
    tokens, scored = 8290 + 6 * (80 + 2 * 150), 6 * 2 * 150
    needed = activation_memory(sizes_8b, tokens=tokens, scored=scored, checkpointing=True)
    step = replace(training_memory(sizes_8b, gpus=1, sharding="none", activations=needed), optimiser=0.0)
    assert step.peak / 1e9 == pytest.approx(25, rel=WITHIN)
    one, eight = ({way.name: way for way in make_plan(load_scale("8b"), gpus=gpus).memory} for gpus in (1, 8))
    assert list(one) == ["LoRA r 64, whole", "all weights, whole"]
    assert (one["LoRA r 64, whole"].fits, one["all weights, whole"].fits) == (80, None)
    assert eight["all weights, sharding fsdp2"].fits == 80
    assert eight["all weights, whole"].fits is None


def test_the_smallest_gpu_that_holds_it() -> None:
    def memory(gb: float) -> TrainingMemory:
        return TrainingMemory(gb * 1e9, 0.0, 0.0, 0.0, 0.0)

    assert [memory(gb).fits(80) for gb in (70, 73, 75)] == [True, True, False]
    assert TrainingMemory(1e9, 0, 0, 0, 0, start=90e9).fits(80) is False
    ways = ways_to_train(load_scale("38b"), tokens=12000, scored=3000, gpus=2)
    assert {way.name: way.fits for way in ways}["LoRA r 64, whole"] == 141


def test_gpus_share_a_runs_hours() -> None:
    hours = {gpus: {c.stage: c.hours for c in make_plan(load_scale("8b"), gpus=gpus).costs} for gpus in (1, 8, 16)}
    for stage in ("propose", "evaluate", "train"):
        assert hours[8][stage] == pytest.approx(hours[1][stage] / 8)
    assert hours[16]["train"] == hours[8]["train"], "8 videos a step: more processes have nothing to do in it"
    assert make_plan(load_scale("micro"), gpus=8).total.hours == make_plan(load_scale("micro")).total.hours
    assert make_plan(load_scale("micro")).memory == []


def test_the_dry_run_says_what_fits() -> None:
    app = typer.Typer()
    cli.register(app)
    done = CliRunner().invoke(app, ["--scale", "8b", "--gpus", "8"])
    assert (done.exit_code, "give --dry-run too; torchrun" in done.output) == (2, True)
    done = CliRunner().invoke(app, ["--scale", "8b", "--dry-run", "--gpus", "8"])
    assert done.exit_code == 0, done.output
    assert "GB on each of 8 GPUs" in done.output
    assert "time: on 8 GPUs" in done.output
    told = json.loads(CliRunner().invoke(app, ["--scale", "8b", "--dry-run", "--gpus", "8", "--json"]).output)
    plan = next(plan for plan in told["plans"] if plan["scale"] == "8b")
    assert [way["fits"] for way in plan["memory"]] == [80, 80, None, 80]


def test_the_cluster_page_says_what_the_plan_says() -> None:
    page = (ROOT / "docs/cluster/README.md").read_text(encoding="utf-8")
    memory = [way.memory for way in make_plan(load_scale("8b"), gpus=8).memory]
    kept = " | ".join(f"{(m.weights + m.gradients + m.optimiser) / 1e9:.1f}" for m in memory)
    most = " | ".join(f"{m.peak / 1e9:.1f}" for m in memory)
    assert f"| weights, gradients, optimiser | {kept} |" in page
    assert f"| at most, with activations and copies | {most} |" in page
