"""NFNet against timm."""

import pytest

from keras_convnets.applications.nfnet import VARIANTS
from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm


def small(**arguments):
    from timm.models.nfnet import NfCfg, NormFreeNet

    sizes = {"depths": (1, 1, 2, 1), "channels": (16, 16, 24, 24), "num_features": 40}
    se = {"attn_layer": "se", "attn_kwargs": {"rd_ratio": 0.5}, "group_size": 8}
    return NormFreeNet(NfCfg(**sizes, **se, **arguments))


def dm_nfnet_test():
    authors = {"gamma_in_act": True, "same_padding": True, "skipinit": True, "act_layer": "gelu"}
    return small(stem_type="deep_quad", stem_chs=32, extra_conv=True, **authors)


class TestNFNet(FamilyTests):
    family = "nfnet"
    reference = Timm(dm_nfnet_test=dm_nfnet_test)
    parity_variant = "nfnet_l0"

    @pytest.mark.parametrize("index", range(8))
    def test_depths_grow_linearly_with_the_index(self, index):
        """Table 1: F_n has n + 1 times the blocks of F0."""
        depths = VARIANTS[f"nfnet_f{index}"]["depths"]
        assert depths == tuple((index + 1) * depth for depth in (1, 2, 6, 3))
