"""A table in LaTeX, Markdown and CSV, character by character."""

from __future__ import annotations

from lbdist.analysis.export import comma_separated, latex, markdown
from lbdist.analysis.section import Entry, Table, of_number

TABLE = Table(
    "t", "Two & one", ["name_1", "mean"],
    [[Entry("a|b"), of_number(1.25, 1)], [Entry("50 %"), Entry("±", values={"": 2.0, "std": 0.5})]],
    groups=frozenset({1}),
)  # fmt: skip


def test_latex() -> None:
    assert latex(TABLE).splitlines() == [
        "% Two & one", r"\begin{tabular}{lr}", r"\toprule", r"name\_1 & mean \\", r"\midrule",
        r"a|b & 1.2 \\", r"\midrule", r"50 \% & $\pm$ \\", r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip


def test_markdown() -> None:
    assert markdown(TABLE).splitlines() == [
        "| name_1 | mean |", "| :-- | --: |", r"| a\|b | 1.2 |", "| 50 % | ± |",
    ]  # fmt: skip


def test_comma_separated() -> None:
    assert comma_separated(TABLE).splitlines() == ["name_1,mean,mean std", "a|b,1.25,", "50 %,2.0,0.5"]
