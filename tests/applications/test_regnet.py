"""RegNet against timm."""

import pytest

from keras_convnets.applications.regnet import VARIANTS, stages
from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm


def small(**arguments):
    from timm.models.regnet import RegNet, RegNetCfg

    line = {"depth": 5, "w0": 16, "wa": 12.0, "wm": 1.6, "group_size": 8}
    return RegNet(RegNetCfg(**{**line, **arguments}))


def regnety_test():
    return small(se_ratio=0.25)


def regnetv_test():
    return small(se_ratio=0.25, preact=True, act_layer="silu", downsample="avg")


def regnetz_test():
    wide = {"w0": 8, "wa": 6.0, "bottle_ratio": 4.0, "linear_out": True, "num_features": 40}
    return small(se_ratio=0.25, act_layer="silu", downsample=None, **wide)


class TestRegNet(FamilyTests):
    family = "regnet"
    reference = Timm(
        regnety_test=regnety_test, regnetv_test=regnetv_test, regnetz_test=regnetz_test
    )
    parity_variant = "regnetx_002"
    # Of sums of branches, and after the squeeze-and-excitation.
    keeps_batchnorm = r"regnetv_test/stage\d_block\d_norm[13]$"
    # Maps that no BatchNorm bounds reach further on new photographs than when calibrated.

    @pytest.mark.parametrize(
        "variant, depths, widths",
        [
            ("regnetx_032", (2, 6, 15, 2), (96, 192, 432, 1008)),
            ("regnety_160", (2, 4, 11, 1), (224, 448, 1232, 3024)),
        ],
    )
    def test_stages_are_those_of_the_papers_figures_15_and_17(self, variant, depths, widths):
        arguments = VARIANTS[variant]
        found = list(stages(arguments["depth"], arguments["line"], arguments["group_width"]))
        assert tuple(stage[0] for stage in found) == depths
        assert tuple(stage[1] for stage in found) == widths
