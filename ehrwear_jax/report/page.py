"""Sections of a report to one self-contained HTML page, and to Markdown.

The page loads nothing: style and figures are inside it. It follows the reader's light or dark
preference, reads on a phone, and prints.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ehrwear_jax.report.definitions import DEFINITIONS
from ehrwear_jax.report.figures import COLORS
from ehrwear_jax.report.table_model import Table, markdown_text, to_html, to_markdown


@dataclass(frozen=True)
class Text:
    """A paragraph; `definitions` are keys of DEFINITIONS, referred to at its end."""

    text: str
    definitions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bullets:
    """Items as (what stands out, the rest); either may be empty."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class FigureGrid:
    """Panels of one figure with a caption that says what to see.

    Attributes:
      caption: ends the figure.
      panels: SVG elements, which stand side by side as far as the page is wide.
      legend: (label, colour name, dash) for each series, drawn above the panels.
      size: "small", "medium", or "wide" for one panel over the page's whole width.
    """

    caption: str
    panels: tuple[str, ...]
    legend: tuple[tuple[str, str, str], ...] = ()
    size: Literal["small", "medium", "wide"] = "small"


@dataclass(frozen=True)
class Details:
    """Blocks folded behind a summary line."""

    summary: str
    blocks: tuple["Block", ...]


Block = Text | Bullets | FigureGrid | Details | Table


@dataclass(frozen=True)
class Section:
    identifier: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    title: str
    subtitle: str
    sections: tuple[Section, ...]


def used_definitions(page: Page) -> list[str]:
    """Keys of DEFINITIONS that the page refers to, in the order in which it does."""
    keys: list[str] = []

    def visit(block: Block) -> None:
        if isinstance(block, Table):
            keys.extend(block.definitions())
        elif isinstance(block, Details):
            for inner in block.blocks:
                visit(inner)
        elif isinstance(block, Text):
            keys.extend(block.definitions)

    for section in page.sections:
        for block in section.blocks:
            visit(block)
    return list(dict.fromkeys(keys))


# ---------------------------------------------------------------------------------------------
# HTML
# ---------------------------------------------------------------------------------------------


def _variables(index: int) -> str:
    return "".join(f"--{name}:{pair[index]};" for name, pair in COLORS.items())


