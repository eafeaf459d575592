"""What clips weigh in a model: their tokens, and the FLOPs of training on them."""

import numpy as np

from scalewright.data.clips import Clips
from scalewright.data.distinct import distinct
from scalewright.data.measure import Weigh, Weights
from scalewright.errors import ConfigError
from scalewright.model.shape import ClipTokens, ModelConfig, forward_flops, visual_tokens


def weigh_in(model: ModelConfig) -> Weigh:
    """Weights under a model; `ConfigError` names a clip that its patches cannot cover."""

    def weigh(clips: Clips) -> Weights:
        # A few sizes stand for many clips; 20 bits hold any side of a latent.
        sizes = clips.latent_frames.astype(np.int64) << 40 | clips.height.astype(np.int64) << 20
        first, place = distinct(sizes | clips.width)
        visual = np.empty(len(first), np.int64)
        for number, row in enumerate(first.tolist()):
            entry = clips.entry(row)
            try:
                latent = (entry.latent_frames, entry.height, entry.width)
                visual[number] = visual_tokens(model, *latent)
            except ConfigError as error:
                raise ConfigError(f"clip {entry.id}: {error}") from None
        tokens = visual[place].astype(np.float64), clips.text_tokens.astype(np.float64)
        flops = 3 * forward_flops(model, ClipTokens(*tokens))  # type: ignore[arg-type]
        return Weights(
            visual=visual[place],
            text=clips.text_tokens.astype(np.int64),
            flops=np.asarray(flops, np.float64),
        )

    return weigh
