"""ResNet-C, -D, -S, -T: stems of 3x3 convolutions, and shortcuts that lose no positions.

Papers: https://arxiv.org/abs/1812.01187, figure 2 (C and D), and https://arxiv.org/abs/1904.11486
for the aa variants, with average pooling instead of strides. Differs from the first as timm does: S
has a wider stem, T one of tiered widths.
"""

from __future__ import annotations

from keras_convnets.applications.base import application, image_functions
from keras_convnets.applications.resnet import KEYS, resnet
from keras_convnets.registry import Checkpoint, family

C = dict(stem=(32, 32, 64))
D = dict(stem=(32, 32, 64), shortcut="pooled")
S = dict(stem=(64, 64, 128))
T = dict(stem=(24, 32, 64), shortcut="pooled")
VARIANTS = {
    "resnet10t": dict(block="basic", depths=(1, 1, 1, 1), **T),
    "resnet14t": dict(depths=(1, 1, 1, 1), **T),
    "resnet18d": dict(block="basic", depths=(2, 2, 2, 2), **D),
    "resnet26d": dict(depths=(2, 2, 2, 2), **D),
    "resnet26t": dict(depths=(2, 2, 2, 2), **T),
    "resnet34d": dict(block="basic", depths=(3, 4, 6, 3), **D),
    "resnet50c": dict(depths=(3, 4, 6, 3), **C),
    "resnet50d": dict(depths=(3, 4, 6, 3), **D),
    "resnet50s": dict(depths=(3, 4, 6, 3), **S),
    "resnet50t": dict(depths=(3, 4, 6, 3), **T),
    "resnet101c": dict(depths=(3, 4, 23, 3), **C),
    "resnet101d": dict(depths=(3, 4, 23, 3), **D),
    "resnet101s": dict(depths=(3, 4, 23, 3), **S),
    "resnet152c": dict(depths=(3, 8, 36, 3), **C),
    "resnet152d": dict(depths=(3, 8, 36, 3), **D),
    "resnet152s": dict(depths=(3, 8, 36, 3), **S),
    "resnet200d": dict(depths=(3, 24, 36, 3), **D),
    "resnetaa34d": dict(block="basic", depths=(3, 4, 6, 3), pool="average", **D),
    "resnetaa50": dict(depths=(3, 4, 6, 3), pool="average"),
    "resnetaa50d": dict(depths=(3, 4, 6, 3), pool="average", **D),
    "resnetaa101d": dict(depths=(3, 4, 23, 3), pool="average", **D),
    "resnet_d_test": dict(
        block="basic",
        depths=(1, 1, 2, 1),
        widths=(16, 16, 24, 24),
        stem=(8, 8, 16),
        shortcut="pooled",
        pool="average",
    ),
}
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
WEIGHTS = {
    "resnet10t.c3_in1k": Checkpoint("apache-2.0", input_size=176, top1=66.724),
    "resnet14t.c3_in1k": Checkpoint("apache-2.0", input_size=176, top1=71.318),
    "resnet18d.ra2_in1k": Checkpoint("apache-2.0", top1=72.296),
    "resnet18d.ra4_e3600_r224_in1k": Checkpoint("apache-2.0", crop=0.9, **HALF, top1=74.356),
    "resnet26d.bt_in1k": Checkpoint("apache-2.0", top1=76.698),
    "resnet26t.ra2_in1k": Checkpoint("apache-2.0", input_size=256, crop=0.94, top1=77.878),
    "resnet34d.ra2_in1k": Checkpoint("apache-2.0", top1=77.108),
    "resnet50c.gluon_in1k": Checkpoint("apache-2.0", top1=78.016),
    "resnet50d.ra2_in1k": Checkpoint("apache-2.0", top1=80.546),
    "resnet50d.a1_in1k": Checkpoint("apache-2.0", crop=0.95, top1=80.73),
    "resnet50d.a2_in1k": Checkpoint("apache-2.0", crop=0.95, top1=80.268),
    "resnet50d.a3_in1k": Checkpoint("apache-2.0", input_size=160, crop=0.95, top1=77.222),
    "resnet50d.gluon_in1k": Checkpoint("apache-2.0", top1=79.08),
    "resnet50d.ra4_e3600_r224_in1k": Checkpoint("apache-2.0", crop=0.95, **HALF, top1=80.956),
    "resnet50s.gluon_in1k": Checkpoint("apache-2.0", top1=78.71),
    "resnet101c.gluon_in1k": Checkpoint("apache-2.0", top1=79.542),
    "resnet101d.ra2_in1k": Checkpoint("apache-2.0", input_size=256, crop=0.95, top1=82.254),
    "resnet101d.gluon_in1k": Checkpoint("apache-2.0", top1=80.466),
    "resnet101s.gluon_in1k": Checkpoint("apache-2.0", top1=80.278),
    "resnet152c.gluon_in1k": Checkpoint("apache-2.0", top1=79.904),
    "resnet152d.ra2_in1k": Checkpoint("apache-2.0", input_size=256, crop=0.95, top1=83.16),
    "resnet152d.gluon_in1k": Checkpoint("apache-2.0", top1=80.476),
    "resnet152s.gluon_in1k": Checkpoint("apache-2.0", top1=81.048),
    "resnet200d.ra2_in1k": Checkpoint("apache-2.0", input_size=256, crop=0.95, top1=83.25),
    "resnetaa50.a1h_in1k": Checkpoint("apache-2.0", crop=0.95, top1=80.614),
    "resnetaa50d.sw_in12k_ft_in1k": Checkpoint("apache-2.0", crop=0.95, top1=81.782),
    "resnetaa50d.d_in12k": Checkpoint("apache-2.0", crop=0.95, labels="imagenet-12k"),
    "resnetaa50d.sw_in12k": Checkpoint("apache-2.0", crop=0.95, labels="imagenet-12k"),
    "resnetaa101d.sw_in12k_ft_in1k": Checkpoint("apache-2.0", crop=0.95, top1=83.544),
    "resnetaa101d.sw_in12k": Checkpoint("apache-2.0", crop=0.95, labels="imagenet-12k"),
}


@family(VARIANTS, WEIGHTS, KEYS)
def resnet_d(x, drop_path_rate=0.0, **variant):
    """Yields the stem and each stage, as `resnet` does: strides 2, 4, 8, 16, 32."""
    return resnet(x, drop_path_rate=drop_path_rate, **variant)


ResNet10t = application("resnet10t")
ResNet14t = application("resnet14t")
ResNet18d = application("resnet18d")
ResNet26d = application("resnet26d")
ResNet26t = application("resnet26t")
ResNet34d = application("resnet34d")
ResNet50c = application("resnet50c")
ResNet50d = application("resnet50d")
ResNet50s = application("resnet50s")
ResNet50t = application("resnet50t")
ResNet101c = application("resnet101c")
ResNet101d = application("resnet101d")
ResNet101s = application("resnet101s")
ResNet152c = application("resnet152c")
ResNet152d = application("resnet152d")
ResNet152s = application("resnet152s")
ResNet200d = application("resnet200d")
ResNetAA34d = application("resnetaa34d")
ResNetAA50 = application("resnetaa50")
ResNetAA50d = application("resnetaa50d")
ResNetAA101d = application("resnetaa101d")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
