"""RegNet against timm."""

from functools import partial

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


def regnety_sgn_test():
    from timm.layers import GroupNormAct

    norm = {"act_layer": "silu", "norm_layer": partial(GroupNormAct, group_size=16)}
    return small(depth=4, wa=16.0, wm=1.26, group_size=4, se_ratio=0.25, **norm)


class TestRegNet(FamilyTests):
    family = "regnet"
    reference = Timm(regnety_test=regnety_test, regnety_sgn_test=regnety_sgn_test)
    parity_variant = "regnetx_002"
    # Of normalisations those over channels have a form in integers.
    without_integers = {"regnety_sgn_test": ["GroupNormalization"]}

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
