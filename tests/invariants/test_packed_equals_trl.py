"""A packed step has the loss and the gradients of TRL's own DPOTrainer on the same batch: a tiny InternVL, images, TRL's collator and
loss."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from savi.base.torchvision import fix_torchvision
from savi.engine.video_lm import VideoLM
from savi.families import Timing, VideoFeatures
from savi.training.losses import LOSSES, Logps, step_loss
from savi.training.packing import PackedRow, PairTokens, VideoPrefix, pack, packed_logps
from savi.training.settings import DPOSettings
from savi.training.tree_attention import use_tree_attention
from tests.invariants.packed import gradients, relative_difference
from tests.savi.tiny import tiny_frames, tiny_prompts, tiny_video_lm

FRAMES = 3


@pytest.fixture(scope="module")
def lm() -> VideoLM:
    return tiny_video_lm(layers=2)


@pytest.fixture(scope="module")
def processor(lm: VideoLM) -> Any:
    fix_torchvision()
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    tokenizer = copy.deepcopy(lm.tokenizer)
    # the processor wants names for these; the words around a frame's tokens become part of the prefix
    for name, token in (
        ("start_image_token", "from"),
        ("end_image_token", "to"),
        ("context_image_token", "<img>"),
        ("video_token", "Frame64"),
    ):
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    size = {"height": 64, "width": 64}
    image = GotOcr2ImageProcessor(size=size, crop_to_patches=False)
    return InternVLProcessor(
        image_processor=image, tokenizer=tokenizer, video_processor=InternVLVideoProcessor(size=size), image_seq_length=4
    )


def preference_rows(count: int) -> list[dict[str, Any]]:
    from PIL import Image

    images = [Image.fromarray(frame) for frame in tiny_frames(5, FRAMES)]
    prompts, chosen, rejected = tiny_prompts(count, 1), tiny_prompts(count, 2, 4), tiny_prompts(count, 3, 7)
    video = " ".join(["what <img>"] * FRAMES)
    return [
        {"images": images, "prompt": f"<bos> {video} {q} <assistant>", "chosen": f" {c} <eos>", "rejected": f" {r} <eos>"}
        for q, c, r in zip(prompts, chosen, rejected, strict=True)
    ]


def trl_trainer(lm: VideoLM, processor: Any, rows: list[dict[str, Any]], settings: DPOSettings, folder: Path) -> Any:
    from datasets import Dataset
    from trl import DPOTrainer

    args = settings.trl_config(folder, total_steps=1, use_cpu=True, bf16=False)
    args.precompute_ref_log_probs = False  # TRL refuses it for vision
    args.max_length = None
    policy, reference = copy.deepcopy(lm.model), other_weights(lm)
    policy.requires_grad_(False)
    lm.family.text_model(policy).requires_grad_(True)
    policy.lm_head.requires_grad_(True)
    dataset = Dataset.from_list([{**row, "images": row["images"]} for row in rows])
    return DPOTrainer(model=policy, ref_model=reference, args=args, train_dataset=dataset, processing_class=processor)


def other_weights(lm: VideoLM) -> Any:
    """A reference whose language model differs from the policy's, so that log-ratios are not all zero; the frozen tower is shared."""
    reference = copy.deepcopy(lm.model)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in lm.family.text_model(reference).parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator) * parameter.abs().mean())
    return reference.eval()


def packed_row(lm: VideoLM, model: Any, batch: dict[str, torch.Tensor], count: int) -> PackedRow:
    """TRL's batch (prompts doubled, [chosen; rejected]) as one packed row: the prefix ends at the last visual token."""
    ids, attention, completion = batch["input_ids"], batch["attention_mask"].bool(), batch["completion_mask"].bool()
    p = int((ids[0] == lm.family.visual_token_id).nonzero()[-1]) + 1
    assert all(bool((ids[i][attention[i]][:p] == ids[0][attention[0]][:p]).all()) for i in range(2 * count))
    pairs = [
        PairTokens(
            tuple(ids[i][attention[i] & ~completion[i]][p:].tolist()),
            tuple(ids[i][attention[i] & completion[i]].tolist()),
            tuple(ids[i + count][attention[i + count] & completion[i + count]].tolist()),
        )
        for i in range(count)
    ]
    with torch.no_grad():
        embeds = model.get_image_features(batch["pixel_values"][:FRAMES], return_dict=True).pooler_output.flatten(0, 1)
    features = VideoFeatures(embeds, FRAMES, Timing.every(FRAMES))
    return PackedRow(VideoPrefix(ids[0, :p], torch.arange(p), p, features), tuple(pairs))


