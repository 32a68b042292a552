"""Pruned ECA-ResNets against timm."""

import numpy as np
from test_resnet_attention import timm_resnet

from keras_convnets import create_model
from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm
from keras_convnets.weights import state_dict


def ecaresnet_pruned_test():
    """A larger network, cut by timm's own tool."""
    stem = {"stem_type": "deep", "stem_width": 8, "avg_down": True}
    module = timm_resnet("eca", layers=(1, 1, 2, 1), **stem)
    from timm.models._prune import adapt_model_from_string

    widths = {"conv1.0": 8, "conv1.1": 8, "conv1.3": 8, "conv1.4": 8, "conv1.6": 16, "bn1": 16}
    kept = {"layer1.0": (9, 10, 11), "layer2.0": (8, 7, 20), "layer3.0": (16, 13, 24)}
    kept |= {"layer3.1": (8, 8, 24), "layer4.0": (17, 12, 30)}
    inputs, channels = {"conv1.0": 3, "conv1.3": 8, "conv1.6": 8, "fc": 30}, 16
    for block, block_widths in kept.items():
        inputs[f"{block}.downsample.1"] = channels
        for i, width in enumerate(block_widths, start=1):
            widths |= {f"{block}.conv{i}": width, f"{block}.bn{i}": width}
            inputs[f"{block}.conv{i}"], channels = channels, width
        widths |= {f"{block}.downsample.1": channels, f"{block}.downsample.2": channels}
    shapes = {name: [width, inputs.get(name, 1)] for name, width in (widths | {"fc": 1000}).items()}
    return adapt_model_from_string(
        module, "***".join(f"{name}.weight:{shape}" for name, shape in shapes.items())
    )


class TestECAResNetPruned(FamilyTests):
    family = "ecaresnet_pruned"
    reference = Timm(ecaresnet_pruned_test=ecaresnet_pruned_test)
    parity_variant = "ecaresnet50d_pruned"

    def test_initial_kernels_are_distributed_as_in_the_reference(self):
        """Not as in timm, which rebuilds the pruned layers with PyTorch's defaults."""
        state = state_dict(create_model(self.parity_variant, weights=None))
        for key in ("layer3.1.conv1", "layer3.1.conv2", "layer4.0.downsample.1"):
            kernel = state[f"{key}.weight"]
            fan_out = kernel.size // kernel.shape[1]
            np.testing.assert_allclose(kernel.std(), np.sqrt(2 / fan_out), rtol=0.05)
