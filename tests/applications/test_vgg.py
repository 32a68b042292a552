"""VGG against timm."""

from keras_convnets import create_model
from keras_convnets.testing.conformance import FamilyTests, assert_close, images, run
from keras_convnets.testing.reference import Timm
from keras_convnets.testing.seeded import seeded_state


def small(**norm):
    from timm.layers import ClassifierHead
    from timm.models.vgg import VGG, ConvMlp

    module = VGG([6, "M", 6, "M", 6, "M", 6, "M", 6, 6, "M"], **norm)
    module.pre_logits = ConvMlp(6, 48, drop_rate=0.0)
    module.head = ClassifierHead(48, 1000)
    return module


def small_with_batch_norm():
    from torch.nn import BatchNorm2d

    return small(norm_layer=BatchNorm2d)


class TestVGG(FamilyTests):
    family = "vgg"
    twins = ("vgg_test",)
    reference = Timm(vgg_test=small, vgg_bn_test=small_with_batch_norm)
    parity_variant = "vgg11"
    no_gradient = r"vgg_bn_test/features_\d+/bias"
    # Of images of 224 pixels the last map needs no enlarging.
    without_integers = {"vgg_test": ["EnlargeSmallMap"], "vgg_bn_test": ["EnlargeSmallMap"]}

    def test_a_large_image_gives_the_average_of_the_class_scores(self):
        """Section 3.2, with open and with static sides."""
        state = seeded_state(self.reference.facts("vgg_test", 224)[0])
        x = images(2, 288, 256, 3)
        expected, _ = self.reference.run("vgg_test", state, x)
        for shape in (x.shape[1:], (None, None, 3)):
            arguments = dict(weights=state, input_shape=shape, classifier_activation=None)
            model = create_model("vgg_test", **arguments)
            assert_close(run(model, x), expected, self.tolerance, f"{shape}: logits")
