"""ResNet with attention at the end of each residual branch, before the sum.

Papers: https://arxiv.org/abs/1709.01507 (SE), https://arxiv.org/abs/1910.03151 (ECA),
https://arxiv.org/abs/1807.06521 (CBAM), https://arxiv.org/abs/1810.12348 (Gather-Excite),
https://arxiv.org/abs/2403.01123 (ELA), and, for the pooling in the stem,
https://arxiv.org/abs/2101.00440 (SoftPool). Differs from them as timm does: the stride is in the
3x3 convolution, and names ending in d or t have the stem and the shortcuts of
https://arxiv.org/abs/1812.01187. Gather-Excite has here the forms that work at any size: the mean
of the whole map, and learned extents of 8.
"""

from __future__ import annotations

from keras_convnets.applications.base import application, image_functions
from keras_convnets.applications.resnet import KEYS, resnet
from keras_convnets.registry import Checkpoint, family

# Stems: convolutions of 3x3 instead of one of 7x7; with them shortcuts pool before they project.
D = dict(stem=(32, 32, 64), shortcut="pooled")
T = dict(stem=(24, 32, 64), shortcut="pooled")
X32 = dict(groups=32, group_width=4)
X32x8 = dict(groups=32, group_width=8)
X64 = dict(groups=64, group_width=4)
VARIANTS = {
    "seresnet18": dict(attention="se", block="basic", depths=(2, 2, 2, 2)),
    "seresnet34": dict(attention="se", block="basic", depths=(3, 4, 6, 3)),
    "seresnet50": dict(attention="se", depths=(3, 4, 6, 3)),
    "seresnet50t": dict(attention="se", depths=(3, 4, 6, 3), **T),
    "seresnet101": dict(attention="se", depths=(3, 4, 23, 3)),
    "seresnet152": dict(attention="se", depths=(3, 8, 36, 3)),
    "seresnet152d": dict(attention="se", depths=(3, 8, 36, 3), **D),
    "seresnet200d": dict(attention="se", depths=(3, 24, 36, 3), **D),
    "seresnet269d": dict(attention="se", depths=(3, 30, 48, 8), **D),
    "seresnetaa50d": dict(attention="se", depths=(3, 4, 6, 3), pool="average", **D),
    "seresnext26d_32x4d": dict(attention="se", depths=(2, 2, 2, 2), **X32, **D),
    "seresnext26t_32x4d": dict(attention="se", depths=(2, 2, 2, 2), **X32, **T),
    "seresnext50_32x4d": dict(attention="se", depths=(3, 4, 6, 3), **X32),
    "seresnext101_32x4d": dict(attention="se", depths=(3, 4, 23, 3), **X32),
    "seresnext101_32x8d": dict(attention="se", depths=(3, 4, 23, 3), **X32x8),
    "seresnext101d_32x8d": dict(attention="se", depths=(3, 4, 23, 3), **X32x8, **D),
    "seresnext101_64x4d": dict(attention="se", depths=(3, 4, 23, 3), **X64),
    "seresnextaa101d_32x8d": dict(
        attention="se", depths=(3, 4, 23, 3), pool="average", **X32x8, **D
    ),
    "seresnextaa201d_32x8d": dict(
        attention="se",
        depths=(3, 24, 36, 4),
        pool="average",
        stem=(64, 64, 128),
        shortcut="pooled",
        **X32x8,
    ),
    "senet154": dict(
        attention="se",
        depths=(3, 8, 36, 3),
        stem=(64, 64, 128),
        shortcut="convolved",
        first_share=0.5,
        **X64,
    ),
    "ecaresnet26t": dict(attention="eca", depths=(2, 2, 2, 2), **T),
    "ecaresnet50d": dict(attention="eca", depths=(3, 4, 6, 3), **D),
    "ecaresnet50t": dict(attention="eca", depths=(3, 4, 6, 3), **T),
    "ecaresnet101d": dict(attention="eca", depths=(3, 4, 23, 3), **D),
    "ecaresnet200d": dict(attention="eca", depths=(3, 24, 36, 3), **D),
    "ecaresnet269d": dict(attention="eca", depths=(3, 30, 48, 8), **D),
    "ecaresnetlight": dict(attention="eca", depths=(1, 1, 11, 3), shortcut="pooled"),
    "ecaresnext26t_32x4d": dict(attention="eca", depths=(2, 2, 2, 2), **X32, **T),
    "ecaresnext50t_32x4d": dict(attention="eca", depths=(3, 4, 6, 3), **X32, **T),
    "cbam_resnet50": dict(attention="cbam", depths=(3, 4, 6, 3)),
    "ge_minus_resnet50": dict(attention="ge_minus", depths=(3, 4, 6, 3)),
    "ge_theta_resnet50": dict(attention="ge_theta", depths=(3, 4, 6, 3)),
    "ge_plus_resnet50": dict(attention="ge_plus", depths=(3, 4, 6, 3)),
    "ela_t_resnet50": dict(attention="ela_t", depths=(3, 4, 6, 3)),
    "ela_b_resnet50": dict(attention="ela_b", depths=(3, 4, 6, 3)),
    "ela_s_resnet50": dict(attention="ela_s", depths=(3, 4, 6, 3)),
    "ela_l_resnet50": dict(attention="ela_l", depths=(3, 4, 6, 3)),
    "softpool_resnet50": dict(attention=None, depths=(3, 4, 6, 3), pool="soft"),
    "seresnext_test": dict(
        attention="se",
        depths=(1, 1, 2, 1),
        widths=(8, 8, 8, 8),
        groups=2,
        group_width=64,
        stem=(8, 8, 16),
        shortcut="pooled",
        pool="average",
    ),
    "ecaresnet_test": dict(
        attention="eca", block="basic", depths=(1, 1, 2, 1), widths=(8, 8, 8, 8)
    ),
    "contexts_resnet_test": dict(
        attention=("cbam", "ela_s", "ge_plus", "ge_minus"),
        depths=(1, 1, 1, 1),
        widths=(8, 8, 8, 8),
        pool="soft",
        shortcut="convolved",
        first_share=0.5,
    ),
}
WEIGHTS = {
    "seresnet50.a1_in1k": Checkpoint("apache-2.0", crop=0.95, top1=80.012),
    "seresnet50.a2_in1k": Checkpoint("apache-2.0", crop=0.95, top1=80.102),
    "seresnet50.a3_in1k": Checkpoint("apache-2.0", input_size=160, crop=0.95, top1=75.104),
    "seresnet50.ra2_in1k": Checkpoint("apache-2.0", top1=80.26),
    "seresnet152d.ra2_in1k": Checkpoint("apache-2.0", input_size=256, crop=0.95, top1=83.702),
    "seresnext26d_32x4d.bt_in1k": Checkpoint("apache-2.0", top1=77.592),
    "seresnext26t_32x4d.bt_in1k": Checkpoint("apache-2.0", top1=77.98),
    "seresnext50_32x4d.racm_in1k": Checkpoint("apache-2.0", top1=81.268),
    "seresnext50_32x4d.gluon_in1k": Checkpoint("apache-2.0", top1=79.916),
    "seresnext101_32x4d.gluon_in1k": Checkpoint("apache-2.0", top1=80.886),
    "seresnext101_32x8d.ah_in1k": Checkpoint("apache-2.0", crop=0.95, top1=83.618),
    "seresnext101_64x4d.gluon_in1k": Checkpoint("apache-2.0", top1=80.884),
    "seresnext101d_32x8d.ah_in1k": Checkpoint("apache-2.0", crop=0.95, top1=83.702),
    "seresnextaa101d_32x8d.sw_in12k_ft_in1k_288": Checkpoint(
        "apache-2.0", input_size=288, crop=0.95, top1=86.53
    ),
    "seresnextaa101d_32x8d.ah_in1k": Checkpoint("apache-2.0", crop=0.95, top1=83.9),
    "seresnextaa101d_32x8d.sw_in12k": Checkpoint("apache-2.0", crop=0.95, labels="imagenet-12k"),
    "seresnextaa101d_32x8d.sw_in12k_ft_in1k": Checkpoint("apache-2.0", top1=85.956),
    "seresnextaa201d_32x8d.sw_in12k_ft_in1k_384": Checkpoint(
        "apache-2.0", input_size=384, crop=1.0, top1=87.304
    ),
    "seresnextaa201d_32x8d.sw_in12k": Checkpoint(
        "apache-2.0", input_size=320, crop=0.95, labels="imagenet-12k"
    ),
    "ecaresnet26t.ra2_in1k": Checkpoint("apache-2.0", input_size=256, top1=78.894),
    "ecaresnet50d.miil_in1k": Checkpoint("apache-2.0", top1=80.634),
    "ecaresnet50t.ra2_in1k": Checkpoint("apache-2.0", input_size=256, top1=81.45),
    "ecaresnet50t.a1_in1k": Checkpoint("apache-2.0", crop=0.95, top1=81.282),
    "ecaresnet50t.a2_in1k": Checkpoint("apache-2.0", crop=0.95, top1=80.884),
    "ecaresnet50t.a3_in1k": Checkpoint("apache-2.0", input_size=160, crop=0.95, top1=77.786),
    "ecaresnet101d.miil_in1k": Checkpoint("apache-2.0", top1=82.18),
    "ecaresnet269d.ra2_in1k": Checkpoint("apache-2.0", input_size=320, crop=0.95, top1=84.724),
    "ecaresnetlight.miil_in1k": Checkpoint("apache-2.0", top1=80.454),
    "senet154.gluon_in1k": Checkpoint("apache-2.0", top1=81.258),
}


