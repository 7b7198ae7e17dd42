"""Renders a report's page as one self-contained HTML document from the template in templates/.

The document loads nothing: style and figures are inside it. It follows the light or dark preference of the browser,
adapts to narrow screens, and can be printed.
"""

import functools

import jinja2

from ehrwear_jax.report.definitions import DEFINITIONS
from ehrwear_jax.report.figures import COLORS
from ehrwear_jax.report.page import Bullets, Details, FigureGrid, Page, used_definitions
from ehrwear_jax.report.table_model import Group, Table

# How the template tells blocks, and the lines of tables, apart.
TESTS = {"table": Table, "figure": FigureGrid, "bullets": Bullets, "details": Details, "group": Group}


def to_html_page(page: Page) -> str:
    """The whole page as one HTML document; all text is escaped."""
    numbers = {key: i for i, key in enumerate(used_definitions(page), 1)}
    template = _environment().get_template("page.html")
    return template.render(page=page, numbers=numbers, definitions=DEFINITIONS, colors=COLORS)


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
    environment.filters["unbroken"] = _unbroken
    return environment


def _unbroken(cell: str) -> str:
    """A cell of numbers whose interval stays on one line."""
    return cell.replace(", ", ",\N{NO-BREAK SPACE}")
