"""EfficientNetV2 and the Edge TPU networks against timm."""

import pytest

from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm
from tests.applications.test_efficientnet import check_drop_path, small


def tf_efficientnetv2_test():
    stages = ["cn_r2_k3_s1_e1_c16_skip", "ir_r1_k3_s2_e3_c24_se0.25", "er_r2_k3_s2_e2_c32"]
    return small(stages, 40, stem_size=16, pad_type="same", eps=1e-3)


class TestEfficientNetV2(FamilyTests):
    family = "efficientnet_v2"
    reference = Timm(tf_efficientnetv2_test=tf_efficientnetv2_test)
    parity_variant = "tf_efficientnetv2_b0"

    @pytest.mark.parametrize(
        "variant", ["efficientnet_em", "efficientnetv2_rw_t", "tf_efficientnetv2_s"]
    )
    def test_the_same_blocks_skip_and_their_drop_path_grows_as_in_the_reference(self, variant):
        check_drop_path(variant)
