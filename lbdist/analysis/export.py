"""A table in LaTeX, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import re

from lbdist.analysis.section import Table

_LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
          "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "±": r"$\pm$",
          "−": "$-$", "–": "--", "φ": r"$\phi$", "ε": r"$\epsilon$", "²": r"\textsuperscript{2}",
          "λ": r"$\lambda$"}  # fmt: skip


def latex(table: Table) -> str:
    r"""A `tabular` of booktabs, to be read by `\input`."""

    def escape(text: str) -> str:
        return re.sub(f"[{re.escape(''.join(_LATEX))}]", lambda found: _LATEX[found[0]], text)

    lines = [
        f"% {table.title}",
        rf"\begin{{tabular}}{{{'l' * table.left}{'r' * (len(table.heads) - table.left)}}}",
    ]
    lines += [r"\toprule", " & ".join(map(escape, table.lines)) + r" \\", r"\midrule"]
    for place, row in enumerate(table.rows):
        lines += [r"\midrule"] if place in table.groups else []
        lines.append(" & ".join(escape(entry.text) for entry in row) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def markdown(table: Table) -> str:
    """A table of GitHub's Markdown."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    rule = [":--"] * table.left + ["--:"] * (len(table.heads) - table.left)
    rows = [line([entry.text for entry in row]) for row in table.rows]
    return "\n".join([line(table.lines), line(rule), *rows, ""])


def comma_separated(table: Table) -> str:
    """A CSV of the numbers behind the table, each mean beside its spread."""
    records = table.records()
    heads = list(dict.fromkeys(head for record in records for head in record)) or table.lines
    sink = io.StringIO()
    writer = csv.DictWriter(sink, heads, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return sink.getvalue()


FORMATS = {"tex": latex, "md": markdown, "csv": comma_separated}
"""Writers by the suffix of their files."""
