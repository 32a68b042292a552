"""ResNet-TS and -Q against timm."""

import keras
import numpy as np

from keras_convnets.layers import GlobalContext
from keras_convnets.testing.conformance import FamilyTests, images
from keras_convnets.testing.reference import Timm


def small(blocks, **arguments):
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    blocks = tuple(ByoBlockCfg(**block) for block in blocks)
    return ByobNet(ByoModelCfg(blocks=blocks, stem_type="", act_layer="silu", **arguments))


def resnet_ts_test():
    stages = zip((1, 2, 1, 1), (1, 2, 2, 2), (0.25, 0.25, 1.0, 0.25), ("se", "eca", "gca", ""))
    blocks = [
        dict(type="bottle", d=depth, c=64, s=strides, gs=8, br=share, attn_layer=attention)
        for depth, strides, share, attention in stages
    ]
    return small(blocks, stem_chs=(8, 16, 16), stem_pool="maxpool", num_features=40)


def resnet_q_test():
    from timm.layers import create_conv2d

    blocks = [
        dict(type="edge", d=1, c=32, s=1, gs=0, br=1.0, block_kwargs={}),
        dict(type="bottle", d=1, c=64, s=2, gs=0, br=0.25),
        dict(type="bottle", d=1, c=64, s=2, gs=8, br=0.25),
        dict(type="bottle", d=1, c=48, s=2, gs=1, br=1.0),
    ]
    extra = {"extra_conv": True}
    module = small(blocks, stem_chs=(16, 16, 16, 16), stem_pool="", block_kwargs=extra)
    module.stem.conv1 = create_conv2d(3, 16, kernel_size=3, stride=2)
    module.stem.conv2 = create_conv2d(16, 16, kernel_size=3)
    return module


class TestResNetTS(FamilyTests):
    family = "resnet_ts"
    reference = Timm(resnet_ts_test=resnet_ts_test, resnet_q_test=resnet_q_test)
    parity_variant = "gcresnext26ts"
    no_gradient = "attention/attend/bias"  # which adds the same to all that a softmax takes

    def test_the_context_is_a_mean_weighted_by_a_softmax_over_positions(self):
        """Figure 4d of Cao et al., context modelling."""
        x = images(2, 5, 7, 16)
        layer = GlobalContext(16)
        layer.build(x.shape)
        kernel = images(1, 1, 16, 1)
        layer.attend.kernel.assign(kernel)
        weights = np.exp(x @ kernel[0, 0])
        expected = (x * weights / weights.sum((1, 2), keepdims=True)).sum((1, 2))
        context = keras.ops.convert_to_numpy(layer.context(x))
        np.testing.assert_allclose(context[:, 0, 0], expected, rtol=1e-4, atol=1e-5)
