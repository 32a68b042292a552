"""Tables of results, CSV for programs and Markdown to read."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path


def write(path: Path, rows: list[dict], text: str) -> None:
    """The rows as `path`, a .csv, and a text about them as the .md beside it."""
    path.parent.mkdir(exist_ok=True)
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace(path, table.getvalue())
    replace(path.with_suffix(".md"), text)


def replace(path: Path, text: str) -> None:
    """The text as a file, which is whole or, if this is interrupted, as it was."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text)
    os.replace(part, path)


def plain(rows: list[dict]) -> str:
    """The rows as they are, in Markdown."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(map(str, row.values())) + " |" for row in rows]
    return "\n".join([*lines, ""])
