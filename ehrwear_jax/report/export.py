"""Exports tables of a page as CSV and as LaTeX."""

import csv
import io
import re
from collections.abc import Iterator

from ehrwear_jax.report.page import Block, Details, Page
from ehrwear_jax.report.table_model import Group, Table

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "\N{MINUS SIGN}": r"\textminus{}", "\N{EN DASH}": "--", "\N{GREEK CAPITAL LETTER DELTA}": r"$\Delta$",
    "\N{SUPERSCRIPT TWO}": r"\textsuperscript{2}", "\N{GREATER-THAN OR EQUAL TO}": r"$\geq$", "[": "{[}",
    "\N{NO-BREAK SPACE}": "~", "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
}  # fmt: skip


def named_tables(page: Page) -> list[Table]:
    """The tables of a page that have a name, each name once."""

    def of(blocks: tuple[Block, ...]) -> Iterator[Table]:
        for block in blocks:
            if isinstance(block, Table) and block.name:
                yield block
            elif isinstance(block, Details):
                yield from of(block.blocks)

    found = {t.name: t for section in page.sections for t in of(section.blocks)}
    return list(found.values())


def file_name(table: Table) -> str:
    """The table's name with what file systems may not hold replaced."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", table.name)


def to_csv(table: Table) -> str:
    """One line for each row of the table; a table with groups has them in a first column."""
    groups = any(isinstance(r, Group) for r in table.rows)
    out, group = io.StringIO(), ""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["Group"] * groups + [c.label for c in table.columns])
    for row in table.rows:
        if isinstance(row, Group):
            group = f"{row.title} ({row.detail})" if row.detail else row.title
        else:
            writer.writerow([group] * groups + [_plain(cell) for cell in row.cells])
    return out.getvalue()


def _plain(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    cell = cell.replace("\N{MINUS SIGN}", "-").replace("\N{NO-BREAK SPACE}", " ")
    return "'" + cell if re.match(r"[=@\t\r]|[+-](?![\d.])", cell) else cell


def latex_text(text: str) -> str:
    """`text` with the characters that LaTeX would interpret escaped."""
    return "".join(_LATEX.get(character, character) for character in text)


def to_latex(table: Table) -> str:
    """A table environment that needs the package booktabs, with its notes below."""
    n = len(table.columns)
    columns = "".join("l" if c.is_text else "r" for c in table.columns)
    lines = [" & ".join(latex_text(c.label) for c in table.columns) + r" \\", r"\midrule"]
    for row in table.rows:
        if isinstance(row, Group):
            title = latex_text(row.title) + (f" ({latex_text(row.detail)})" if row.detail else "")
            lines.append(rf"\multicolumn{{{n}}}{{l}}{{\textit{{{title}}}}} \\")
        else:
            cells = [latex_text(cell) for cell in row.cells]
            cells = [rf"\textbf{{{c}}}" if i in row.bold else c for i, c in enumerate(cells)]
            lines.append(" & ".join(cells) + r" \\")
    notes = "".join(f"\\par\\footnotesize {latex_text(note)}\n" for note in table.notes)
    body = "\n".join(lines)
    return (
        "% needs \\usepackage{booktabs,textcomp}\n\\begin{table}\n\\centering\n"
        f"\\caption{{{latex_text(table.caption)}}}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n"
        f"\\bottomrule\n\\end{{tabular}}\n{notes}\\end{{table}}\n"
    )
