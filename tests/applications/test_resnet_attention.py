"""ResNet with attention against timm, and for what timm does not have against the definitions."""

from functools import partial

import keras
import pytest

from keras_convnets import create_model
from keras_convnets.graph.rewrite import without_allocation
from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm, import_timm

PAPERS = ("cbam", "ge_minus", "ge_theta", "ge_plus", "ela_t", "ela_b", "ela_s", "ela_l")
SMALL = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}


def timm_resnet(attention, block="Bottleneck", layers=(3, 4, 6, 3), **arguments):
    """timm's ResNet with an attention of timm, by its name, or with a class of `definitions`."""
    import_timm()
    from timm.models import resnet

    attention = definitions().get(attention, attention)
    block = getattr(resnet, block)
    return resnet.ResNet(block, layers, block_args={"attn_layer": attention}, **arguments)


def seresnext_test():
    from torch import nn

    stem = {"stem_type": "deep", "stem_width": 8}
    more = {"cardinality": 2, "avg_down": True, "aa_layer": nn.AvgPool2d}
    return timm_resnet("se", **{**SMALL, "layers": (1, 1, 2, 1)}, **stem, **more)


def ecaresnet_test():
    return timm_resnet("eca", "BasicBlock", **{**SMALL, "layers": (1, 1, 2, 1)})


def soft_pooled(module):
    from torch import nn
    from torch.nn import functional as F

    class SoftPool(nn.Module):
        def forward(self, x):
            weights = x.exp()
            return F.avg_pool2d(weights * x, 2) / F.avg_pool2d(weights, 2)

    module.maxpool = SoftPool()
    return module


def softpool_resnet50():
    return soft_pooled(timm_resnet(None))


def contexts_resnet_test():
    module = timm_resnet(None, down_kernel_size=3, block_reduce_first=2, **SMALL)
    for stage, name in enumerate(("cbam", "ela_s", "ge_plus", "ge_minus"), start=1):
        getattr(module, f"layer{stage}")[0].se = definitions()[name](32)
    return soft_pooled(module)


def definitions():
    """The attention modules of the papers that timm lacks or has in another form, by name."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class CBAM(nn.Module):
        def __init__(self, channels, device=None, dtype=None):
            super().__init__()
            self.fc1 = nn.Conv2d(channels, channels // 16, 1)
            self.fc2 = nn.Conv2d(channels // 16, channels, 1)
            self.spatial = nn.Module()
            self.spatial.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
            self.spatial.norm = nn.BatchNorm2d(1)

        def forward(self, x):
            pooled = (x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True))
            x = x * sum(self.fc2(self.fc1(p).relu()) for p in pooled).sigmoid()
            maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
            return x * self.spatial.norm(self.spatial.conv(maps)).sigmoid()

    class GatherExcite(nn.Module):
        def __init__(self, channels, form, device=None, dtype=None):
            super().__init__()
            self.steps = 0 if form == "minus" else 3
            for i in range(self.steps):
                gather = nn.Module()
                gather.conv = nn.Conv2d(channels, channels, 3, 2, 1, groups=channels, bias=False)
                gather.norm = nn.BatchNorm2d(channels)
                setattr(self, f"gather{i}", gather)
            self.mlp = form == "plus"
            if self.mlp:
                self.mlp1 = nn.Conv2d(channels, channels // 16, 1)
                self.mlp2 = nn.Conv2d(channels // 16, channels, 1)

        def forward(self, x):
            y = x if self.steps else x.mean((2, 3), keepdim=True)
            for i in range(self.steps):
                gather = getattr(self, f"gather{i}")
                y = gather.norm(gather.conv(y.relu() if i else y))
            if self.mlp:
                y = self.mlp2(self.mlp1(y.relu()).relu())
            return x * F.interpolate(y.sigmoid(), x.shape[2:], mode="nearest")

    class ELA(nn.Module):
        def __init__(self, channels, form, device=None, dtype=None):
            super().__init__()
            taps = 5 if form in "ts" else 7
            groups = channels if form in "tb" else channels // 8
            self.conv = nn.Conv2d(
                channels, channels, (taps, 1), padding=(taps // 2, 0), groups=groups, bias=False
            )
            self.norm = nn.GroupNorm(32 if form == "t" else 16, channels)

        def forward(self, x):
            rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True).mT
            rows, columns = (self.norm(self.conv(y)).sigmoid() for y in (rows, columns))
            return x * rows * columns.mT

    forms = {f"ge_{form}": partial(GatherExcite, form=form) for form in ("minus", "theta", "plus")}
    forms |= {f"ela_{form}": partial(ELA, form=form) for form in "tbsl"}
    return {"cbam": CBAM, **forms}


class TestResNetAttention(FamilyTests):
    family = "resnet_attention"
    reference = Timm(
        seresnext_test=seresnext_test,
        ecaresnet_test=ecaresnet_test,
        contexts_resnet_test=contexts_resnet_test,
        softpool_resnet50=softpool_resnet50,
        **{f"{name}_resnet50": partial(timm_resnet, name) for name in PAPERS},
    )
    parity_variant = "seresnext26t_32x4d"
    # LiteRT has quotients in float only, and of normalisations those that we make of products.
    without_integers = {"contexts_resnet_test": ["GroupNormalization", "SoftPooling2D"]}

    @pytest.mark.optimised
    def test_every_trainable_variable_has_a_finite_gradient_that_is_not_zero(self):
        super().test_every_trainable_variable_has_a_finite_gradient_that_is_not_zero()

    @pytest.mark.parametrize(
        "variant, added",
        [("cbam_resnet50", 2_532_592), ("ge_minus_resnet50", 0), ("ecaresnet50d", 86)],
    )
    def test_attention_adds_the_parameters_of_the_paper(self, variant, added):
        """CBAM: 28.09 M of ResNet-50's 25.56 M; GE-theta-minus: none; ECA: 5 or 7 a block."""
        with without_allocation():
            model = create_model(variant, weights=None)
        layers = [layer.attention for layer in model.layers if hasattr(layer, "attention")]
        trained = [v for layer in layers for v in layer.trainable_variables]
        assert sum(keras.ops.size(v) for v in trained) == added
