"""Pruned EfficientNets against timm."""

import numpy as np
from test_efficientnet import small

from keras_convnets import create_model
from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm
from keras_convnets.weights import state_dict


def efficientnet_pruned_test():
    stages = ["ds_r1_k3_s1_e1_c8_se0.25", "ir_r2_k5_s2_e4_c24_se0.25", "ir_r1_k3_s2_e2_c32_se0.25"]
    return small(stages, 48, eps=1e-3, pad_type="same", stem_size=16, fix_stem=True)


class TestEfficientNetPruned(FamilyTests):
    family = "efficientnet_pruned"
    reference = Timm(efficientnet_pruned_test=efficientnet_pruned_test)
    parity_variant = "efficientnet_b1_pruned"

    def test_initial_kernels_are_distributed_as_in_the_reference(self):
        """Not as in timm, which rebuilds the pruned layers with PyTorch's defaults."""
        state = state_dict(create_model(self.parity_variant, weights=None))
        for key in ("blocks.5.4.conv_pw", "blocks.5.4.conv_pwl", "blocks.5.4.conv_dw"):
            kernel = state[f"{key}.weight"]
            fan_out = kernel.size // (kernel.shape[1] if "dw" not in key else len(kernel))
            np.testing.assert_allclose(kernel.std(), np.sqrt(2 / fan_out), rtol=0.05)
