"""The .tflite files that litert-torch makes of timm's models, for `benchmarks.litert --also`.

    python -m venv torch-env && torch-env/bin/pip install litert-torch timm
    torch-env/bin/python benchmarks/litert_peer.py FOLDER [MODEL...]

It needs an environment of its own: litert-torch pins versions that TensorFlow does not take. The
int8 form is ai-edge-quantizer's static recipe, as its documentation recommends, calibrated on
noise.
"""

import sys
import time
from pathlib import Path

import litert_torch
import numpy as np
import timm
import torch
from ai_edge_quantizer.quantizer import Quantizer
from ai_edge_quantizer.recipe import static_wi8_ai8

MODELS = ("mobilenetv2_100", "efficientnet_b0", "resnet50", "convnext_tiny")


def main(folder: Path, names: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    for name in names or MODELS:
        model = timm.create_model(name).eval()
        for parameter in model.parameters():
            if not parameter.any():  # its branch would be left out
                torch.nn.init.uniform_(parameter)
        path = folder / f"{name}.float32.tflite"
        start = time.perf_counter()
        litert_torch.convert(model, (torch.randn(1, 3, 224, 224),)).export(str(path))
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        quantizer = Quantizer(path.read_bytes(), static_wi8_ai8())
        noise = np.random.default_rng(0).standard_normal((8, 1, 3, 224, 224), "float32")
        ranges = quantizer.calibrate({"serving_default": [{"args_0": image} for image in noise]})
        (folder / f"{name}.int8.tflite").write_bytes(quantizer.quantize(ranges).quantized_model)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
