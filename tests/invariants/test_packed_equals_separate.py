"""A packed batch gives each completion the log-probability and the gradient it has in a sequence of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from savi.engine.video_lm import VideoLM
from savi.training.losses import Logps, step_loss
from savi.training.packing import PackedRow, PairTokens, batches, pack, packed_logps, separate_logps
from savi.training.settings import DPOSettings
from savi.training.tree_attention import MaskDroppedError, Tree, register_tree_attention, tree_attention, use_tree_attention
from tests.invariants.packed import encode, gradients, make_rows, relative_difference
from tests.savi.tiny import FAMILIES, tiny_family_lm, tiny_video_lm


@pytest.fixture(scope="module")
def lm() -> VideoLM:
    return tiny_video_lm(layers=2)


def load(family: str) -> VideoLM:
    lm = tiny_video_lm(family.removeprefix("internvl-"), layers=2) if family.startswith("internvl") else tiny_family_lm(family)
    lm.model.requires_grad_(False)
    lm.family.text_model(lm.model).requires_grad_(True)
    return lm


def loss_of(logps: torch.Tensor, rows: list[PackedRow]) -> torch.Tensor:
    lengths = torch.tensor([(len(pair.chosen), len(pair.rejected)) for row in rows for pair in row.pairs])
    objective = DPOSettings(beta=0.3, rpo_alpha=0.5).objective
    reference = torch.linspace(-9.0, -5.0, 2 * len(lengths), dtype=logps.dtype).view(-1, 2)
    return step_loss(Logps(logps, reference, lengths), objective, step_pairs=len(lengths), step_chosen_tokens=int(lengths[:, 0].sum()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", [False, True])
def test_log_probabilities_and_gradients(family: str, split: bool) -> None:
    lm = load(family)
    rows = make_rows(lm)
    with use_tree_attention(lm.model):
        packed = packed_logps(lm.model, pack(rows, lm.family, dtype=torch.float32, split=split), lm.family)
    separate = separate_logps(lm.model, rows, lm.family)
    torch.testing.assert_close(packed, separate, rtol=1e-5, atol=1e-5)
    assert packed.std() > 0.1, "a constant would pass too"
    ours, theirs = gradients(lm.model, loss_of(packed, rows)), gradients(lm.model, loss_of(separate, rows))
    assert len(ours) > 10
    assert relative_difference(ours, theirs) < 1e-5


def test_double_precision(lm: VideoLM) -> None:
    """To 1e-10, as far as the model's norms (they compute in float32 and round there) let float64 through: they are replaced by ones that
    do."""
    double = tiny_video_lm(layers=2)
    double.model.double()
    double.model.requires_grad_(False)
    text = double.family.text_model(double.model)
    text.requires_grad_(True)
    for module in text.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _double_norm(module)  # type: ignore[method-assign]
    rotary = text.rotary_emb
    rotary.forward = _double_rotary(rotary.inv_freq.double())  # type: ignore[method-assign]
    rows = make_rows(double)
    with use_tree_attention(double.model):
        for split in (False, True):
            packed = packed_logps(double.model, pack(rows, double.family, dtype=torch.float64, split=split), double.family)
            separate = separate_logps(double.model, rows, double.family)
            torch.testing.assert_close(packed, separate, rtol=1e-10, atol=1e-10)
            ours, theirs = gradients(double.model, loss_of(packed, rows)), gradients(double.model, loss_of(separate, rows))
            assert relative_difference(ours, theirs) < 1e-10


def _double_norm(module: torch.nn.Module):
    return lambda x: module.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)


def _double_rotary(frequencies: torch.Tensor):
    def forward(x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[..., None].double() * frequencies
        both = torch.cat([angles, angles], dim=-1)
        return both.cos(), both.sin()

    return forward


def test_rows_alone_and_together(lm: VideoLM) -> None:
    """Padding and neighbours change nothing."""
    rows = make_rows(lm, (1, 4, 2))
    with use_tree_attention(lm.model), torch.no_grad():
        together = packed_logps(lm.model, pack(rows, lm.family, dtype=torch.float32), lm.family)
        alone = torch.cat([packed_logps(lm.model, pack([row], lm.family, dtype=torch.float32), lm.family) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_pairs_in_any_order(lm: VideoLM) -> None:
    row = make_rows(lm, (4,))[0]
    order = [2, 0, 3, 1]
    shuffled = PackedRow(row.prefix, tuple(row.pairs[i] for i in order))
    with use_tree_attention(lm.model), torch.no_grad():
        one = packed_logps(lm.model, pack([row], lm.family, dtype=torch.float32), lm.family)
        other = packed_logps(lm.model, pack([shuffled], lm.family, dtype=torch.float32), lm.family)
    torch.testing.assert_close(one[order], other, rtol=1e-5, atol=1e-5)


def test_empty_questions_and_a_video_without_pairs(lm: VideoLM) -> None:
    """A reply may follow the prefix at once; a row without pairs among others adds nothing; rows without any pair are refused."""
    rows = make_rows(lm, (2, 1), empty_questions=True)
    rows.insert(1, PackedRow(encode(lm, 7), ()))
    with use_tree_attention(lm.model), torch.no_grad():
        packed = packed_logps(lm.model, pack(rows, lm.family, dtype=torch.float32), lm.family)
        torch.testing.assert_close(packed, separate_logps(lm.model, rows, lm.family), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="at least one pair"):
        pack([PackedRow(encode(lm, 7), ())], lm.family, dtype=torch.float32)


def test_chosen_only(lm: VideoLM) -> None:
    """SFT packs no rejected answers; their log-probability is 0."""
    rows = [PackedRow(row.prefix, tuple(replace(pair, rejected=()) for pair in row.pairs)) for row in make_rows(lm)]
    with use_tree_attention(lm.model), torch.no_grad():
        packed = packed_logps(lm.model, pack(rows, lm.family, dtype=torch.float32), lm.family)
    torch.testing.assert_close(packed, separate_logps(lm.model, rows, lm.family), rtol=1e-5, atol=1e-5)
    assert (packed[:, 1] == 0).all()
    assert (packed[:, 0] < 0).all()


def test_prefixes_of_different_lengths_are_not_mixed(lm: VideoLM) -> None:
    short, long = make_rows(lm, (1,), frames=2)[0], make_rows(lm, (1,), frames=4)[0]
    with pytest.raises(ValueError, match="different lengths"):
        pack([short, long], lm.family, dtype=torch.float32)
    assert sorted(map(sorted, batches([short, long, short], max_tokens=10_000))) == [[0, 2], [1]]


def test_batches_are_bounded(lm: VideoLM) -> None:
    rows = make_rows(lm, (1, 2, 3, 1, 2))
    for bound in (1, 100, 200, 10_000):
        groups = batches(rows, bound)
        assert sorted(i for group in groups for i in group) == list(range(5))
        for group in groups:
            assert len(group) == 1 or len(group) * max(rows[i].tokens for i in group) <= bound


# negative controls: the tests above would notice


def test_a_missing_mask_is_noticed(lm: VideoLM) -> None:
    """Plainly causal branches see each other: the numbers differ by far more than the tolerance."""
    rows = make_rows(lm, (3,))
    batch = pack(rows, lm.family, dtype=torch.float32)
    length = batch.input_ids.shape[1]
    causal = torch.full((1, 1, length, length), float("-inf")).triu(1)
    with use_tree_attention(lm.model), torch.no_grad():
        right = packed_logps(lm.model, batch, lm.family)
        wrong = packed_logps(lm.model, replace(batch, tree=Tree(batch.tree.prefix_len, causal, split=False)), lm.family)
    assert torch.allclose(right[0, 0], wrong[0, 0], atol=1e-5), "the first branch sees the same either way"
    assert (right - wrong).abs()[1:].max() > 0.1


def test_a_wrong_next_position_is_noticed(lm: VideoLM) -> None:
    rows = make_rows(lm, (2,))
    shifted = [PackedRow(replace(row.prefix, next_pos=row.prefix.next_pos + 1), row.pairs) for row in rows]
    with use_tree_attention(lm.model), torch.no_grad():
        right = packed_logps(lm.model, pack(rows, lm.family, dtype=torch.float32), lm.family)
        wrong = packed_logps(lm.model, pack(shifted, lm.family, dtype=torch.float32), lm.family)
    assert (right - wrong).abs().max() > 1e-3


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention", "flash_attention_2"])
def test_implementations_that_would_drop_the_mask_are_refused(lm: VideoLM, implementation: str) -> None:
    batch = pack(make_rows(lm, (2,)), lm.family, dtype=torch.float32)
    text = lm.model.config.get_text_config()
    before = text._attn_implementation
    text._attn_implementation = implementation
    try:
        with pytest.raises(MaskDroppedError, match=implementation):
            packed_logps(lm.model, batch, lm.family)
    finally:
        text._attn_implementation = before


def test_a_model_that_drops_the_tree_is_noticed(lm: VideoLM) -> None:
    """The check is on what the layers saw, not on what the forward was given."""
    batch = pack(make_rows(lm, (2,)), lm.family, dtype=torch.float32)
    forward = lm.model.model.language_model.forward

    def without_tree(*args: object, tree: object = None, **kwargs: object) -> object:
        return forward(*args, **kwargs)

    lm.model.model.language_model.forward = without_tree  # type: ignore[method-assign]
    try:
        with use_tree_attention(lm.model), pytest.raises(MaskDroppedError, match="no attention layer"):
            packed_logps(lm.model, batch, lm.family)
    finally:
        del lm.model.model.language_model.forward


def test_a_cached_call_without_a_mask_is_refused() -> None:
    """sdpa would crop the keys without a word."""
    register_tree_attention()
    query, key = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4)
    with pytest.raises(MaskDroppedError, match="attention mask"):
        tree_attention(torch.nn.Module(), query, key, key, None)


def test_outside_a_tree_the_model_is_what_it_was(lm: VideoLM) -> None:
    """Plain forward passes, with padding or without, give the numbers of transformers' own sdpa; the implementation is put back."""
    ids = torch.randint(8, 60, (2, 9))
    padded = torch.ones_like(ids)
    padded[0, :3] = 0
    before = lm.model.config.get_text_config()._attn_implementation
    with torch.no_grad():
        plain = [lm.model(input_ids=ids).logits, lm.model(input_ids=ids, attention_mask=padded).logits[1]]
        with use_tree_attention(lm.model):
            ours = [lm.model(input_ids=ids).logits, lm.model(input_ids=ids, attention_mask=padded).logits[1]]
    assert lm.model.config.get_text_config()._attn_implementation == before
    for one, other in zip(plain, ours, strict=True):
        torch.testing.assert_close(one, other)


def test_a_reply_needs_tokens(lm: VideoLM) -> None:
    with pytest.raises(ValueError, match="without tokens"):
        pack([PackedRow(encode(lm, 0), (PairTokens((9,), (), (9,)),))], lm.family, dtype=torch.float32)