# The names of colours are those of figures.COLORS: figures and text share them.
_CSS = (
    ":root{color-scheme:light dark;--font:system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',"
    f"'DejaVu Sans',sans-serif;{_variables(0)}}}"
    f"@media (prefers-color-scheme:dark){{:root{{{_variables(1)}}}}}"
    """
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--surface);color:var(--ink);font:16px/1.55 var(--font)}
a{color:var(--blue)}
.frame{max-width:74rem;margin:0 auto;padding:1.5rem 1.1rem 4rem}
header h1{font-size:1.75rem;line-height:1.2;margin:.2rem 0 .3rem}
header p{margin:0 0 1.2rem;color:var(--muted)}
nav{font-size:.92rem;border-block:1px solid var(--grid);padding:.6rem 0;margin-bottom:1.5rem}
nav ol{list-style:none;margin:0;padding:0;display:flex;flex-wrap:wrap;gap:.15rem 1.1rem}
nav a{text-decoration:none}
nav a:hover{text-decoration:underline}
section{margin:0 0 2.6rem;scroll-margin-top:1rem}
h2{font-size:1.25rem;margin:0 0 .6rem;padding-bottom:.25rem;border-bottom:1px solid var(--grid)}
p,ul{max-width:46rem;margin:.5rem 0}
ul{padding-left:1.15rem}
li{margin:.4rem 0}
figure{margin:1.1rem 0}
figcaption{font-size:.9rem;color:var(--muted);max-width:46rem;margin:.35rem 0}
.table figcaption{color:var(--ink);font-weight:600}
.note{font-size:.86rem;color:var(--muted)}
.scroll{overflow-x:auto}
.scroll,.wide>div{background:linear-gradient(to right,var(--surface) 40%,transparent) 0 0/2.2rem 100%,
linear-gradient(to left,var(--surface) 40%,transparent) 100% 0/2.2rem 100%,
linear-gradient(to right,var(--edge),transparent) 0 0/.8rem 100%,
linear-gradient(to left,var(--edge),transparent) 100% 0/.8rem 100%;
background-repeat:no-repeat;background-attachment:local,local,scroll,scroll}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;min-width:min(100%,34rem)}
th,td{padding:.3rem .75rem;text-align:right;vertical-align:baseline;white-space:nowrap}
th:first-child,td:first-child{padding-left:.3rem}
.text,tbody th{text-align:left}
td.text{white-space:normal;min-width:8rem;overflow-wrap:anywhere}
tbody th{font-weight:400}
.many{font-size:.82rem}
.many th,.many td{white-space:normal;padding-inline:.35rem}
.many tbody th{min-width:7rem}
thead th{border-bottom:1.5px solid var(--muted);font-weight:600;vertical-align:bottom}
tbody tr{border-bottom:1px solid var(--grid)}
tr.group th{padding-top:.9rem;font-weight:650;white-space:normal}
tr.group span{font-weight:400;color:var(--muted);margin-left:.5rem}
tr.apart{border-top:1.5px dashed var(--muted);color:var(--muted);font-style:italic}
sup{font-size:.7em;line-height:0;margin-left:.1em}
sup a{text-decoration:none}
.panels{display:grid;gap:.9rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,16rem),1fr))}
.panels>div{min-width:0;max-width:20rem}
.medium>div{max-width:28rem}
.medium{grid-template-columns:repeat(auto-fill,minmax(min(100%,23rem),1fr))}
.wide{display:block}
.wide>div{max-width:none;overflow-x:auto;margin-bottom:1.2rem}
.wide svg{min-width:46rem}
svg{display:block;width:100%;height:auto;stroke-linejoin:round;stroke-linecap:butt}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;font-size:.88rem;margin:.4rem 0;padding:0}
.legend li{list-style:none}
.legend svg{display:inline-block;width:1.8rem;height:.6rem;margin-right:.4rem;vertical-align:middle}
details{margin:.8rem 0}
summary{cursor:pointer;color:var(--blue)}
dl{font-size:.92rem;max-width:50rem}
dt{font-weight:600;margin-top:.7rem}
dd{margin:.1rem 0 0}
footer{color:var(--muted);font-size:.86rem;border-top:1px solid var(--grid);padding-top:.8rem}
:target{background:var(--shade)}
@media (max-width:40rem){table{font-size:.8rem}th,td{padding:.28rem .35rem}td{white-space:normal}
tbody th{white-space:normal;min-width:6rem}thead th{white-space:normal}}
@media (min-width:72rem){
.frame{display:grid;grid-template-columns:12.5rem minmax(0,1fr);column-gap:2.6rem}
header,footer{grid-column:1/-1}
nav{border:0;padding:.2rem 0;position:sticky;top:1rem;align-self:start}
nav ol{flex-direction:column;gap:.35rem}}
@media print{nav{display:none}.frame{display:block;max-width:none}
table{font-size:.68rem;min-width:0}th,td{white-space:normal;padding:.2rem .3rem}
.panels{grid-template-columns:repeat(2,1fr)}.wide svg{min-width:0}
section,figure,tr{break-inside:avoid-page}.scroll,.wide>div{overflow:visible;background:none}}
"""
)


