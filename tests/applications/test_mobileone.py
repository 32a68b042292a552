"""MobileOne against timm."""

from keras_convnets import create_model
from keras_convnets.graph import fold_batchnorm, graph_nodes, reparameterize
from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm


def mobileone_test():
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    widths, depths, squeezed, channels, stages = (
        (16, 24, 32, 48),
        (1, 2, 1, 1),
        (0, 0, 1, 1),
        16,
        [],
    )
    for width, depth, last in zip(widths, depths, squeezed):
        blocks = []
        for i in range(depth):
            attention = dict(attn_layer="se") if i >= depth - last else {}
            depthwise, pointwise = (
                dict(num_conv_branches=2),
                dict(num_conv_branches=2, kernel_size=1),
            )
            blocks += [
                ByoBlockCfg("one", d=1, c=channels, gs=1, block_kwargs=depthwise, **attention),
                ByoBlockCfg("one", d=1, c=width, gs=0, block_kwargs=pointwise, **attention),
            ]
            channels = width
        stages.append(blocks)
    return ByobNet(
        ByoModelCfg(
            blocks=tuple(stages),
            stem_type="one",
            stem_chs=16,
            attn_kwargs=dict(rd_ratio=0.25, rd_divisor=1),
        )
    )


class TestMobileOne(FamilyTests):
    family = "mobileone"
    reference = Timm(mobileone_test=mobileone_test)
    parity_variant = "mobileone_s1"

    def test_inference_is_a_plain_chain_of_convolutions(self):
        """Table 2: 43 convolutions, each with its activation, whatever the branches in training."""
        merged = fold_batchnorm(reparameterize(create_model("mobileone_s0", weights=None)))
        kinds = [type(layer).__name__ for layer in merged.layers]
        assert sum("Conv2D" in kind for kind in kinds) == 1 + 2 * 21
        assert set(kinds) <= {
            "InputLayer",
            "ZeroPadding2D",
            "Conv2D",
            "DepthwiseConv2D",
            "Activation",
            "GlobalAveragePooling2D",
            "Dense",
        }
        assert all(len(node.input_tensors) == 1 for node in graph_nodes(merged))
