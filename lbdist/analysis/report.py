"""The report of a study: one HTML file with everything in it, each table and figure beside it."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import matplotlib
from markupsafe import Markup, escape

from lbdist.analysis import drawing, export
from lbdist.analysis.section import Entry, Section
from lbdist.storage import Store


def inline(document: str, name: str) -> Markup:
    """An SVG document as an element of a page: its ids made unique, its ink and paper those of the page."""
    text = document[document.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text)
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\1{name}-", text)
    for color, variable in (
        (drawing.INK, "ink"),
        (drawing.MUTED, "muted"),
        (drawing.LINE, "line"),
        (drawing.PAPER, "paper"),
    ):
        text = re.sub(color, f"var(--{variable})", text, flags=re.IGNORECASE)
    return Markup(text)


def _value(entry: Entry) -> Markup:
    """What a cell of a table is sorted by, and its numbers in full, as attributes."""
    numbers = {kind: value for kind, value in entry.values.items() if not _is_nan(value)}
    main = numbers.get("")
    if not isinstance(main, int | float):
        return Markup("")
    full = [f"{kind} {value:.6g}".strip() for kind, value in numbers.items() if not isinstance(value, str)]
    return Markup(' data-v="{}" title="{}"').format(repr(float(main)), ", ".join(full))


def _is_nan(value: float | str) -> bool:
    return isinstance(value, float) and math.isnan(value)


def write_report(
    folder: str | Path | Store,
    title: str,
    sections: Sequence[Section],
    context: Mapping[str, str],
    words: Sequence[str] = (),
) -> str:
    """Writes `report.html`, `figures/*.{png,svg}` and `tables/*.{csv,md,tex}`, each file whole or not at all.

    Args:
        folder: The study's folder.
        title: What the study is.
        sections: What it shows; the first one's sentences are the headline.
        context: How it was measured, name by name (command, versions, hardware, date, config ...); text of
            several lines is shown as it is.
        words: What its abbreviations mean, a line each.

    Returns:
        Where the report is.
    """
    store, pictures = Store.of(folder), {}
    with matplotlib.rc_context(drawing.STYLE):
        for figure in (figure for section in sections for figure in section.figures):
            drawn = figure.draw()
            pictures[figure.name] = inline(drawing.svg(drawn, figure.name), figure.name)
            caption = textwrap.fill(figure.caption, 118)
            drawn.supxlabel(caption, x=0.01, ha="left", fontsize=8, color=drawing.MUTED)
            png = drawing.render(drawn, figure.name, format="png", dpi=150)
            store.write(f"figures/{figure.name}.png", png)
            drawn.set_layout_engine("none")  # as it is laid out now
            store.write(f"figures/{figure.name}.svg", drawing.svg(drawn, figure.name).encode())
    for table in (table for section in sections for table in section.tables):
        for suffix, write in export.FORMATS.items():
            store.write(f"tables/{table.name}.{suffix}", write(table).encode())
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["lines"] = lambda text: Markup("<br/>").join(
        escape(line) for line in text.split("\n")
    )
    environment.filters["value"] = _value
    environment.filters["nobreak"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")
    page = environment.get_template("report.html.jinja").render(
        title=title,
        headline=list(sections[0].sentences) if sections else [],
        words=words,
        sections=sections,
        pictures=pictures,
        context={str(key): str(value) for key, value in context.items()},
    )
    store.write("report.html", page.encode())
    return f"{store}/report.html"