def to_html_page(page: Page) -> str:
    """The whole page as one HTML document without any outside reference."""
    numbers = {key: i for i, key in enumerate(used_definitions(page), 1)}

    def footnote(key: str) -> str:
        return f'<sup><a href="#def-{key}">{numbers[key]}</a></sup>'

    def render(block: Block) -> str:
        match block:
            case Table():
                return to_html(block, footnote)
            case Text():
                marks = " ".join(footnote(key) for key in block.definitions)
                return f"<p>{html.escape(block.text)}{marks}</p>\n"
            case Bullets():
                items = "".join(
                    f"<li>{f'<strong>{html.escape(lead)}</strong> ' if lead else ''}{html.escape(rest)}</li>"
                    for lead, rest in block.items
                )
                return f"<ul>{items}</ul>\n"
            case FigureGrid():
                return _figure_html(block)
            case Details():
                inner = "".join(render(b) for b in block.blocks)
                return f"<details><summary>{html.escape(block.summary)}</summary>{inner}</details>\n"

    definitions = "".join(
        f'<dt id="def-{key}">{number}. {html.escape(DEFINITIONS[key][0])}</dt>'
        f"<dd>{html.escape(DEFINITIONS[key][1])}</dd>"
        for key, number in numbers.items()
    )
    links = [(s.identifier, s.title) for s in page.sections]
    body = "".join(
        f'<section id="{s.identifier}"><h2>{html.escape(s.title)}</h2>\n'
        f"{''.join(render(b) for b in s.blocks)}</section>\n"
        for s in page.sections
    )
    if definitions:
        links.append(("definitions", "Definitions"))
        body += f'<section id="definitions"><h2>Definitions</h2><dl>{definitions}</dl></section>\n'
    contents = "".join(f'<li><a href="#{i}">{html.escape(t)}</a></li>' for i, t in links)
    title = html.escape(page.title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f'<div class="frame">\n<header><h1>{title}</h1>'
        f"<p>{html.escape(page.subtitle)}</p></header>\n"
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav>\n<main>\n{body}</main>\n'
        "<footer>Written by ehrwear_jax. The same tables are in report.md, the numbers in "
        "results.json.</footer>\n</div>\n</body>\n</html>\n"
    )


def _figure_html(figure: FigureGrid) -> str:
    legend = "".join(
        f'<li><svg viewBox="0 0 28 8" aria-hidden="true"><line x1="0" y1="4" x2="28" y2="4" '
        f'stroke="var(--{color})" stroke-width="2.4" stroke-dasharray="{dash}"/></svg>'
        f"{html.escape(label)}</li>"
        for label, color, dash in figure.legend
    )
    legend = f'<ul class="legend">{legend}</ul>' if legend else ""
    label = html.escape(figure.caption, quote=True)
    panels = "".join(f"<div>{panel}</div>\n" for panel in figure.panels)
    return (
        f"<figure>{legend}"
        f'<div class="panels {figure.size}" role="img" aria-label="{label}">{panels}</div>'
        f"<figcaption>{html.escape(figure.caption)}</figcaption></figure>\n"
    )


# ---------------------------------------------------------------------------------------------
# Markdown
# ---------------------------------------------------------------------------------------------


def to_markdown_page(page: Page) -> str:
    """The same text and tables as Markdown; figures are named and left to the HTML page."""

    def render(block: Block) -> str:
        match block:
            case Table():
                return to_markdown(block)
            case Text():
                marks = "".join(f"[^{key}]" for key in block.definitions)
                return f"{markdown_text(block.text)}{marks}\n"
            case Bullets():
                items = [
                    " ".join(filter(None, [f"**{markdown_text(a)}**" if a else "", markdown_text(b)]))
                    for a, b in block.items
                ]
                return "".join(f"- {item}\n" for item in items)
            case FigureGrid():
                return f"Figure (drawn in report.html): {markdown_text(block.caption)}\n"
            case Details():
                return "\n".join(render(b) for b in block.blocks)

    parts = [f"# {markdown_text(page.title)}\n", f"{markdown_text(page.subtitle)}\n"]
    for section in page.sections:
        parts.append(f"## {markdown_text(section.title)}\n")
        parts += [render(block) for block in section.blocks]
    parts += [f"[^{key}]: {markdown_text(': '.join(DEFINITIONS[key]))}" for key in used_definitions(page)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).strip() + "\n"


def join_words(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
