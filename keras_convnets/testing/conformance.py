"""What every family must show. A family's test subclasses `FamilyTests` in about 20 lines.

    class TestResNet(FamilyTests):
        family = "resnet"
        reference = Timm(resnet_test=lambda: ...)
        parity_variant = "resnet18"

Small variants, whose names end in `_test`, are run; of the official variants the names and shapes
of all weights, parameters and multiply-accumulates are checked, and the numbers of one of them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from typing import ClassVar

import keras
import numpy as np

from keras_convnets import catalog
from keras_convnets.applications.base import (
    DEFAULT_SIZE,
    ConvNet,
    create_model,
    model_info,
)
from keras_convnets.deploy import LiteRTModel, export_litert
from keras_convnets.deploy.inspect import LiteRTFile
from keras_convnets.deploy.litert import CALIBRATED
from keras_convnets.deploy.micro_sources import RESOLVER
from keras_convnets.deploy.recipes import serves_in_integers
from keras_convnets.graph import flatten, fold_batchnorm, lower, reparameterize, targets
from keras_convnets.preprocessing import preprocess_image
from keras_convnets.registry import find_family, list_models, list_weights
from keras_convnets.testing.seeded import seeded_state
from keras_convnets.weights.state import load_state_dict, save_state_dict, slots, state_dict

SIZE = 64
# Of networks of 8 to 16 channels, where few rounding errors cancel each other. In official variants
# int8 reaches 0.99, see benchmarks/litert.py.
LEAST_COSINE = {"float16": 0.9999, "dynamic": 0.995, "int8": 0.9, "int16x8": 0.9, "int4": 0.4}
CLASSES = 5


def images(*shape: int) -> np.ndarray:
    """Standard normal float32 images, always the same."""
    return np.random.RandomState(0).randn(*shape).astype("float32")


def run(model: keras.Model, x: np.ndarray):
    """The model's compiled inference on a batch, as NumPy."""
    return model.predict_on_batch(x)


