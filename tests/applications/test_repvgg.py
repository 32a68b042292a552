"""RepVGG against timm."""

import numpy as np

from keras_convnets import create_model
from keras_convnets.testing.conformance import FamilyTests, assert_close, images, run
from keras_convnets.testing.reference import Timm
from keras_convnets.testing.seeded import seeded_state


def repvgg_test():
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    def group_size(channels, index):
        return channels // 4 if index % 2 else 0

    return ByobNet(
        ByoModelCfg(
            blocks=tuple(ByoBlockCfg(type="rep", d=d, c=16, gs=group_size) for d in (1, 2, 1, 1)),
            stem_type="rep",
            stem_chs=16,
            attn_layer="se",
            attn_kwargs=dict(rd_ratio=0.25, rd_divisor=1),
        )
    )


class TestRepVGG(FamilyTests):
    family = "repvgg"
    reference = Timm(repvgg_test=repvgg_test)
    parity_variant = "repvgg_a0"

    def test_both_convolutions_of_the_stem_take_other_channels(self):
        state = seeded_state(self.reference.facts("repvgg_test", 224)[0])
        x = images(2, 64, 64, 1)
        arguments = dict(weights=state, classifier_activation=None)
        gray = create_model("repvgg_test", input_shape=(64, 64, 1), **arguments)
        color = create_model("repvgg_test", input_shape=(64, 64, 3), **arguments)
        expected = run(color, np.repeat(x, 3, axis=-1))
        assert_close(run(gray, x), expected, self.tolerance, "logits")
