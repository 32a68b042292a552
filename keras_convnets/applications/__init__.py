"""Models with the signature and semantics of `keras.applications`, one module per family."""

from keras_convnets.applications.convnext import (
    ConvNeXtAtto,
    ConvNeXtBase,
    ConvNeXtFemto,
    ConvNeXtLarge,
    ConvNeXtNano,
    ConvNeXtPico,
    ConvNeXtSmall,
    ConvNeXtTiny,
    ConvNeXtV2Atto,
    ConvNeXtV2Base,
    ConvNeXtV2Femto,
    ConvNeXtV2Huge,
    ConvNeXtV2Large,
    ConvNeXtV2Nano,
    ConvNeXtV2Pico,
    ConvNeXtV2Small,
    ConvNeXtV2Tiny,
    ConvNeXtXLarge,
)
from keras_convnets.applications.mobilenet_v2 import (
    MobileNetV2_035,
    MobileNetV2_050,
    MobileNetV2_075,
    MobileNetV2_100,
    MobileNetV2_110d,
    MobileNetV2_120d,
    MobileNetV2_130,
    MobileNetV2_140,
)
from keras_convnets.applications.resnet import (
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
    WideResNet50_2,
    WideResNet101_2,
)
