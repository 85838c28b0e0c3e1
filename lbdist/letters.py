"""Text for output that is not UTF-8: written with the letters it has, not with question marks."""

from __future__ import annotations

import codecs
import unicodedata

SPELLED = {"φ": "phi", "ε": "eps", "λ": "lambda", "ρ": "rho", "σ": "sigma", "τ": "tau", "∇": "grad ",
           "±": "+-", "−": "-", "–": "-", "—": "-", "×": "x", "≤": "<=", "≥": ">=", "²": "2", "…": "...",
           "“": '"', "”": '"', "‘": "'", "’": "'", "½": "1/2", "\N{NO-BREAK SPACE}": " ",
           "━": "-", "╸": "-", "╺": "-"}  # fmt: skip
"""How what lbdist prints is spelled without it."""

HANDLER = "lbdist.letters"
"""The name by which a stream's `errors` asks for this."""


def spelled(text: str, encoding: str) -> str:
    """A text in the letters of an encoding.

    Example:
        >>> spelled("φ = 64.3 ± 6.9, −1", "ascii"), spelled("φ = 64.3 ± 6.9", "latin-1")
        ('phi = 64.3 +- 6.9, -1', 'phi = 64.3 ± 6.9')
        >>> spelled("é", "ascii"), spelled("数", "ascii"), spelled("数", "utf-8")
        ('e', '?', '数')
    """
    return text.encode(encoding, HANDLER).decode(encoding)


def _spell(error: UnicodeError) -> tuple[str, int]:
    """What stands for the letters that an encoding has not."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(SPELLED.get(letter) or _without_marks(letter) for letter in missing), error.end


def _without_marks(letter: str) -> str:
    """A letter without its accents; a question mark where it is none of the Latin ones."""
    plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return plain or "?"


codecs.register_error(HANDLER, _spell)
