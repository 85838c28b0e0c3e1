"""Data sets: one file per source, each giving whole splits as NumPy arrays that fit on the device."""

from lbdist.data.base import Dataset, Split

__all__ = ["Dataset", "Split"]