@family(VARIANTS, WEIGHTS, KEYS)
def resnet_attention(x, drop_path_rate=0.0, **variant):
    """Yields the stem and each stage, as `resnet` does: strides 2, 4, 8, 16, 32."""
    return resnet(x, drop_path_rate=drop_path_rate, **variant)


SEResNet18 = application("seresnet18")
SEResNet34 = application("seresnet34")
SEResNet50 = application("seresnet50")
SEResNet50t = application("seresnet50t")
SEResNet101 = application("seresnet101")
SEResNet152 = application("seresnet152")
SEResNet152d = application("seresnet152d")
SEResNet200d = application("seresnet200d")
SEResNet269d = application("seresnet269d")
SEResNetAA50d = application("seresnetaa50d")
SEResNeXt26d_32x4d = application("seresnext26d_32x4d")
SEResNeXt26t_32x4d = application("seresnext26t_32x4d")
SEResNeXt50_32x4d = application("seresnext50_32x4d")
SEResNeXt101_32x4d = application("seresnext101_32x4d")
SEResNeXt101_32x8d = application("seresnext101_32x8d")
SEResNeXt101d_32x8d = application("seresnext101d_32x8d")
SEResNeXt101_64x4d = application("seresnext101_64x4d")
SEResNeXtAA101d_32x8d = application("seresnextaa101d_32x8d")
SEResNeXtAA201d_32x8d = application("seresnextaa201d_32x8d")
SENet154 = application("senet154")
ECAResNet26t = application("ecaresnet26t")
ECAResNet50d = application("ecaresnet50d")
ECAResNet50t = application("ecaresnet50t")
ECAResNet101d = application("ecaresnet101d")
ECAResNet200d = application("ecaresnet200d")
ECAResNet269d = application("ecaresnet269d")
ECAResNetLight = application("ecaresnetlight")
ECAResNeXt26t_32x4d = application("ecaresnext26t_32x4d")
ECAResNeXt50t_32x4d = application("ecaresnext50t_32x4d")
CBAMResNet50 = application("cbam_resnet50")
GEMinusResNet50 = application("ge_minus_resnet50")
GEThetaResNet50 = application("ge_theta_resnet50")
GEPlusResNet50 = application("ge_plus_resnet50")
ELATResNet50 = application("ela_t_resnet50")
ELABResNet50 = application("ela_b_resnet50")
ELASResNet50 = application("ela_s_resnet50")
ELALResNet50 = application("ela_l_resnet50")
SoftPoolResNet50 = application("softpool_resnet50")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
