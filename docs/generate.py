"""Writes `models.md`, the table of all models, from the catalog and the checkpoint rows.

    python docs/generate.py

tests/test_docs.py holds the page to what this gives.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from keras_convnets import catalog
from keras_convnets.registry import Checkpoint, find_family

PAGE = Path(__file__).parent / "models.md"
HEADER = """\
# Models

Written by `python docs/generate.py`. Parameters and multiply-accumulates (MACs) are those of the
model with its classifier at the given input size, and equal the reference implementation's, which
the tests check. Top-1 is what the source of the default checkpoint publishes for ImageNet-1k, in
percent; other checkpoints are listed by `keras-convnets info NAME`. Targets: `int8` means that the
LiteRT file can be int8 throughout, `mixed int8` that products are, and what lies between them
where that saves time; `mcu` that TensorFlow Lite Micro has all the operators, whether or not they
fit a board.
"""
COLUMNS = ("model", "input", "parameters (M)", "MACs (G)", "top-1", "licence", "targets")


def page() -> str:
    """The whole text."""
    entries = [entry for entry in catalog.read().values() if not entry.name.endswith("_test")]
    families = itertools.groupby(sorted(entries, key=lambda e: e.family), lambda e: e.family)
    return HEADER + "".join(_section(family, list(rows)) for family, rows in families)


def _section(family, entries):
    module = find_family(entries[0].name).module
    idea = module.__doc__.strip().split("\n\n")[0].replace("\n", " ")
    papers = re.findall(r"https://[^\s,;)]+[^\s,;).]", module.__doc__)
    sources = ", ".join(f"<{url}>" for url in papers)
    lines = [f"\n## {family}\n", idea, "", f"Sources: {sources}", ""]
    if (PAGE.parent / "families" / f"{family}.md").exists():
        lines += [f"More: [families/{family}.md](families/{family}.md)", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join(_cells(entry)) + " |" for entry in entries]
    return "\n".join(lines) + "\n"


def _cells(entry):
    row = next(iter(find_family(entry.name).rows(entry.name).values()), None)
    return (
        f"`{entry.name}`",
        str(entry.input_size),
        f"{entry.parameters / 1e6:.2f}",
        f"{entry.macs / 1e9:.2f}",
        _top1(row),
        row.license if row else "no checkpoint",
        entry.targets,
    )


def _top1(row: Checkpoint | None):
    if row is None:
        return "no checkpoint"
    return f"{row.top1:.2f}" if row.top1 else "not published"


if __name__ == "__main__":
    PAGE.write_text(page())
