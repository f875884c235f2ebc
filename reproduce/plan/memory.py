"""What each GPU holds while it trains, counted: the model whole on every GPU, or in shards (FSDP2), with adapters or all of its weights.

Counts follow `savi.training`: what is trained is kept in float32 and computed in bfloat16, Adam keeps two numbers a weight, the vision
tower stays whole everywhere, layers are computed a second time in the backward pass. Nothing is loaded; the tests count the bytes of small
models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

from reproduce.scale import Scale
from savi.training.settings import Sharding

HALF, WHOLE, ADAM = 2, 4, 8
"""Bytes: of a number in bfloat16 and in float32, and of Adam's two."""
VOCABULARY = 92_553
"""InternLM2's; Qwen2.5's 151,674 makes the head of the small models larger than counted here."""
FREE_SHARE = 0.92
"""Of a GPU's memory, what a run can have: the driver and fragments take the rest."""
LOGIT_BYTES = 16
"""Of a scored position's logit, at most: in bfloat16, as the model gave it and in the order it is read, in float32, and the gradients."""
CARDS_GB = (80, 141)
"""GPUs that a plan names: an H100 and an H200."""


@dataclass(frozen=True)
class ModelSizes:
    """Parameters: of the language model with embeddings and head, of what is frozen for good, of adapters (0: all weights are trained)."""

    language: float
    frozen: float
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    adapters: float = 0.0

    @property
    def trained(self) -> float:
        return self.adapters or self.language

    @property
    def layer(self) -> float:
        """Parameters of one layer."""
        return (self.language - 2 * self.vocabulary * self.hidden) / self.layers


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one GPU. `in_use`: bfloat16 copies of weights, layers gathered from the other GPUs, gradients on their way; `start`: before
    the model is in shards, every GPU has it whole. Encoded videos are kept in the machine's memory."""

    weights: float
    gradients: float
    optimiser: float
    in_use: float
    activations: float
    start: float = 0.0

    @property
    def peak(self) -> float:
        return max(self.start, self.weights + self.gradients + self.optimiser + self.in_use + self.activations)

    def fits(self, gpu_gb: float) -> bool:
        """Whether a GPU of so many GB holds it."""
        return self.peak <= FREE_SHARE * gpu_gb * 1e9


def training_memory(sizes: ModelSizes, *, gpus: int, sharding: Sharding, activations: float) -> TrainingMemory:
    """What one of `gpus` GPUs holds.

    Raises:
        ValueError: a sharding that no plan counts.
    """
    if sharding not in ("none", "fsdp2"):
        raise ValueError(f"sharding {sharding!r}: a plan counts none and fsdp2")
    base = 0.0 if sizes.trained == sizes.language else HALF * sizes.language  # adapters leave it as it is
    frozen = HALF * sizes.frozen
    masters, gradients, optimiser = WHOLE * sizes.trained, WHOLE * sizes.trained, ADAM * sizes.trained
    if sharding == "none":
        copies = HALF * sizes.trained + (gradients if gpus > 1 else 0.0)  # DDP's buckets hold every gradient a second time
        return TrainingMemory(base + masters + frozen, gradients, optimiser, copies, activations)
    table = sizes.vocabulary * sizes.hidden
    gathered = HALF * (2 * sizes.layer + 2 * table) + (HALF * (sizes.layer + table) if not sizes.adapters else 0.0)
    shards = ((base + masters) / gpus + frozen, gradients / gpus, optimiser / gpus)
    return TrainingMemory(*shards, gathered, activations, start=base + masters + frozen)


def activation_memory(sizes: ModelSizes, *, tokens: int, scored: int, checkpointing: bool) -> float:
    """Bytes of a forward pass over `tokens`, of which the head reads `scored`, as the backward pass needs them: an upper bound."""
    from savi.training.checkpointing import activation_bytes

    def of(layers: int) -> float:
        config = SimpleNamespace(num_hidden_layers=layers, hidden_size=sizes.hidden, intermediate_size=sizes.intermediate)
        return activation_bytes(config, tokens, HALF)

    logits = LOGIT_BYTES * scored * sizes.vocabulary
    if not checkpointing:
        return of(sizes.layers) + logits
    inputs = HALF * tokens * sizes.hidden * sizes.layers
    return inputs + max(of(1), logits)  # the logits are gone before the first layer is computed again


def sizes_of(scale: Scale) -> ModelSizes:
    """A scale's model. The width of its MLP follows from the number of its parameters, keys and values being a quarter as wide."""
    a, r = scale.architecture, scale.training.lora_r.value
    language, hidden, layers = a.language_params_b.value * 1e9, a.hidden.value, a.layers.value
    in_layers = (language - 2 * VOCABULARY * hidden) / layers
    inner = max(round((in_layers - 2.5 * hidden**2) / (3 * hidden)), hidden)
    linear = 2 * 2 * hidden + 2 * 1.25 * hidden + 3 * (hidden + inner)  # in and out of each linear layer, summed
    return ModelSizes(language, a.vision_params_b.value * 1e9, layers, hidden, inner, VOCABULARY, r * layers * linear)


@dataclass(frozen=True)
class Way:
    """One way of training a scale, and what it needs. `fits`: the smallest GPU of `CARDS_GB` that holds it; None: none does."""

    name: str
    memory: TrainingMemory
    fits: int | None

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self.memory), "peak": self.memory.peak, "fits": self.fits}


def ways_to_train(scale: Scale, *, tokens: int, scored: int, gpus: int) -> list[Way]:
    """Adapters (where the scale has them) and all weights, whole and in shards; layers are computed twice."""
    own = sizes_of(scale)
    models = [(f"LoRA r {scale.training.lora_r.value}", own)] if own.adapters else []
    models.append(("all weights", ModelSizes(**{**asdict(own), "adapters": 0.0})))
    shardings: Sequence[Sharding] = ("none", "fsdp2") if gpus > 1 else ("none",)
    ways = []
    for name, sizes in models:
        needed = activation_memory(sizes, tokens=tokens, scored=scored, checkpointing=True)
        for sharding in shardings:
            memory = training_memory(sizes, gpus=gpus, sharding=sharding, activations=needed)
            how = "whole" if sharding == "none" else "sharding fsdp2"
            ways.append(Way(f"{name}, {how}", memory, next((gb for gb in CARDS_GB if memory.fits(gb)), None)))
    return ways
