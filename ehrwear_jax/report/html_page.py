"""Renders a report's page as one self-contained HTML document from the template in templates/.

The document loads nothing: style and figures are inside it. It follows the light or dark preference of the browser,
adapts to narrow screens, and can be printed.
"""

import base64
import functools
import re

import jinja2

from ehrwear_jax.report import export
from ehrwear_jax.report.definitions import DEFINITIONS
from ehrwear_jax.report.figures import COLORS
from ehrwear_jax.report.page import Bullets, Details, FigureGrid, Page, used_definitions
from ehrwear_jax.report.table_model import Group, Table

UNFOLDED = ("forecasting", "survival")  # sections beside the first that are open at first
# How the template tells blocks, and the lines of tables, apart.
TESTS = {"table": Table, "figure": FigureGrid, "bullets": Bullets, "details": Details, "group": Group}


def to_html_page(page: Page) -> str:
    """The whole page as one HTML document; all text is escaped."""
    numbers = {key: i for i, key in enumerate(used_definitions(page), 1)}
    template = _environment().get_template("page.html")
    return template.render(page=page, numbers=numbers, definitions=DEFINITIONS, colors=COLORS, unfolded=UNFOLDED)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ehrwear_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name, kind in TESTS.items():
        environment.tests[name] = lambda value, kind=kind: isinstance(value, kind)
    environment.filters |= {"unbroken": _unbroken, "csv_uri": _csv_uri, "csv_name": _csv_name}
    return environment


def _csv_uri(table: Table) -> str:
    """The table as CSV inside a link, so that a page that is sent to somebody has its tables with it."""
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(export.to_csv(table).encode()).decode()


def _csv_name(table: Table) -> str:
    """The file of a downloaded table; without a name it is called by the beginning of its caption."""
    name = export.file_name(table) if table.name else re.sub(r"[^a-z0-9]+", "_", table.caption.lower())[:40].strip("_")
    return f"{name or 'table'}.csv"


def _unbroken(cell: str) -> str:
    """A cell of numbers whose interval stays on one line."""
    return cell.replace(", ", ",\N{NO-BREAK SPACE}")
