"""The authors' own PyTorch code, from checkouts that the user has.

`python -m benchmarks --official FOLDER` looks there for the repositories of `OFFICIAL`, by their
names, and measures the smallest variant of each family beside ours. Their code is run as it is.
What it imports and cannot have on a CPU, or needs for other purposes only, is put in place before.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from keras_convnets.benchmark import Library
from keras_convnets.benchmark.libraries import AbsentError, Loader


class Official(NamedTuple):
    """Where the authors' code of a model is, and how it is called.

    Attributes:
        repository: owner and name; the checkout is a folder of that name.
        folder: inside it, from which modules are imported.
        module: that has the factory.
        make: called with the module, gives the network.
        prepare: called with the checkout before the import.
        size: side of the images in pixels, where the network takes no other.
    """

    repository: str
    folder: str
    module: str
    make: Callable
    prepare: Callable[[Path], None] = lambda checkout: None
    size: int | None = None


def put(name: str, **contents) -> types.ModuleType:
    """Puts a module of the given contents where `import name` finds it."""
    module = types.ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module
    return module


def prepare_lsnet(checkout: Path) -> None:
    """The small-kernel aggregation is there for Triton on a GPU only: here its definition, the
    products of the taps of a 3x3 window with a kernel for each place, channels taking turns."""
    import torch

    class SKA(torch.nn.Module):
        def forward(self, x, w):
            batch, channels, height, width = x.shape
            groups, taps = w.shape[1:3]
            side = round(taps**0.5)
            windows = torch.nn.functional.unfold(x, side, padding=side // 2)
            windows = windows.view(batch, channels // groups, groups, taps, height, width)
            return (windows * w[:, None]).sum(3).view(x.shape)

    def build_model_with_cfg(network, variant, pretrained, default_cfg, **arguments):
        return network(**arguments)

    put("model", __path__=[str(checkout / "model")])
    put("model.ska", SKA=SKA)
    # An older timm: it describes checkpoints otherwise.
    put("timm.models.helpers", build_model_with_cfg=build_model_with_cfg)
    put("timm.models.registry", register_model=lambda factory: factory)


def prepare_ffnet(checkout: Path) -> None:
    """An older timm: its look-up of checkpoints, of which none is loaded here."""
    from timm.models import _builder

    description = types.SimpleNamespace(to_dict=dict)
    _builder.resolve_pretrained_cfg = lambda name: description
    _builder._update_default_kwargs = lambda *arguments, **options: None


def prepare_dcnv4(checkout: Path) -> None:
    """The operator is there for CUDA only. The repository has DCNv3 in plain PyTorch, which is
    DCNv4 where the mask is not normalised; the module around it is the authors' own."""
    put("DCNv3")  # the compiled one
    distribution = types.SimpleNamespace(version="1.0")
    put("pkg_resources", get_distribution=lambda name: distribution)
    core = _from_file("dcnv3_func", checkout / "classification/ops_dcnv3/functions/dcnv3_func.py")

    class DCNv4Function:
        @staticmethod
        def apply(x, offset_mask, *arguments):
            # Those of DCNv3's: kernel, stride, padding, dilation, groups, their channels, scale.
            (*geometry, groups, group_channels, scale, _, remove_center) = arguments
            taps = geometry[0] * geometry[1] - remove_center
            batch, height, width, _ = x.shape
            packed = offset_mask[..., : groups * taps * 3]
            packed = packed.reshape(batch, height, width, groups, taps * 3)
            return core.dcnv3_core_pytorch(
                x,
                packed[..., : 2 * taps].flatten(3),
                packed[..., 2 * taps :].flatten(3),
                *geometry,
                groups,
                group_channels,
                scale,
                remove_center,
            )

    package = put("DCNv4", __path__=[])
    put("DCNv4.functions", DCNv4Function=DCNv4Function)
    put("DCNv4.modules", __path__=[str(checkout / "DCNv4_op/DCNv4/modules")])
    package.DCNv4 = importlib.import_module("DCNv4.modules.dcnv4").DCNv4
    # Not the package around the network, which reads configurations of training.
    put("models", __path__=[str(checkout / "classification/models")])


def prepare_dcls(checkout: Path) -> None:
    """The convolution is in a repository of its own, beside this one."""
    name = "Dilated-Convolution-with-Learnable-Spacings-PyTorch"
    operator = checkout.parent / name
    if not operator.is_dir():
        raise AbsentError(f"there is no checkout {name}")
    sys.path.insert(0, str(operator))


def prepare_sparsenet(checkout: Path) -> None:
    """For its data sets it imports torchvision, which a PyTorch without CUDA may not have."""
    from keras_convnets.testing.reference import import_torchvision

    import_torchvision()


def prepare_emo(checkout: Path) -> None:
    """The package around the network brings all other models and their trainers; and an older timm
    had some modules elsewhere."""
    for old, new in (
        ("layers.activations", "layers.activations"),
        ("layers.weight_init", "layers.weight_init"),
        ("efficientnet_blocks", "models._efficientnet_blocks"),
        ("efficientnet_builder", "models._efficientnet_builder"),
    ):
        sys.modules[f"timm.models.{old}"] = importlib.import_module(f"timm.{new}")
    sys.path.insert(0, str(checkout))
    registry = importlib.import_module("util.registry").Registry
    put("model", __path__=[str(checkout / "model")], MODEL=registry("Model"))
    put("cv2")  # for the pictures that it draws


