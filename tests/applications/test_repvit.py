"""RepViT against timm."""

import numpy as np
import pytest

from keras_convnets import create_model
from keras_convnets.testing.conformance import FamilyTests, assert_close, run
from keras_convnets.testing.reference import Timm
from keras_convnets.testing.seeded import seeded_state


def repvit_test():
    from timm.models.repvit import RepVit

    return RepVit(embed_dim=(16, 16, 24), depth=(1, 2, 1))


def repvit_branches_test():
    from timm.models.repvit import RepVit

    return RepVit(embed_dim=(16, 24), depth=(1, 1), legacy=True)


class TestRepViT(FamilyTests):
    family = "repvit"
    reference = Timm(repvit_test=repvit_test, repvit_branches_test=repvit_branches_test)
    parity_variant = "repvit_m0_9"
    gain = 0.5
    # What the next normalisation takes away again.
    no_gradient = r"repvit_test/.*token_mixer/(conv1/bias|conv/norm/beta)"

    def test_logits_are_the_mean_of_two_heads(self):
        model = self.model("repvit_test")
        pooled = run(self.seeded("repvit_test", include_top=False, pooling="avg"), self.x)
        heads = []
        for name in ("head", "head_dist"):
            gamma, beta, mean, variance = model.get_layer(f"{name}_norm").get_weights()
            kernel, bias = model.get_layer(name).get_weights()
            normal = (pooled - mean) / np.sqrt(variance + 1e-5) * gamma + beta
            heads.append(normal @ kernel + bias)
        assert_close(self.logits("repvit_test"), (heads[0] + heads[1]) / 2, 1e-5, "logits")

    def test_both_heads_start_fresh_with_another_number_of_classes(self):
        state = seeded_state(self.reference.facts("repvit_test", 224)[0])
        with pytest.warns(UserWarning, match="starts fresh"):
            model = create_model("repvit_test", weights=state, classes=7, input_shape=(64, 64, 3))
        assert model.output.shape == (None, 7)
        mean = model.get_layer("head_dist_norm").moving_mean
        np.testing.assert_array_equal(np.array(mean), state["head.head_dist.bn.running_mean"])
