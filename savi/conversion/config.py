"""The config of an `internvl_chat` checkpoint, read strictly, and the native config it becomes.

What the native classes do not compute the same way is refused here, by name, before any weight is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from savi.base.digests import parse_json
from savi.base.errors import ExitCode, SaviError
from savi.base.torchvision import fix_torchvision
from savi.conversion.keys import Heads, LanguageModel
from savi.conversion.rope import RopeError, rope_parameters

if TYPE_CHECKING:
    from transformers import InternVLConfig


class CheckpointError(SaviError):
    """A checkpoint that cannot be read or converted: names the file, what is wrong and the fix."""

    exit_code = ExitCode.BROKEN


class TargetError(CheckpointError):
    """The folder to write to is taken by something else."""

    exit_code = ExitCode.USAGE


class NoRoomError(CheckpointError):
    """The disk is too small."""

    exit_code = ExitCode.MACHINE


class _Foreign(BaseModel):
    """A file of another project: fields we do not use are none of our business."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class TextConfig(_Foreign):
    """`llm_config`. Sizes have no defaults: a guessed size is a wrong model."""

    architectures: list[str] = Field(min_length=1)
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    max_position_embeddings: PositiveInt
    rms_norm_eps: float
    hidden_act: str = "silu"
    head_dim: PositiveInt | None = None
    bias: bool = True
    """InternLM2's own default; its published configs say false."""
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = None
    rope: dict[str, Any] = Field(default_factory=dict)
    """Not a field of the file: its rotary settings, read from wherever they stand (`savi.conversion.rope`)."""


class VisionConfig(_Foreign):
    """`vision_config` (InternViT)."""

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    image_size: PositiveInt
    patch_size: PositiveInt
    qkv_bias: bool
    qk_normalization: bool
    norm_type: Literal["layer_norm", "rms_norm"] = "rms_norm"
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu"
    num_channels: PositiveInt = 3
    initializer_factor: float = 0.1


