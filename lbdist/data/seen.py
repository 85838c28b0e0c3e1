"""What inputs are, where a layout leaves it open: encoded pictures, and arrays of any kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lbdist.data.base import Dataset
from lbdist.data.brought import Brought, Take
from lbdist.data.mapped import Recipe
from lbdist.data.pictures import Coloured, Encoded, Look, Pictures, looked_at
from lbdist.data.streamed import KINDS, Chunked, Layout, Streamed, checked_shape
from lbdist.errors import require


@dataclass
class Pictured(Brought):
    """Encoded pictures, uint8 of shape (N, C, H, W).

    Attributes:
        channels: 1 for grey, 3 for colour; None for as the files have it, where a set of which all channels
            of all pictures are equal is grey: some formats have no other way to keep it.
        resize: [height, width] of all, or one number for a square cut of the middle; None where they have
            one size already.
    """

    channels: int | None = None
    resize: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._look = self._asked = Look.of(self.channels, self.resize)
        self._looked = False

    def read(self) -> Dataset:
        """Reads them; pictures are grey only if all of them are.

        Raises:
            InputError: Naming the file that is missing, damaged, or holds something wrong.
        """
        self._look, self._looked = self._asked, False
        before = list(self.notes)
        try:
            dataset = super().read()
        except Coloured:  # beyond the first ones
            self._look, self.notes = self._asked, before
            dataset = super().read()
        if self._look != self._asked:
            self.notes.append("data: images are grey, kept as colour: their equal channels are taken as one")
        return dataset

    def pictures(self, place: Encoded) -> Take:
        """How encoded pictures of a split are taken; the training split's come first."""

        def take(kept: np.ndarray) -> Recipe:
            if not self._looked:
                self._look, self._looked = looked_at(place, kept, self._look), True
            return Pictures.of(place, kept, self._look)

        return take


@dataclass
class Shaped(Brought):
    """Arrays.

    Attributes:
        kind: `pictures`, `numbers` or `tokens`, where inputs do not tell: bytes of two dimensions or more are
            pictures, which are scaled; other integers are tokens, which never are; the rest are numbers.
        shape: Of a sample, where the files have its numbers in a row.
    """

    kind: str | None = None
    shape: list[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = f"one of {', '.join(KINDS)}, or null"
        require(self.kind in (None, *KINDS), "data.kind", self.kind, allowed)
        self.sides = checked_shape(self.shape)

    def streamed(self, place: Chunked, first: np.ndarray) -> Take:
        """How the rows of a split are taken, of which these are the first."""
        layout = Layout.of(first.shape[1:], first.dtype, self.kind, self.sides)
        return lambda kept: Streamed(place, kept, layout)
