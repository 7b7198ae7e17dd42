"""Declares the sections and blocks of a report's page, and renders it as Markdown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ehrwear_jax.report.definitions import DEFINITIONS
from ehrwear_jax.report.table_model import Table, markdown_text, to_markdown


@dataclass(frozen=True)
class Text:
    """A paragraph; `definitions` are keys of DEFINITIONS, referred to at its end.

    `hint`, options of the config that would change what it says, goes to the log: readers of the page have no config.
    """

    text: str
    definitions: tuple[str, ...] = ()
    hint: str = ""


@dataclass(frozen=True)
class Bullets:
    """Items as (emphasised text, the rest); either may be empty."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class FigureGrid:
    """Panels of one figure with a caption.

    Attributes:
      caption: below the figure.
      panels: SVG elements, side by side as far as the width permits.
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
    """Blocks under a heading; `identifier` is the anchor."""

    identifier: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]


def hints(page: Page) -> list[str]:
    """What the page's texts say with the options that would change it, a line each."""
    texts = [b for section in page.sections for b in section.blocks if isinstance(b, Text) and b.hint]
    return [f"{text.text} ({text.hint})" for text in texts]


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
# Markdown
# ---------------------------------------------------------------------------------------------


def to_markdown_page(page: Page) -> str:
    """Text and tables as Markdown, with the captions of figures, which are drawn in the HTML page only."""

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