def make_flash_intern_image(module):
    """The arguments are those of the repository's configuration of 224 pixels."""
    return module.FlashInternImage(
        channels=64,
        depths=[4, 4, 18, 4],
        groups=[4, 8, 16, 32],
        offset_scale=1.0,
        drop_path_rate=0.0,
    )


# Without stochastic depth, as our models are unless asked for it, where the factory has a choice.
OFFICIAL = {
    "unireplknet_a": Official(
        "AILab-CVC/UniRepLKNet", ".", "unireplknet", lambda m: m.unireplknet_a()
    ),
    "replknet_31b": Official(
        "DingXiaoH/RepLKNet-pytorch",
        ".",
        "replknet",
        lambda m: m.create_RepLKNet31B(drop_path_rate=0.0, use_checkpoint=False),
    ),
    "hornet_tiny_7x7": Official("raoyongming/HorNet", ".", "hornet", lambda m: m.hornet_tiny_7x7()),
    "moganet_xtiny": Official(
        "Westlake-AI/MogaNet", "models", "moganet", lambda m: m.moganet_xtiny(drop_path_rate=0.0)
    ),
    "lsnet_t": Official(
        "jameslahm/lsnet", ".", "model.lsnet", lambda m: m.lsnet_t(), prepare_lsnet
    ),
    "repnext_m0": Official("suous/RepNeXt", "model", "repnext", lambda m: m.repnext_m0()),
    "ffnet_1": Official(
        "ysj9909/FFNet", "models", "ffnet", lambda m: m.ffnet_1(drop_path_rate=0.0), prepare_ffnet
    ),
    "convnext_dcls_tiny": Official(
        "K-H-Ismail/ConvNeXt-dcls",
        "models",
        "convnext_dcls",
        lambda m: m.convnext_dcls_tiny(),
        prepare_dcls,
    ),
    "flash_intern_image_t": Official(
        "OpenGVLab/DCNv4",
        ".",
        "models.flash_intern_image",
        make_flash_intern_image,
        prepare_dcnv4,
    ),
    "shufflenet_v1_0_5x_g3": Official(
        "megvii-model/ShuffleNet-Series",
        "ShuffleNetV1",
        "network",
        lambda m: m.ShuffleNetV1(group=3, model_size="0.5x"),
    ),
    "simplenetv1_small_m1_05": Official(
        "Coderx7/SimpleNet_Pytorch",
        "imagenet",
        "simplenet",
        lambda m: m.simplenetv1_small_m1_05(),
    ),
    # Its last pooling is made for maps of 8x8.
    "sparsenet_40_24": Official(
        "Lyken17/SparseNet",
        "src/pytorch",
        "denselink",
        lambda m: m.DenseNet(24, 40, 0.5, 1000, False, fetch="exp"),
        prepare_sparsenet,
        size=32,
    ),
    "pit_ti_max": Official("naver-ai/PfLayer", ".", "pit_pf", lambda m: m.pit_ti_max()),
    "resnet50_max": Official("naver-ai/PfLayer", ".", "resnet_pf", lambda m: m.resnet50_max()),
    "emo_1m": Official("zhangzjn/EMO", ".", "model.emo", lambda m: m.EMO_1M(), prepare_emo),
}
# Their code as it is.
PLAIN_MODES = {"torch": ("eager", "channels_last")}
# Families whose official code timm has taken over.
FROM_TIMM = ("caformer_s18", "convformer_s18", "poolformer_s12")


def library(folder: Path) -> Library:
    """The official code in a folder of checkouts, as one of the libraries.

    Raises:
        ValueError: if there is not one checkout in it.
    """
    names = [row.repository.partition("/")[2] for row in OFFICIAL.values()]
    if not any((folder / name).is_dir() for name in names):
        raise ValueError(
            f"--official: {str(folder)!r} has no checkout of {', '.join(dict.fromkeys(names))}."
        )
    return Library(
        "official",
        ("torch", "timm", "einops"),
        "benchmarks.official:Code",
        PLAIN_MODES,
        'pip install "keras-convnets[peers]"',
        {"folder": str(folder.absolute())},
    )


class Code(Loader):
    """The loader of official code; what it imports first is what all of it needs."""

    framework = "torch"

    def __init__(self, folder: str):
        from keras_convnets.testing.reference import import_timm

        import_timm()
        self.folder, self.row = Path(folder), None

    def build(self, name, size):
        if name not in OFFICIAL:
            raise AbsentError
        self.row = OFFICIAL[name]
        checkout = self.folder / self.row.repository.partition("/")[2]
        if not checkout.is_dir():
            raise AbsentError(f"there is no checkout {checkout.name}")
        self.row.prepare(checkout)
        sys.path.insert(0, str(checkout / self.row.folder))
        return self.row.make(importlib.import_module(self.row.module))

    def version(self):
        return self.row.repository


def _from_file(name, path):
    """A module by its file, without the package that the file is in."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location(name, path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
