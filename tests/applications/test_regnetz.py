"""RegNetZ against timm."""

from functools import partial

from test_regnet import small

from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm


def regnetz_test():
    wide = {"w0": 8, "wa": 6.0, "bottle_ratio": 4.0, "linear_out": True, "num_features": 40}
    return small(se_ratio=0.25, act_layer="silu", downsample=None, **wide)


def regnetz_evos_test():
    from timm.layers import EvoNorm2dS0a
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    stages = zip((2, 1, 1, 1), (1, 2, 2, 2), (16, 16, 16, 32))
    blocks = [
        ByoBlockCfg(type="bottle", d=depth, c=width, s=strides, gs=8, br=2)
        for depth, strides, width in stages
    ]
    return ByobNet(
        ByoModelCfg(
            blocks=tuple(blocks),
            stem_chs=(16, 16, 16),
            stem_type="",
            stem_pool="",
            downsample="",
            num_features=32,
            act_layer="silu",
            norm_layer=partial(EvoNorm2dS0a, group_size=16),
            attn_layer="se",
            attn_kwargs={"rd_ratio": 0.25},
            block_kwargs={"bottle_in": True, "linear_out": True},
        )
    )


class TestRegNetZ(FamilyTests):
    family = "regnetz"
    reference = Timm(regnetz_test=regnetz_test, regnetz_evos_test=regnetz_evos_test)
    parity_variant = "regnetz_b16"
    # Of normalisations those over channels have a form in integers.
    without_integers = {"regnetz_evos_test": ["EvoNorm2D"]}
