"""Data augmentation (Keskar et al., section 4.1 and Table 6)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lbdist import random
from lbdist.data.augmentation import augment_images, augment_signals
from lbdist.data.base import Dataset, are_tokens
from lbdist.errors import require
from lbdist.remedies.base import Batch, Remedy

_STREAM = 1 << 20  # dropout layers use the streams from 0


@dataclass
class Augmentation(Remedy):
    """Transforms every sample anew in each epoch.

    Images (N, C, H, W) get the paper's three transforms: horizontal flips, rotation, translation.
    Signals (N, L) are shifted and scaled and get noise.

    Attributes:
        flip: Whether images are mirrored, with probability 1/2.
        degrees: Largest rotation of an image (paper: 10).
        translate: Largest shift of an image, as a share of its size (paper: 0.2).
        shift: Largest shift of a signal, as a share of its length.
        scale: Largest relative change of a signal's amplitude.
        noise: Standard deviation of the noise added to a signal.
        strength: Factor on all of these but the flip.
    """

    flip: bool = True
    degrees: float = 10.0
    translate: float = 0.2
    shift: float = 0.1
    scale: float = 0.1
    noise: float = 0.05
    strength: float = 1.0

    def __post_init__(self) -> None:
        for name in ("degrees", "shift", "scale", "noise", "strength", "translate"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")

    def leaves_out(self, data: Dataset) -> str:
        """What is neither images (N, C, H, W) nor signals (N, L)."""
        inputs = data.train.inputs
        if are_tokens(inputs):
            return "it shifts, scales and blurs numbers, and tokens are none"
        if data.columns and inputs.ndim == 2:
            return "it shifts signals, and the columns of a table are none"
        known = inputs.ndim in (2, 4)
        return (
            "" if known else f"it takes images (N, C, H, W) or signals (N, L), not {inputs.ndim} dimensions"
        )

    def transform(self, batch: Batch) -> Batch:
        """Augments the samples, by numbers that depend on (seed, epoch, sample) alone."""
        key, x, s = batch.keys(_STREAM), batch.inputs, self.strength
        if x.ndim == 4:
            x = augment_images(
                x,
                random.uniform(key, 4, x.dtype),
                flip=self.flip,
                degrees=s * self.degrees,
                translate=s * self.translate,
            )
        else:
            x = augment_signals(
                x,
                random.uniform(key, 2, x.dtype),
                random.normal(batch.keys(_STREAM + 1), x.shape[1], x.dtype),
                shift=s * self.shift,
                scale=s * self.scale,
                noise_level=s * self.noise,
            )
        return replace(batch, inputs=x)
