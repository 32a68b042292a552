from pathlib import Path

import pytest

from keras_convnets.applications import UniRepLKNetA
from keras_convnets.applications.unireplknet import UniRepLKNetBlock
from keras_convnets.graph import count, fold_batchnorm, reparameterize
from keras_convnets.testing.golden import Golden, GoldenTests


class TestUniRepLKNet(GoldenTests):
    family = "unireplknet"
    reference = Golden(Path(__file__).parent / "data/unireplknet")
    initial = (("act.1.", None), ("", 0.02))
    gain = 0.8
    # Constants that a BatchNorm follows, behind a sum and behind a linear map.
    no_gradient = r"depthwise/norm(_k\d_d\d)?/beta|grn/beta"

    def test_merged_form_has_the_published_size(self):
        """Branches, norms, scales and the bias of the response are gone: 4.4M and 0.6G."""
        merged = fold_batchnorm(reparameterize(UniRepLKNetA(weights=None)))
        counts = count(merged)
        assert (counts.parameters, counts.macs) == (4_437_300, 639_843_520)

    def test_refuses_kernels_that_no_branches_are_known_for(self):
        with pytest.raises(ValueError, match=r"kernel_size=19 must be one of \[3, 5, 7, 9"):
            UniRepLKNetBlock(8, 19)
