"""EfficientNet and EfficientNet-Lite against timm."""

import pytest

from keras_convnets import create_model
from keras_convnets.graph.rewrite import without_allocation
from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm, import_timm


def small(stages, head_width, activation="SiLU", alpha=1.0, eps=1e-5, decode=(), **arguments):
    from functools import partial

    import torch
    from timm.models._efficientnet_builder import decode_arch_def, round_channels
    from timm.models.efficientnet import EfficientNet

    return EfficientNet(
        decode_arch_def([[stage] for stage in stages], **dict(decode)),
        num_features=head_width,
        round_chs_fn=partial(round_channels, multiplier=alpha),
        act_layer=getattr(torch.nn, activation),
        norm_layer=partial(torch.nn.BatchNorm2d, eps=eps),
        **arguments,
    )


def check_drop_path(variant):
    """Which blocks skip does not show in shapes, so it is compared for sizes that are not run."""
    import torch

    with torch.device("meta"):
        reference = import_timm().create_model(variant, drop_path_rate=0.2)
    blocks = [block for stage in reference.blocks for block in stage]
    expected = [
        getattr(block.drop_path, "drop_prob", 0) if block.has_skip else None for block in blocks
    ]
    with without_allocation():
        model = create_model(variant, weights=None, drop_path_rate=0.2)
    ours = [layer for layer in model.layers if hasattr(layer, "skip")]
    assert [layer.drop_path.rate if layer.skip else None for layer in ours] == expected


def efficientnet_test():
    stages = ["ds_r1_k3_s1_e1_c16_se0.25", "ir_r2_k5_s2_e4_c24_se0.25", "ir_r1_k3_s2_e4_c32"]
    return small(stages, 24, alpha=0.5, decode={"depth_multiplier": 1.1})


def tf_efficientnet_lite_test():
    stages = ["ds_r1_k3_s1_e1_c8", "ir_r1_k5_s2_e3_c16"]
    decode = {"depth_multiplier": 1.4, "fix_first_last": True}
    same = {"pad_type": "same", "eps": 1e-3}
    return small(stages, 40, "ReLU6", alpha=1.2, decode=decode, stem_size=16, fix_stem=True, **same)


def tf_efficientnet_cc_test():
    stages = ["ds_r1_k3_s2_e1_c8_noskip", "ir_r2_k5_s2_e3_c16_se0.25_cc3"]
    return small(stages, 40, stem_size=16, pad_type="same", eps=1e-3)


class TestEfficientNet(FamilyTests):
    family = "efficientnet"
    reference = Timm(
        efficientnet_test=efficientnet_test,
        tf_efficientnet_lite_test=tf_efficientnet_lite_test,
        tf_efficientnet_cc_test=tf_efficientnet_cc_test,
    )
    parity_variant = "efficientnet_b0"
    # Kernels that depend on the image have no scales that a file could hold.
    without_integers = {"tf_efficientnet_cc_test": ["CondConv2D"]}
    # After a CondConv, whose kernels have no bias but one that the routing mixes too.
    keeps_batchnorm = r"tf_efficientnet_cc_test/stage1_\w+_norm$"

    @pytest.mark.parametrize("variant", ["efficientnet_b1", "tf_efficientnet_b5"])
    def test_the_same_blocks_skip_and_their_drop_path_grows_as_in_the_reference(self, variant):
        check_drop_path(variant)
