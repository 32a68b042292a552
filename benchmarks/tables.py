"""Tables of results, CSV for programs and Markdown to read."""

from __future__ import annotations

import csv
import datetime
import io
import os
import platform
import re
from pathlib import Path


def write(path: Path, rows: list[dict], text: str) -> None:
    """The rows as `path`, a .csv, and a text about them as the .md beside it."""
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace(path, table.getvalue())
    replace(path.with_suffix(".md"), text)


def replace(path: Path, text: str) -> None:
    """The text as a file, which is whole or, if this is interrupted, as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text)
    os.replace(part, path)


def plain(rows: list[dict]) -> str:
    """The rows as they are, in Markdown."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(map(str, row.values())) + " |" for row in rows]
    return "\n".join([*lines, ""])


def machine() -> str:
    """What the figures of a table are of."""
    return (
        f"{_processor()}, {os.cpu_count()} cores, {platform.system()}, "
        f"Python {platform.python_version()}, {datetime.date.today()}."
    )


def _processor():
    """Its name, and the widest of the instructions that decide how fast int8 is beside float."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    described = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in lines if ":" in line)
    flags = described.get("flags", "").split()
    widest = next((x for x in ("avx512_vnni", "avx512f", "avx2") if x in flags), "no avx2")
    return f"{described.get('model name', platform.processor())} ({widest})"
