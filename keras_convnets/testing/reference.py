"""Reference implementations that families are compared with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from unittest import mock

import numpy as np


class Timm:
    """timm's model of the same name, or one built by a function for names timm does not have.

    Args:
        builders: functions without arguments that return a `torch.nn.Module`, by variant.
    """

    def __init__(self, **builders: Callable):
        self.builders = builders

    def build(self, variant: str):
        """The reference module in evaluation mode; inside `torch.device("meta")` it is free."""
        import torch

        import_timm()
        # One thread: two on two busy cores have been seen to take 47 times as long.
        torch.set_num_threads(1)
        if variant in self.builders:
            return self.builders[variant]().eval()
        return self.create(variant).eval()

    def create(self, variant: str):
        """The library's own model, without weights."""
        return import_timm().create_model(variant, pretrained=False)

    @functools.cache  # noqa: B019  (one object per family, for the length of a test run)
    def facts(self, variant: str, size: int) -> tuple[dict[str, tuple[int, ...]], int, int]:
        """The variant's state dict by shapes, its parameters, and the multiply-accumulates of one
        image of `size` pixels by `torch.utils.flop_counter`; all found without memory.
        """
        import torch

        # It has no products, but PyTorch takes it to pieces where there is no memory.
        norm = mock.patch("torch.nn.functional.batch_norm", lambda x, *args, **kwargs: x)
        with torch.device("meta"), torch.no_grad(), norm, _shapes_only() as counter:
            module = self.build(variant)
            module(torch.empty(1, 3, size, size))
        shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
        parameters = sum(p.numel() for p in module.parameters())
        return shapes, parameters, counter.flops // 2

    def run(
        self, variant: str, state: dict[str, np.ndarray], images: np.ndarray
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Logits and taps (channels last) for images `(batch, height, width, channels)`.

        The state dict is loaded strictly.
        """
        import torch

        module, x = self._filled(variant, state), self._tensor(images)
        with torch.no_grad():
            taps = self.taps(module, x)
            return module(x).numpy(), [tap.permute(0, 2, 3, 1).numpy() for tap in taps]

    def taps(self, module, x) -> list:
        """The maps of `module` for a batch that ours are compared with, channels first."""
        return module.forward_intermediates(x, intermediates_only=True)

    def initial(self, variant: str) -> dict[str, np.ndarray]:
        """The parameters of a new model, always the same."""
        import torch

        torch.manual_seed(0)
        return {k: p.detach().numpy() for k, p in self.build(variant).named_parameters()}

    def has_branches(self, variant: str) -> bool:
        """Whether the reference knows how to merge branches of the variant into convolutions."""
        import torch

        with torch.device("meta"):
            modules = list(self.build(variant).modules())
        names = ("fuse", "reparameterize", "switch_to_deploy")
        return any(hasattr(module, name) for module in modules for name in names)

    def run_reparameterized(
        self, variant: str, state: dict[str, np.ndarray], images: np.ndarray
    ) -> np.ndarray:
        """Logits of the reference after its own re-parameterisation; arguments as in `run`."""
        import torch

        module = self._filled(variant, state)  # which imports timm as it must be
        from timm.utils.model import reparameterize_model

        with torch.no_grad():
            module = reparameterize_model(module)
            return module(self._tensor(images)).numpy()

    def _filled(self, variant, state):
        import torch

        module = self.build(variant)
        module.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=True)
        return module

    def _tensor(self, images):
        import torch

        return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    def preprocess(self, photograph: np.ndarray, checkpoint: str) -> np.ndarray:
        """timm's evaluation transform of a uint8 RGB image, `(1, height, width, 3)`."""
        from PIL import Image

        timm = import_timm()
        config = timm.data.resolve_data_config(
            pretrained_cfg=timm.get_pretrained_cfg(checkpoint).to_dict()
        )
        transform = timm.data.create_transform(**config, is_training=False)
        return transform(Image.fromarray(photograph)).permute(1, 2, 0).numpy()[None]


class Torchvision(Timm):
    """torchvision's model of the same name, for families that timm lacks.

    Args:
        tapped: names of the modules whose outputs are the taps.
        builders: as in `Timm`.
    """

    def __init__(self, tapped: tuple[str, ...], **builders: Callable):
        super().__init__(**builders)
        self.tapped = list(tapped)

    def create(self, variant: str):
        return import_torchvision().models.get_model(variant)

    def taps(self, module, x) -> list:
        from torchvision.models.feature_extraction import create_feature_extractor

        return list(create_feature_extractor(module, self.tapped)(x).values())

    def preprocess(self, photograph: np.ndarray, checkpoint: str) -> np.ndarray:
        """torchvision's evaluation transform of a uint8 RGB image, `(1, height, width, 3)`."""
        from PIL import Image

        variant = checkpoint.partition(".")[0]
        transform = import_torchvision().models.get_model_weights(variant).DEFAULT.transforms()
        return transform(Image.fromarray(photograph)).permute(1, 2, 0).numpy()[None]


# What a new model's weights are filled by, and activations in place.
FILLS = ("copy_", "div_", "erfinv_", "fill_", "normal_", "sub_", "uniform_", "zero_")
ACTIVATIONS = ("add_", "clamp_", "hardtanh_", "mul_", "relu_", "silu_")
IN_PLACE = frozenset(f"aten::{name}" for name in (*FILLS, *ACTIVATIONS))


def _shapes_only():
    """A mode of PyTorch that counts `flops` by the formulas of `torch.utils.flop_counter`, without
    its account of modules, and leaves out what changes values in place: without memory that takes
    longer than making the model."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    class ShapesOnly(TorchDispatchMode):
        flops = 0

        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            if operator.name().partition(".")[0] in IN_PLACE:
                return args[0]
            y = operator(*args, **(kwargs or {}))
            formula = flop_registry.get(operator.overloadpacket)
            if formula is not None:
                self.flops += formula(*args, **(kwargs or {}), out_val=y)
            return y

    return ShapesOnly()


_operators = []  # those that a library declares vanish with the object


def import_timm():
    """timm, also on a CPU-only PyTorch whose torchvision was built for CUDA.

    Such a torchvision cannot load its library and then fails to register fakes of operators that
    the library would have defined; declared here, they are enough for timm.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _operators.append(library)
    import timm

    return timm


def import_torchvision():
    """torchvision, also where it needs what `import_timm` does."""
    import_timm()
    import torchvision

    return torchvision