class ChatConfig(_Foreign):
    """The config.json of an `internvl_chat` checkpoint."""

    model_type: Literal["internvl_chat"]
    llm_config: TextConfig
    vision_config: VisionConfig
    template: str
    system_message: str | None = None
    """Instead of the template's own."""
    downsample_ratio: float = Field(gt=0, le=1)
    force_image_size: int | None = None
    select_layer: int = -1
    ps_version: str = "v1"
    torch_dtype: str | None = None
    use_llm_lora: int = 0
    use_backbone_lora: int = 0

    @property
    def language_model(self) -> LanguageModel:
        """Raises CheckpointError for an architecture without rules."""
        name = self.llm_config.architectures[0]
        for known in get_args(LanguageModel):
            if name == known:
                return known  # type: ignore[no-any-return]
        raise CheckpointError(f"language model {name} is not supported (supported: {', '.join(get_args(LanguageModel))})")

    @property
    def heads(self) -> Heads:
        text = self.llm_config
        return Heads(text.num_attention_heads, text.num_key_value_heads, text.head_dim or text.hidden_size // text.num_attention_heads)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from disk.

    Raises:
        CheckpointError: absent, unreadable, or no JSON object.
    """
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; is {path.parent} a whole checkpoint folder?") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(value).__name__}, not an object")
    return value


def read_config(folder: Path) -> ChatConfig:
    """The config of an `internvl_chat` folder, with what cannot be converted refused.

    Raises:
        CheckpointError: another model type, a missing or wrong field, or a feature the native classes do not have.
    """
    path = folder / "config.json"
    raw = read_json(path)
    if raw.get("model_type") != "internvl_chat":
        known = " (that is native already: use it as it is)" if raw.get("model_type") == "internvl" else ""
        raise CheckpointError(f"{path}: model_type is {raw.get('model_type')!r}, not 'internvl_chat'{known}")
    try:
        config = ChatConfig.model_validate(raw)
        rope = rope_parameters(raw["llm_config"], config.language_model)
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except RopeError as error:
        raise CheckpointError(f"{path}: llm_config: {error}") from error
    config = config.model_copy(update={"llm_config": config.llm_config.model_copy(update={"rope": rope})})
    if (refused := _refused(config)) is not None:
        raise CheckpointError(f"{path}: {refused}")
    return config


def _refused(config: ChatConfig) -> str | None:
    vision, text = config.vision_config, config.llm_config
    if config.ps_version != "v2":
        return f"ps_version {config.ps_version!r}: native InternVL has pixel shuffle v2 only"
    if config.select_layer != -1:
        return f"select_layer {config.select_layer}: only -1 (the last layer) is supported"
    if (config.force_image_size or vision.image_size) != vision.image_size:
        return f"force_image_size {config.force_image_size} differs from vision_config.image_size {vision.image_size}"
    if config.use_llm_lora or config.use_backbone_lora:
        return "it was trained with LoRA adapters that are not merged: merge them into the weights first"
    windowed = config.language_model == "Phi3ForCausalLM" and text.sliding_window and text.sliding_window < text.max_position_embeddings
    if text.use_sliding_window or windowed:
        return "llm_config: attention over a sliding window cannot share a video's prefix"
    if (text.head_dim is None and text.hidden_size % text.num_attention_heads) or text.num_attention_heads % text.num_key_value_heads:
        return f"{text.num_attention_heads} heads, {text.num_key_value_heads} key-value heads do not divide {text.hidden_size}"
    return None


def _text_config(config: ChatConfig, tied: bool) -> Any:
    """The native language model's config. InternLM2 is a llama with fused projections."""
    from transformers import LlamaConfig, Phi3Config, Qwen2Config, Qwen3Config

    text = config.llm_config
    names: tuple[str, ...] = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    names += ("max_position_embeddings", "rms_norm_eps", "hidden_act", "bos_token_id", "eos_token_id", "pad_token_id")
    shared: dict[str, Any] = {name: getattr(text, name) for name in names}
    shared |= {"rope_parameters": dict(text.rope), "tie_word_embeddings": tied, "use_cache": True}
    match config.language_model:
        case "InternLM2ForCausalLM":
            return LlamaConfig(**shared, attention_bias=text.bias, mlp_bias=False)
        case "LlamaForCausalLM":
            return LlamaConfig(**shared, head_dim=config.heads.width, attention_bias=text.attention_bias, mlp_bias=text.mlp_bias)
        case "Qwen2ForCausalLM":
            return Qwen2Config(**shared, use_sliding_window=False)
        case "Qwen3ForCausalLM":
            return Qwen3Config(**shared, head_dim=config.heads.width, attention_bias=text.attention_bias, use_sliding_window=False)
        case "Phi3ForCausalLM":
            trained = text.rope.get("original_max_position_embeddings", text.max_position_embeddings)
            return Phi3Config(**shared, original_max_position_embeddings=trained, sliding_window=None)


def native_config(config: ChatConfig, *, image_token_id: int, tied: bool) -> InternVLConfig:
    """The config of the native model.

    `tied`: input and output embeddings are one tensor (the checkpoint has no head of its own).

    Raises:
        CheckpointError: transformers refuses a value.
    """
    fix_torchvision()
    from transformers import InternVLConfig, InternVLVisionConfig

    vision = config.vision_config
    try:
        text_config = _text_config(config, tied)
    except (ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise CheckpointError(f"llm_config: {error}") from error
    vision_config = InternVLVisionConfig(
        hidden_size=vision.hidden_size,
        intermediate_size=vision.intermediate_size,
        num_hidden_layers=vision.num_hidden_layers,
        num_attention_heads=vision.num_attention_heads,
        attention_bias=vision.qkv_bias,
        use_qk_norm=vision.qk_normalization,
        norm_type=vision.norm_type,
        layer_norm_eps=vision.layer_norm_eps,
        hidden_act=vision.hidden_act,
        num_channels=vision.num_channels,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        use_mean_pooling=True,  # the name of "no final norm": the original tower has none
        use_absolute_position_embeddings=True,
        layer_scale_init_value=vision.initializer_factor,
    )
    return InternVLConfig(
        text_config=text_config,
        vision_config=vision_config,
        image_token_id=image_token_id,
        image_seq_length=int((vision.image_size // vision.patch_size) ** 2 * config.downsample_ratio**2),
        downsample_ratio=config.downsample_ratio,
        projector_hidden_act="gelu",
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=tied,  # the native default is True
        architectures=["InternVLForConditionalGeneration"],
    )
