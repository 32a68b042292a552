"""The pages that are generated."""

import importlib.util
from pathlib import Path

import keras_convnets

DOCS = Path(__file__).parents[1] / "docs"


def generator():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_models_is_current_and_complete():
    page = generator().page()
    assert (DOCS / "models.md").read_text() == page, "run `python docs/generate.py`"
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    published = [n for n in keras_convnets.list_models() if not n.endswith("_test")]
    assert sorted(row.split("`")[1] for row in rows) == published
    for row in rows:
        assert all(cell.strip() for cell in row.strip("|").split("|")), row
