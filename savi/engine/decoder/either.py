"""The two decoders of one model behind one call.

`savi.base.kernels` says which one runs; a batch whose rotary angles change with its length goes to the eager one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from savi.base.kernels import Decoder, decoder_for

if TYPE_CHECKING:
    from savi.engine.decoder.static import StaticDecoder
    from savi.engine.decoding import Branch, Generated
    from savi.engine.sampling import GenerationSettings
    from savi.engine.video_lm import VideoLM


class Decoders:
    """Keeps the static decoder's buffers from one call to the next; `asked` forces one of the two.

    It holds no model: a model that is given up is freed at once.
    """

    def __init__(self, asked: Decoder = "auto") -> None:
        self.asked = asked
        self.static: StaticDecoder | None = None

    def stacks(self, lm: VideoLM) -> bool:
        """Whether a batch holds a second copy of its prefixes: what the static decoder does."""
        return decoder_for(lm.device.type, self.asked) == "static"

    @property
    def held_bytes(self) -> int:
        """Memory held for the next call."""
        return 0 if self.static is None else self.static.held_bytes

    def release(self) -> None:
        """Give it back: before training, or before another model is loaded."""
        self.static = None

    def generate(self, lm: VideoLM, rows: Sequence[Branch], settings: GenerationSettings, end_ids: Sequence[int]) -> list[Generated]:
        """New ids of one batch of rows."""
        from savi.engine import decoding

        starts = [row.prefix.next_pos for row in rows]
        ends = [start + len(row.ids) + settings.max_new_tokens for start, row in zip(starts, rows, strict=True)]
        angles_move = lm.rope is not None and not all(map(lm.rope.shares, starts, ends))
        if angles_move or not self.stacks(lm):
            return decoding.generate(lm.family, lm.model, rows, settings, end_ids)
        if self.static is None:
            from savi.engine.decoder.static import StaticDecoder

            self.static = StaticDecoder(lm.family)
        return self.static.generate(lm.model, rows, settings, end_ids)
