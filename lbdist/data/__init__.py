"""Data sets: one file a source, each giving whole splits as NumPy arrays, in memory or mapped.

What users bring shares `brought` (splits, hold-outs, labels, subsets) over `files`, `labels`, `mapped`, and
`pictures` (encoded ones) or `streamed` (arrays).
"""

from lbdist.data.base import Dataset, Split

__all__ = ["Dataset", "Split"]
