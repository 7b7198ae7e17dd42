"""Writes the notebook of a script with cell marks beside it: python colabs/make_notebook.py colabs/explore_latents.py

A cell begins with `# %%`, or with `# %% [markdown]` and then holds comments only.
"""

import json
import sys
from pathlib import Path


def cells(text):
    """[(cell type, source)] of a script."""
    out = []
    for line in text.splitlines():
        if line.startswith("# %%"):
            out.append(["markdown" if "[markdown]" in line else "code", []])
        elif out:
            out[-1][1].append(line)
    for kind, lines in out:
        while lines and not lines[-1].strip():
            lines.pop()
        if kind == "markdown":
            lines[:] = [line.removeprefix("#").removeprefix(" ") for line in lines]
    return [(kind, "\n".join(lines)) for kind, lines in out]


def notebook(text):
    """The notebook of a script, without outputs: a dict in nbformat 4.5."""
    found = []
    for number, (kind, source) in enumerate(cells(text)):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source.splitlines(keepends=True)}
        found.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": found, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.with_suffix(".ipynb").write_text(json.dumps(notebook(path.read_text()), indent=1) + "\n")
