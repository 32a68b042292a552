"""Inception-v3 against timm."""

import importlib
from unittest import mock

import pytest

from keras_convnets import create_model
from keras_convnets.testing.conformance import FamilyTests, assert_close, images, run
from keras_convnets.testing.reference import Timm
from keras_convnets.testing.seeded import seeded_state


def inception_v3_test(**arguments):
    from torch.nn import Identity, Linear

    inception_v3 = importlib.import_module("timm.models.inception_v3")

    def narrow(in_channels, out_channels, **conv):
        in_channels = in_channels if in_channels == 3 else in_channels // 32
        return conv_norm_act(in_channels, out_channels // 32, **conv)

    conv_norm_act = inception_v3.ConvNormAct
    with mock.patch.object(inception_v3, "ConvNormAct", narrow):
        module = inception_v3.InceptionV3(**arguments)
    for name in ("5d", "6c", "6d", "6e", "7c"):
        setattr(module, f"Mixed_{name}", Identity())
    module.fc = Linear(64, 1000)
    return module


def inception_v3_aux():
    from torch.nn import Linear

    module = inception_v3_test(aux_logits=True)
    module.AuxLogits.fc = Linear(24, 1000)
    return module


class TestInceptionV3(FamilyTests):
    family = "inception_v3"
    reference = Timm(inception_v3_test=inception_v3_test, aux=inception_v3_aux)
    parity_variant = "inception_v3"
    size = 96
    unpadded = 40
    # One channel in the stem and two behind it: nothing averages what 4 bits lose.

    def test_the_auxiliary_classifier_of_a_checkpoint_is_left(self):
        state = seeded_state(self.reference.facts("aux", 299)[0])
        assert any(key.startswith("AuxLogits.") for key in state)
        x = images(2, 96, 96, 3)
        arguments = dict(input_shape=x.shape[1:], classifier_activation=None)
        logits = run(create_model("inception_v3_test", weights=state, **arguments), x)
        bare = {key: value for key, value in state.items() if not key.startswith("AuxLogits.")}
        expected, _ = self.reference.run("inception_v3_test", bare, x)
        assert_close(logits, expected, self.tolerance, "logits")

    def test_fewer_than_75_pixels_are_refused(self):
        with pytest.raises(ValueError, match="at least 75 pixels"):
            create_model("inception_v3_test", weights=None, input_shape=(74, 96, 3))
        model = create_model("inception_v3_test", weights=None, input_shape=(75, 75, 3))
        assert model.layers[-5].output.shape[1:3] == (1, 1)
