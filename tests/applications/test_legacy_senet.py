"""The first SENets against timm."""

from keras_convnets import create_model
from keras_convnets.graph.rewrite import without_allocation
from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm


def small(block, layers):
    """timm's network with stages 16 wide; their widths are no argument."""
    from timm.models import senet
    from torch import nn

    class Narrow(senet.SENet):
        def _make_layer(self, block, planes, *args, **kwargs):
            return super()._make_layer(block, 16, *args, **kwargs)

    block = getattr(senet, block)
    module = Narrow(block, layers, groups=1, reduction=4)
    module.last_linear = nn.Linear(16 * block.expansion, 1000)
    return module


class TestLegacySENet(FamilyTests):
    family = "legacy_senet"
    reference = Timm(
        legacy_seresnet_basic_test=lambda: small("SEResNetBlock", (1, 1, 1, 1)),
        legacy_seresnet_test=lambda: small("SEResNetBottleneck", (1, 2, 1, 1)),
    )
    parity_variant = "legacy_seresnext26_32x4d"

    def test_only_the_caffe_resnets_have_the_stride_in_the_first_convolution(self):
        for variant, strides in (("legacy_seresnet50", (2, 1)), ("legacy_senet154", (1, 2))):
            with without_allocation():
                model = create_model(variant, weights=None, include_top=False)
            block = model.get_layer("stage2_block0")
            assert (block.conv1.conv.strides[0], block.conv2.conv.strides[0]) == strides
