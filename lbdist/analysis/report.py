"""The report of a study: one HTML file with everything in it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from lbdist.analysis import figures, tables
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
        (figures.INK, "ink"),
        (figures.MUTED, "muted"),
        (figures.LINE, "line"),
        (figures.PAPER, "paper"),
    ):
        text = re.sub(color, f"var(--{variable})", text, flags=re.IGNORECASE)
    return Markup(text)


def write_report(folder: str | Path | Store, rows: pd.DataFrame, context: Mapping[str, str]) -> str:
    """Writes `report.html`, one self-contained file, whole or not at all.

    Args:
        folder: The study's folder.
        rows: The rows of the study.
        context: How it was measured, name by name (command, versions, hardware, date, config ...); text of
            several lines is shown as it is.

    Returns:
        Where the report is.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (
        *(tables.number, tables.seconds, tables.percent, tables.phi, tables.interval, tables.three_digits),
        *(tables.epsilon_text, tables.solver_phi),
    ):
        environment.filters[function.__name__] = function
    board = tables.leaderboard(rows)
    sharpness = tables.sharpness_table(rows)
    epsilons = [] if sharpness.empty else sorted(sharpness["epsilon"].unique(), reverse=True)
    first = rows.iloc[0] if len(rows) else {"experiment": "study", "network": "", "data": ""}
    page = environment.get_template("report.html.jinja").render(
        title=" ".join([str(first["experiment"]), "of", str(first["network"]), "on", str(first["data"])]),
        study=first["experiment"],
        network=first["network"],
        data=first["data"],
        conclusion=tables.conclusion(rows),
        board=board.to_dict("records"),
        phi_columns=[(e, tables.phi_column(e)) for e in epsilons if tables.phi_column(e) in board],
        sharpness=sharpness.to_dict("records"),
        figures=[
            (name, drawn.title, drawn.caption, inline(figures.svg(drawn.figure, name), name))
            for name, drawn in figures.figures(rows).items()
        ],
        search=tables.search_table(rows).to_dict("records"),
        agreement=tables.agreement(rows).to_dict("records"),
        agreement_sentence=tables.agreement_sentence(rows),
        context={str(key): str(value) for key, value in context.items()},
        isnan=math.isnan,
    )
    store = Store.of(folder)
    store.write("report.html", page.encode())
    return f"{store}/report.html"
