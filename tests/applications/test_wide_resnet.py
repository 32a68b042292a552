"""Wide ResNet against its definition, which timm does not have for small images."""

from functools import partial

import pytest

from keras_convnets import create_model
from keras_convnets.applications.wide_resnet import VARIANTS, WEIGHTS
from keras_convnets.graph import count
from keras_convnets.graph.rewrite import without_allocation
from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm


def wide_resnet(depth, factor, dropout=0.0):
    import torch
    from torch import nn

    class WideBlock(nn.Module):
        def __init__(self, channels, width, stride):
            super().__init__()
            self.bn1 = nn.BatchNorm2d(channels)
            self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            if channels != width or stride > 1:
                self.convShortcut = nn.Conv2d(channels, width, 1, stride, bias=False)

        def forward(self, x):
            y = self.bn1(x).relu()
            x = self.convShortcut(y) if hasattr(self, "convShortcut") else x
            return x + self.conv2(self.bn2(self.conv1(y)).relu())

    class WideResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, channels = nn.Conv2d(3, 16, 3, 1, 1, bias=False), 16
            for stage in (1, 2, 3):
                width, blocks = int(8 * 2**stage * factor), []
                for i in range((depth - 4) // 6):
                    blocks.append(WideBlock(channels, width, 2 if stage > 1 and i == 0 else 1))
                    channels = width
                block = nn.Module()
                block.layer = nn.Sequential(*blocks)
                setattr(self, f"block{stage}", block)
            self.bn1 = nn.BatchNorm2d(channels)
            self.fc = nn.Linear(channels, 1000)
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)

        def forward_intermediates(self, x, intermediates_only):
            taps = [self.block1.layer(self.conv1(x))]
            taps.append(self.block2.layer(taps[-1]))
            return [*taps, self.block3.layer(taps[-1])]

        def forward(self, x):
            last = self.forward_intermediates(x, True)[-1]
            return self.fc(torch.mean(self.bn1(last).relu(), (2, 3)))

    return WideResNet()


class TestWideResNet(FamilyTests):
    family = "wide_resnet"
    reference = Timm(**{name: partial(wide_resnet, **VARIANTS[name]) for name in VARIANTS})
    parity_variant = "wrn_40_1"
    size = 32
    # After sums of branches.
    keeps_batchnorm = r"_block\d+_norm1$|final_norm$"

    def test_logits_from_the_pixels_of_a_photograph(self):
        assert not WEIGHTS  # and so there is no preprocessing to compare

    @pytest.mark.parametrize(
        "variant, millions",
        [
            ("wrn_16_4", 2.75),
            ("wrn_16_8", 10.96),
            ("wrn_28_10", 36.48),
            ("wrn_40_2", 2.24),
            ("wrn_40_4", 8.95),
        ],
    )
    def test_parameters_for_cifar_10(self, variant, millions):
        with without_allocation():
            model = create_model(variant, weights=None, classes=10, input_shape=(32, 32, 3))
        assert round(count(model).parameters / 1e6, 2) == millions
