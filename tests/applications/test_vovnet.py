"""VoVNet V1 and V2 against timm."""

import keras
import numpy as np

from keras_convnets.applications.vovnet import OSABlock
from keras_convnets.layers import EfficientChannelAttention
from keras_convnets.testing.conformance import FamilyTests, images
from keras_convnets.testing.reference import Timm


def vovnet(depths, layers, stem, mid, widths, **block):
    from timm.models.vovnet import VovNet

    return VovNet(
        dict(
            stem_chs=list(stem),
            stage_conv_chs=list(mid),
            stage_out_chs=list(widths),
            layer_per_block=layers,
            block_per_stage=list(depths),
            **{"residual": False, "depthwise": False, "attn": "", **block},
        )
    )


WIDTHS = (16, 16, 24, 32)


class TestVoVNet(FamilyTests):
    family = "vovnet"
    reference = Timm(
        vovnet27_slim=lambda: vovnet(
            (1, 1, 1, 1), 5, (64, 64, 128), (64, 80, 96, 112), (128, 256, 384, 512)
        ),
        ese_vovnet_test=lambda: vovnet(
            (1, 1, 2, 1), 2, (8, 8, 16), (8, 8, 16, 16), WIDTHS, residual=True, attn="ese"
        ),
        eca_vovnet_test=lambda: vovnet(
            (1, 1, 1, 1), 2, (8, 8, 8), (8, 16, 16, 16), WIDTHS, depthwise=True, attn="eca"
        ),
    )
    parity_variant = "ese_vovnet19b_dw"

    def test_every_layer_sees_one_map_and_the_aggregation_all_of_them(self):
        """Section 3.2 of V1: the layers' inputs do not grow as DenseNet's do."""
        block = OSABlock(8, 4, 6, layers=3)
        block.build((None, 16, 16, 8))
        assert [layer.conv.kernel.shape[2] for layer in block.layers] == [8, 4, 4]
        assert block.aggregate.conv.kernel.shape[2] == 8 + 3 * 4

    def test_efficient_channel_attention_is_equation_9(self):
        x = images(2, 5, 7, 256)
        layer = EfficientChannelAttention(256)
        y = keras.ops.convert_to_numpy(layer(x))
        taps = keras.ops.convert_to_numpy(layer.conv.kernel)[:, 0, 0]
        assert len(taps) == 5
        means = np.pad(x.mean((1, 2)), [(0, 0), (2, 2)])
        sums = sum(tap * means[:, i : i + 256] for i, tap in enumerate(taps))
        np.testing.assert_allclose(y, x / (1 + np.exp(-sums))[:, None, None], rtol=1e-4, atol=1e-5)