def run_as_written(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """`run`, but without TensorFlow's graph optimiser: the order in which that adds up a sum of
    three depends on the rest of the graph."""
    if keras.backend.backend() != "tensorflow":
        return run(model, x)
    return keras.ops.convert_to_numpy(model(x, training=False))


def assert_close(ours, reference, tolerance: float, what: str) -> None:
    """max|ours - reference| <= tolerance * max|reference|, and equal shapes."""
    ours, reference = np.asarray(ours, "float32"), np.asarray(reference, "float32")
    assert ours.shape == reference.shape, f"{what}: {ours.shape} is not {reference.shape}"
    scale = np.abs(reference).max()
    assert np.isfinite(scale) and scale > 0, f"{what}: the reference is constant zero or infinite"
    difference = np.abs(ours - reference).max() / scale
    assert difference <= tolerance, f"{what}: off by {difference:.2e} of the largest value"


def photographs(count: int, size: int) -> np.ndarray:
    """Square pieces of two photographs, at random places and scales, normalised as for ImageNet."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    random, pieces = np.random.default_rng(0), []
    for i in range(count):
        photograph = Image.fromarray(load_sample_images().images[i % 2])
        side = int(random.integers(size, min(photograph.size)))
        left, top = (int(random.integers(length - side + 1)) for length in photograph.size)
        box = (left, top, left + side, top + side)
        pieces.append(np.asarray(photograph.resize((size, size), Image.Resampling.BICUBIC, box)))
    return ((np.stack(pieces) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).astype("f")


def settle_statistics(model: keras.Model, x: np.ndarray) -> None:
    """Sets the statistics of all BatchNormalizations to those of a batch, so that a model that was
    never trained has activations of ordinary sizes."""
    norms = [n for n in model._flatten_layers() if type(n) is keras.layers.BatchNormalization]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(x, training=True)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


def targets_of(file: LiteRTFile) -> list[str]:
    """What the operators of a float file say that `graph.targets` tells from the layers."""
    operators = set(file.operators())
    if not serves_in_integers(operators):
        return ["float", "mixed int8", "onnx"]
    return ["float", "int8", *(["mcu"] if operators <= set(RESOLVER) else []), "onnx"]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


def fill_seeded(model: ConvNet, gain: float = 1.0) -> None:
    """Fills a model with seeded weights, so that no zero or identity at the start hides a fault."""
    shapes = {key: slot.shape for key, slot in slots(model).items()}
    load_state_dict(model, seeded_state(shapes, gain))


class FamilyTests:
    """The tests that a family's test class inherits; see the module.

    Attributes:
        family: name of the family's module.
        reference: implementation to compare with, e.g. `Timm()`.
        parity_variant: the official variant whose numbers are compared.
        no_gradient: pattern of `variant/variable` paths whose gradient is zero but for rounding,
            such as a bias that a BatchNorm follows.
        keeps_batchnorm: pattern of `variant/layer` paths, in the flat graph, of BatchNormalizations
            that no layer can take over, such as those between a concatenation and an activation.
        least_cosine: between the logits on photographs and those of the .tflite file, by its form;
            of a model with random kernels and the photographs' own BatchNorm statistics. A lower
            one than the default needs a reason. A form without a number is not declared.
        gain: of the seeded weights, see `seeded_state`; less than 1 where with 1 the maps grow from
            block to block until rounding shows.
        tolerance: allowed difference of logits and taps, relative to the largest reference value.
        size: side of the small images in pixels.
        unpadded: pixels that maps lose at the borders, of a family that does not pad them.
    """

    family: str
    reference: object
    parity_variant: str
    tolerance: float = 1e-5
    no_gradient: str | None = None
    keeps_batchnorm: str | None = None
    least_cosine: ClassVar[dict[str, float]] = LEAST_COSINE
    gain: float = 1.0
    size: int = SIZE
    unpadded: int = 0

    @property
    def variants(self) -> list[str]:
        return [name for name in list_models() if find_family(name).name == self.family]

    @property
    def default_checkpoint(self) -> str:
        tags = find_family(self.parity_variant).rows(self.parity_variant)
        return f"{self.parity_variant}.{next(iter(tags))}"

    @property
    def small_variants(self) -> list[str]:
        return [name for name in self.variants if name.endswith("_test")]

    @property
    def official_variants(self) -> list[str]:
        return [name for name in self.variants if not name.endswith("_test")]

    def seeded(self, variant: str, size: int | None = None, **arguments) -> ConvNet:
        """The variant with seeded weights, and logits unless told otherwise."""
        size = size or self.size
        arguments = {"input_shape": (size, size, 3), "weights": None, **arguments}
        if not arguments.get("features") and arguments.get("include_top", True):
            arguments.setdefault("classifier_activation", None)
        model = create_model(variant, **arguments)
        fill_seeded(model, self.gain)
        return model

    def test_forward_at_any_size_with_any_channels(self):
        for variant in self.small_variants:
            height, width = self.size + 33, 2 * self.size - 31
            shape = (None, None, 4)
            model = self.seeded(variant, input_shape=shape, classes=CLASSES)
            logits = run(model, images(2, height, width, 4))
            assert logits.shape == (2, CLASSES)
            assert np.isfinite(logits).all()
            assert not np.allclose(logits[0], logits[1])
            model = create_model(variant, weights=None, input_shape=(self.size, self.size, 1))
            probabilities = run(model, images(2, self.size, self.size, 1))
            np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-4)

    def test_taps_have_the_strides_and_channels_that_model_info_tells(self):
        for variant in self.small_variants:
            height, width = self.size + 33, 2 * self.size - 31
            model = create_model(
                variant, weights=None, input_shape=(height, width, 3), features=True
            )
            expected = model_info(variant).taps
            strides = [stride for stride, _ in expected]
            assert strides == sorted(set(strides)), f"{variant}: one tap per resolution"
            for tap, (stride, channels) in zip(model.outputs, expected, strict=True):
                for length, pixels in zip(tap.shape[1:3], (height, width)):
                    assert (pixels - self.unpadded) // stride <= length <= -(-pixels // stride)
                assert tap.shape[3] == channels
            some = create_model(
                variant, weights=None, input_shape=(height, width, 3), out_indices=(0, -1)
            )
            assert [o.shape for o in some.outputs] == [
                model.outputs[0].shape,
                model.outputs[-1].shape,
            ]

    def test_without_top(self):
        for variant in self.small_variants:
            full = self.seeded(variant)
            x = images(2, self.size, self.size, 3)
            body = self.seeded(variant, include_top=False)
            pooled = self.seeded(variant, include_top=False, pooling="avg")
            assert len(body.output.shape) == 4
            features = full.get_layer(pooled.layers[-1].name).output
            logits = run(keras.Model(features, full.output), run(pooled, x))
            assert_close(logits, run(full, x), 1e-5, f"{variant}: classifier on the pooled output")

    def test_every_trainable_variable_has_a_finite_gradient_that_is_not_zero(self):
        for variant in self.small_variants:
            drop_path = {"drop_path_rate": 0.1} if find_family(variant).takes_drop_path else {}
            model = self.seeded(variant, classes=CLASSES, **drop_path)
            model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=_compiles())
            before = [np.array(v) for v in model.trainable_variables]
            loss = model.train_on_batch(images(8, self.size, self.size, 3), images(8, CLASSES))
            assert np.isfinite(loss)
            for variable, old in zip(model.trainable_variables, before):
                step = np.array(variable) - old
                assert np.isfinite(step).all(), f"{variant}: {variable.path} is not finite"
                path = f"{variant}/{variable.path}"
                has_none = self.no_gradient and re.search(self.no_gradient, path)
                assert step.any() or has_none, f"{path} has no gradient"

    def test_round_trip_in_a_fresh_process(self, tmp_path):
        x = images(2, self.size, self.size, 3)
        np.save(tmp_path / "x.npy", x)
        expected = {}
        for variant in self.small_variants:
            model = self.seeded(variant)
            model.save(tmp_path / f"{variant}.keras")
            model.save_weights(tmp_path / f"{variant}.weights.h5")
            expected[variant] = run(model, x)
        subprocess.run(
            [sys.executable, "-c", ROUND_TRIP, tmp_path, str(self.size), *expected], check=True
        )
        for variant, logits in expected.items():
            for form in ("keras", "h5"):
                reloaded = np.load(tmp_path / f"{variant}.{form}.npy")
                assert_close(reloaded, logits, 1e-6, f"{variant}: after .{form}")

    def test_mixed_precision(self):
        policy = keras.config.dtype_policy()
        x = images(2, self.size, self.size, 3)
        try:
            for variant in self.small_variants:
                expected = run(self.seeded(variant), x)
                for dtype, tolerance in (("mixed_float16", 0.05), ("mixed_bfloat16", 0.2)):
                    keras.config.set_dtype_policy(dtype)
                    model = self.seeded(variant)
                    keras.config.set_dtype_policy(policy)
                    assert model.output.dtype == "float32"
                    assert_close(run(model, x), expected, tolerance, f"{variant} in {dtype}")
        finally:
            keras.config.set_dtype_policy(policy)

    def test_flat_form_is_bit_equal(self):
        x = images(2, self.size, self.size, 3)
        for variant in self.small_variants:
            model = self.seeded(variant)
            flat = flatten(model)
            assert all(not layer._layers for layer in flat.layers)
            np.testing.assert_array_equal(run_as_written(flat, x), run_as_written(model, x))

    def test_every_batchnorm_folds_but_those_that_cannot(self):
        x = images(2, self.size, self.size, 3)
        left = []
        for variant in self.small_variants:
            model = self.seeded(variant)
            folded = fold_batchnorm(reparameterize(model))
            expected = run_as_written(model, x)
            assert_close(run_as_written(folded, x), expected, 1e-5, f"{variant}: folded")
            left += [
                f"{variant}/{layer.name}"
                for layer in folded.layers
                if isinstance(layer, keras.layers.BatchNormalization)
            ]
        kept = self.keeps_batchnorm
        unexpected = [path for path in left if not kept or not re.search(kept, path)]
        assert not unexpected, f"not folded: {unexpected}"
        assert left or not kept, f"keeps_batchnorm={kept!r}, but all were folded"

    def test_branches_merge_as_in_the_reference(self):
        x = images(2, self.size, self.size, 3)
        for variant in self.small_variants:
            model = self.seeded(variant)
            merges = any(hasattr(type(layer), "fused") for layer in model._flatten_layers())
            assert merges or not self.reference.has_branches(variant)
            if merges:
                expected = self.reference.run_reparameterized(variant, state_dict(model), x)
                logits = run(reparameterize(model), x)
                assert_close(logits, expected, self.tolerance, f"{variant}: re-parameterised")

    def test_lowered_form_is_equal(self):
        x = images(2, self.size, self.size, 3)
        for variant in self.small_variants:
            model = self.seeded(variant)
            lowered = lower(model)
            for layer in lowered.layers:
                if isinstance(layer, keras.layers.Conv2D):
                    assert layer.groups == 1, f"{variant}/{layer.name}"
                assert not isinstance(layer, keras.layers.LayerNormalization)
            assert_close(run(lowered, x), run(model, x), 1e-5, f"{variant}: lowered")

    def test_litert_files_of_every_form(self, tmp_path):
        if keras.backend.backend() != "tensorflow":
            return  # the others hand over to it, see tests/test_deploy.py
        x = photographs(64, self.size)
        for variant in self.small_variants:
            model = self.seeded(variant)
            settle_statistics(model, x)
            expected = run(model, x[32:])
            for form in (None, *self.least_cosine):
                calibration = x[:32] if form in CALIBRATED else None
                path = export_litert(model, tmp_path / "model.tflite", form, calibration)
                (logits,) = LiteRTModel(path).predict(x[32:])
                what = f"{variant} in {form}"
                if form is None:
                    assert_close(logits, expected, 1e-4, what)
                    assert np.abs(logits - expected).mean() <= 1e-6 * np.abs(expected).max(), what
                    assert targets(model) == targets_of(LiteRTFile(path)), what
                else:
                    agreement = cosine(logits, expected)
                    assert agreement >= self.least_cosine[form], f"{what}: cosine {agreement:.4f}"

    def test_weights_parameters_and_macs_equal_the_reference(self):
        variants = self.variants
        if keras.backend.backend() != "torch":
            # Names and shapes do not depend on the backend, and all of them take a minute: the
            # reference's own backend goes through them, the others look at some.
            variants = [*self.small_variants, self.parity_variant]
        for variant in variants:
            model = catalog.build(variant)
            entry = catalog.entry_of(model)
            shapes, parameters, macs = self.reference.facts(variant, entry.input_size)
            assert (entry.parameters, entry.macs) == (parameters, macs), variant
            ours = {key: slot.shape for key, slot in slots(model).items()}
            expected = {k: v for k, v in shapes.items() if not k.endswith("num_batches_tracked")}
            assert ours == expected, variant
            listed = catalog.read().get(variant)
            assert listed in (entry, None), f"{variant}: data/models.tsv is out of date"

    def test_parity_with_the_reference(self):
        for variant in (*self.small_variants, self.parity_variant):
            state = seeded_state(self.reference.facts(variant, DEFAULT_SIZE)[0], self.gain)
            x = images(2, self.size + 32, self.size, 3)
            expected, expected_taps = self.reference.run(variant, state, x)
            arguments = dict(weights=state, input_shape=x.shape[1:])
            model = create_model(variant, classifier_activation=None, **arguments)
            assert_close(run(model, x), expected, self.tolerance, f"{variant}: logits")
            taps = run(create_model(variant, features=True, **arguments), x)
            assert len(taps) == len(expected_taps)
            for i, (tap, expected_tap) in enumerate(zip(taps, expected_taps)):
                assert_close(tap, expected_tap, self.tolerance, f"{variant}: tap {i}")

    def test_logits_from_the_pixels_of_a_photograph(self):
        from sklearn.datasets import load_sample_image

        variant, checkpoint = self.small_variants[0], self.default_checkpoint
        photograph = load_sample_image("china.jpg")
        expected_input = self.reference.preprocess(photograph, checkpoint)
        state = seeded_state(self.reference.facts(variant, DEFAULT_SIZE)[0], self.gain)
        expected, _ = self.reference.run(variant, state, expected_input)
        ours = preprocess_image(photograph, list_weights()[checkpoint])[None]
        model = create_model(
            variant, weights=state, input_shape=ours.shape[1:], classifier_activation=None
        )
        assert_close(run(model, ours), expected, 1e-4, f"{variant} with {checkpoint}")

    def test_weights_go_home_to_the_reference(self, tmp_path):
        from safetensors.numpy import load_file

        x = images(2, self.size, self.size, 3)
        for variant in self.small_variants:
            model = self.seeded(variant)
            save_state_dict(model, tmp_path / "home.safetensors")
            state = load_file(tmp_path / "home.safetensors")
            logits, _ = self.reference.run(variant, state, x)
            assert_close(
                logits, run(model, x), self.tolerance, f"{variant}: the reference's logits"
            )
            again = create_model(variant, weights=state)
            for ours, theirs in zip(model.variables, again.variables, strict=True):
                np.testing.assert_array_equal(np.array(ours), np.array(theirs))


def _compiles():
    """JAX has to compile, the others are quicker without on networks this small."""
    return keras.backend.backend() == "jax"


ROUND_TRIP = """
import sys
from pathlib import Path
import numpy as np
import keras
import keras_convnets

folder, size, *variants = sys.argv[1:]
folder, size = Path(folder), int(size)
x = np.load(folder / "x.npy")
for variant in variants:
    model = keras.saving.load_model(folder / f"{variant}.keras")
    assert model.variant == variant
    np.save(folder / f"{variant}.keras.npy", model.predict_on_batch(x))
    model = keras_convnets.create_model(
        variant, weights=None, input_shape=(size, size, 3), classifier_activation=None
    )
    model.load_weights(folder / f"{variant}.weights.h5")
    np.save(folder / f"{variant}.h5.npy", model.predict_on_batch(x))
"""
