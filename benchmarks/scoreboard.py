"""The scoreboard: speed and memory of our models beside those of other libraries.

    python -m benchmarks [MODEL...]                    results/scoreboard.csv, .md and .png
    python -m benchmarks --official FOLDER [MODEL...]  results/official.*: the authors' own code

As `keras-convnets benchmark`, whose options these are, on a choice of models. FOLDER has checkouts
of the repositories that `benchmarks/official.py` names; each is measured at 224 pixels. Rows are
written when they are measured, and replace those of an earlier run of the same model; with
`--continue` models that have all their rows are passed over. Peers: pip install -e ".[peers]".

A model has up to 29 processes, of 0.3 to 0.7 GB each before it is trained. Estimated, on two quiet
cores: 5 to 20 minutes for a model with all peers and 3 to 10 beside official code, most of it for
starting, `torch.compile` and XLA. Busy cores take several times that, and tell little.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from benchmarks import official
from keras_convnets import catalog
from keras_convnets.benchmark import LIBRARIES, Settings, Table, command
from keras_convnets.benchmark.contenders import OURS

MODELS = (
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "mobilenetv4_conv_small",
    "efficientnet_b0",
    "tf_efficientnetv2_b0",
    "lcnet_100",
    "ghostnetv2_100",
    "mobileone_s0",
    "fasternet_t0",
    "repvit_m0_9",
    "repvgg_a0",
    "regnety_008",
    "convnextv2_atto",
    "inception_next_tiny",
    "densenet121",
    "resnet50",
    "convnext_tiny",
)
RESULTS = Path(__file__).parent / "results"
OFFICIAL_SIZE = 224


def main() -> int:
    """Measures what the command line asks for; returns the exit code."""
    options = parse()
    try:
        settings = command.settings_of(options)
        if options.official:
            measure_official(options, settings)
        else:
            table = Table(options.out, "scoreboard")
            libraries = command.libraries_of(options)
            command.run(options.models or MODELS, libraries, settings, table, options.keep)
            print(f"see {table.path.with_suffix('.md')}")
    except (ValueError, ImportError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    return 0


def parse() -> argparse.Namespace:
    """The arguments; unknown models end the program."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: a choice")
    parser.add_argument("--official", type=Path, metavar="FOLDER", help="of checkouts")
    command.add_arguments(parser, RESULTS)
    options = parser.parse_args()
    known = (*official.OFFICIAL, *official.FROM_TIMM) if options.official else catalog.read()
    unknown = [model for model in options.models if model not in known]
    if unknown:
        allowed = ", ".join(known) if options.official else "see keras-convnets list"
        parser.error(f"unknown models {', '.join(unknown)}: {allowed}")
    return options


def measure_official(options: argparse.Namespace, settings: Settings) -> None:
    """Our models beside the authors' code, or timm's where that has taken it over."""
    code, table = official.library(options.official), Table(options.out, "official")
    for model in options.models or (*official.OFFICIAL, *official.FROM_TIMM):
        row = official.OFFICIAL.get(model)
        size = (row and row.size) or settings.size or OFFICIAL_SIZE
        libraries = [LIBRARIES[OURS], code if row else LIBRARIES["timm"]]
        sized = dataclasses.replace(settings, size=size)
        command.run([model], libraries, sized, table, options.keep)
    print(f"see {table.path.with_suffix('.md')}")