CASES = [
    DPOSettings(beta=0.2),
    DPOSettings(beta=0.2, rpo_alpha=0.7),
    DPOSettings(beta=0.2, loss_type="hinge"),
    DPOSettings(beta=0.2, loss_type="ipo"),
    DPOSettings(beta=0.2, loss_type="robust", loss_parameters={"label_smoothing": 0.2}),
    DPOSettings(method="sft"),
    DPOSettings(beta=2.0, loss_type="simpo", loss_parameters={"gamma": 0.8}),
]


def test_every_loss_that_trl_has_is_compared() -> None:
    assert {case.loss_type for case in CASES} == set(LOSSES)


def their_loss(trainer: Any, settings: DPOSettings, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """TRL's loss of a batch: DPOTrainer's, or for a loss that only its CPOTrainer has, that one's, from the same model's logits."""
    if settings.objective.loss is None or settings.objective.loss.trl:
        return trainer.compute_loss(trainer.model, dict(batch))
    assert settings.loss_type == "simpo"
    cpo = pytest.importorskip("trl.experimental.cpo").CPOTrainer
    labels = batch["input_ids"].masked_fill(~batch["completion_mask"].bool(), -100)
    inputs = {name: value for name, value in batch.items() if name != "completion_mask"}
    chosen, rejected = cpo.get_batch_logps(trainer.model(**inputs).logits, labels, average_log_prob=True).chunk(2)
    gamma = settings.objective.parameters["gamma"]
    options = SimpleNamespace(
        loss_type="simpo", beta=settings.beta, simpo_gamma=gamma, label_smoothing=0.0, alpha=0.0, accelerator=SimpleNamespace(device="cpu")
    )
    return cpo.cpo_loss(options, chosen, rejected)[0].mean()


@pytest.mark.parametrize("settings", CASES, ids=lambda s: f"{s.method}-{s.loss_type}-{s.rpo_alpha}")
def test_loss_and_gradients(lm: VideoLM, processor: Any, settings: DPOSettings, tmp_path: Path) -> None:
    count = 4
    rows = preference_rows(count)
    trainer = trl_trainer(lm, processor, rows, settings, tmp_path)
    batch = trainer.data_collator([dict(row) for row in rows])
    policy, reference = trainer.model, trainer.ref_model
    theirs = their_loss(trainer, settings, batch)
    their_gradients = gradients(policy, theirs)

    row = packed_row(lm, policy, batch, count)
    packed = pack([row], lm.family, dtype=torch.float32)
    with use_tree_attention(reference), torch.no_grad():
        reference_logps = packed_logps(reference, packed, lm.family)
    with use_tree_attention(policy):
        policy_logps = packed_logps(policy, packed, lm.family)
        logps = Logps(policy_logps, reference_logps if settings.objective.needs_reference else None, packed.lengths)
        ours = step_loss(logps, settings.objective, step_pairs=count, step_chosen_tokens=int(packed.lengths[:, 0].sum()))
        our_gradients = gradients(policy, ours)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5, abs=1e-5)
    assert {name for name, value in their_gradients.items() if value.abs().max() > 0} <= set(our_gradients)
    assert relative_difference(our_gradients, {name: their_gradients[name] for name in our_gradients}) < 1e-4
    assert float(np.ptp((policy_logps - reference_logps).detach().numpy())) > 0.01, "the reference must differ from the policy"
