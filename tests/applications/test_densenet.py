"""DenseNet against timm."""

from keras_convnets import create_model
from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm


def densenet_test():
    from timm.models.densenet import DenseNet

    return DenseNet(growth_rate=4, block_config=(1, 1, 2, 1), stem_type="deep")


def densenetblur_test():
    from timm.layers import BlurPool2d
    from timm.models.densenet import DenseNet

    return DenseNet(growth_rate=4, block_config=(1, 1), stem_type="deep", aa_layer=BlurPool2d)


class TestDenseNet(FamilyTests):
    family = "densenet"
    reference = Timm(densenet_test=densenet_test, densenetblur_test=densenetblur_test)
    parity_variant = "densenet121"
    # Before the first activation of a layer: what they normalise has other users.
    keeps_batchnorm = r"_norm1$|/transition\d_norm$|/norm5$"

    def test_each_layer_adds_the_growth_and_each_transition_halves(self):
        """Section 3, for the depths and the growth of table 1."""
        model = create_model("densenet169", weights=None, features=True)
        channels = 2 * 32
        expected = [channels]
        for depth in (6, 12, 32, 32):
            channels += 32 * depth
            expected.append(channels)
            channels //= 2
        assert [tap.shape[-1] for tap in model.outputs] == expected
