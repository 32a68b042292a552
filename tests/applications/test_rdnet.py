"""RDNet against timm."""

import numpy as np
from safetensors.numpy import save_file

from keras_convnets import create_model
from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm
from keras_convnets.weights import state_dict


def rdnet_test():
    from timm.models.rdnet import RDNet

    return RDNet(
        num_init_features=16,
        growth_rates=(8, 8, 8, 8),
        num_blocks_list=(1, 1, 1, 1),
        is_downsample_block=(None, True, False, True),
        block_type=("Block", "Block", "BlockESE", "BlockESE"),
    )


class TestRDNet(FamilyTests):
    family = "rdnet"
    reference = Timm(rdnet_test=rdnet_test)
    parity_variant = "rdnet_tiny"

    def test_layers_add_the_growth_and_more_transitions_than_resolutions_halve(self):
        """Section 3.2: a transition after each three layers, of which only some shrink the map."""
        model = create_model("rdnet_tiny", weights=None, features=True)
        channels, expected = 64, []
        for stage, growth in enumerate((64, 104, 128, 128, 128, 128, 224)):
            channels = (channels // 16 * 8 if stage else channels) + 3 * growth
            if stage in (0, 1, 5, 6):
                expected.append(channels)
        assert [tap.shape[-1] for tap in model.outputs] == expected

    def test_a_published_file_has_the_names_of_its_authors(self, tmp_path):
        expected = state_dict(self.model("rdnet_test"))
        file = tmp_path / "rdnet.safetensors"
        save_file({key.replace("stem.", "stem.stem."): v for key, v in expected.items()}, file)
        loaded = create_model("rdnet_test", weights=file)
        for key, value in state_dict(loaded).items():
            np.testing.assert_array_equal(value, expected[key])
