"""What lies in a folder, and the line that brings it."""

from __future__ import annotations

from collections.abc import Sequence

from lbdist.data.files import Files

_SOURCES = {
    "parquet": (".parquet",),
    "table": (".csv", ".tsv", ".csv.gz"),
    "arrays": (".npz", ".npy", ".safetensors"),
    "tar": (".tar", ".tar.gz", ".tgz"),
}
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")


def there(files: Files, root: str) -> str:
    """What is there, and how to bring it.

    Args:
        files: The folder.
        root: As the user gave it.
    """
    names = files.names()
    lines = []
    for source, endings in _SOURCES.items():
        if found := [name for name in names if name.lower().endswith(endings)]:
            lines.append(f"{_some(found)}: data={source} data.root={root}")
    if found := [name for name in names if name.lower().endswith(_PICTURES)]:
        lines.append(f"{_some(found)}: data=folder data.root={root}")
    if lines:
        return f"there is {', and '.join(lines)}"
    return f"there is {_some(names)}, of which lbdist knows none" if names else "there is nothing"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    return f"{names[0]}{more}"
