"""What every family must show. A family's test subclasses `FamilyTests` in about 20 lines.

    class TestResNet(FamilyTests):
        family = "resnet"
        reference = Timm(resnet_test=lambda: ...)
        parity_variant = "resnet18"

Small variants, whose names end in `_test`, are run; of the official variants the names and shapes
of all weights, parameters and multiply-accumulates are checked, and the numbers of one of them.

With `CONFORMANCE=shared` in the environment, which this package's own tests set to take half the
time, what hardly depends on the backend goes round: each family shows it on one of the three, so
that all families together show it on each. Numbers of small variants are compared on all the same.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import re
import threading
import zlib
from concurrent.futures import ProcessPoolExecutor
from typing import ClassVar

import keras
import numpy as np
from safetensors.numpy import load_file

from keras_convnets import catalog
from keras_convnets.applications.base import (
    DEFAULT_SIZE,
    ConvNet,
    build_with_taps,
    create_model,
    model_info,
)
from keras_convnets.deploy import LiteRTModel, export_litert_forms
from keras_convnets.deploy.export import outputs_of
from keras_convnets.deploy.inspect import LiteRTFile
from keras_convnets.deploy.micro_sources import RESOLVER
from keras_convnets.deploy.recipes import serves_in_integers
from keras_convnets.graph import flatten, fold_batchnorm, fuse, lower, reparameterize, targets
from keras_convnets.graph.rewrite import graph_nodes
from keras_convnets.layers.fast import BATCH_NORM
from keras_convnets.preprocessing import preprocess_image
from keras_convnets.quantization import as_integers, quantize_aware
from keras_convnets.quantization.export import convert
from keras_convnets.quantization.operators import kind_of
from keras_convnets.registry import find_family, list_models, list_weights
from keras_convnets.testing.seeded import seeded_state
from keras_convnets.weights.state import (
    load_state_dict,
    save_state_dict,
    shared_names,
    slots,
    state_dict,
)

SIZE = 64
# Of networks of 8 to 16 channels, where few rounding errors cancel each other. In official variants
# int8 reaches 0.99, see benchmarks/litert.py.
LEAST_COSINE = {"float16": 0.9999, "dynamic": 0.995, "int8": 0.96, "int16x8": 0.99, "int4": 0.4}
CLASSES = 5
BACKENDS = ("tensorflow", "jax", "torch")
# Steps that outputs of LiteRT's kernels and of the quantized model may be apart with an operator;
# without any of these, 1. On x86 they are equal.
STEPS_APART = {
    **dict.fromkeys(("gelu", "hard_silu", "sigmoid", "tanh"), 2),
    **dict.fromkeys(("ReciprocalRoot", "softmax"), 3),
}


def images(*shape: int) -> np.ndarray:
    """Standard normal float32 images, always the same."""
    return np.random.RandomState(0).randn(*shape).astype("float32")


def run(model: keras.Model, x: np.ndarray):
    """The model's outputs for a batch, as NumPy, computed operator by operator: networks this small
    take longer to compile than to run."""
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model(x, training=False))


def run_once(model: keras.Model, x: np.ndarray):
    """`run` for shapes that come once. JAX compiles each operator too, and keeps it: all at once
    are quicker."""
    return model.predict_on_batch(x) if keras.backend.backend() == "jax" else run(model, x)


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
    both = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    for i in range(count):
        photograph = both[i % 2]
        side = int(random.integers(size, min(photograph.size)))
        left, top = (int(random.integers(length - side + 1)) for length in photograph.size)
        box = (left, top, left + side, top + side)
        pieces.append(np.asarray(photograph.resize((size, size), Image.Resampling.BICUBIC, box)))
    return ((np.stack(pieces) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).astype("f")


def settle_statistics(model: keras.Model, x: np.ndarray) -> None:
    """Sets the statistics of all BatchNormalizations to those of a batch, so that a model that was
    never trained has activations of ordinary sizes."""
    norms = [n for n in model._flatten_layers() if type(n) in BATCH_NORM]
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


def with_maps(model: keras.Model) -> keras.Model:
    """The model with the last map of each size as outputs too, before its own."""
    maps = {}
    for node in graph_nodes(model):
        maps |= {y.shape[1:3]: y for y in node.outputs if len(y.shape) == 4 and y.shape[1] > 1}
    return keras.Model(model.input, [*maps.values(), model.output], name=model.name)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


def check_refusal_of_open_sides(variant: str) -> None:
    for shape in ((None, None, 3), (SIZE, None, 3)):
        try:
            create_model(variant, weights=None, input_shape=shape)
        except ValueError as error:
            assert "images of one size" in str(error), str(error)
        else:
            raise AssertionError(f"{variant} takes images of any size")


def fill_seeded(model: ConvNet, gain: float = 1.0) -> None:
    """Fills a model with seeded weights, so that no zero or identity at the start hides a fault."""
    wanted = slots(model)
    state = seeded_state({key: slot.shape for key, slot in wanted.items()}, gain)
    state.update((key, state[name]) for key, name in shared_names(wanted).items())
    load_state_dict(model, state)


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
            of a model with random kernels, the photographs' own BatchNorm statistics, and ranges
            calibrated on them. A lower one than the default needs a reason. A form without a number
            is not declared.
        without_integers: by variant, types of the operators that have no integer form, which
            `quantize_aware` refuses to quantize.
        twins: small variants that have no layer which the others lack. With `CONFORMANCE=shared`
            their names and numbers are compared with the reference's, and that is all.
        gain: of the seeded weights, see `seeded_state`; less than 1 where with 1 the maps grow from
            block to block until rounding shows.
        damped: pattern of the variables, as `path` tells them, that scale residual branches. They
            become a tenth before models are exported, of networks that otherwise amplify rounding
            from block to block: training makes branches weaker than what they are added to, chance
            does not.
        tolerance: allowed difference of logits and taps, relative to the largest reference value.
        macs_tolerance: allowed difference of multiply-accumulates, relative to the reference's; of
            a family with operators that PyTorch's counter does not know.
        size: shorter side of the small images in pixels.
        unpadded: pixels that maps lose at the borders, of a family that does not pad them.
    """

    family: str
    reference: object
    parity_variant: str
    tolerance: float = 1e-5
    macs_tolerance: float = 0.0
    no_gradient: str | None = None
    keeps_batchnorm: str | None = None
    least_cosine: ClassVar[dict[str, float]] = LEAST_COSINE
    without_integers: ClassVar[dict[str, list[str]]] = {}
    twins: ClassVar[tuple[str, ...]] = ()
    gain: float = 1.0
    damped: str | None = None
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
    def is_full(self) -> bool:
        return os.environ.get("CONFORMANCE", "full") == "full"

    @property
    def variants_here(self) -> list[str]:
        """The main variants where the family shows what goes round, else none."""
        turn = BACKENDS[zlib.crc32(self.family.encode()) % len(BACKENDS)]
        here = self.is_full or keras.backend.backend() == turn
        return self.main_variants if here else []

    @property
    def variants_here_or_on_torch(self) -> list[str]:
        """As `variants_here`, but on PyTorch, which compiles nothing, the main variants of every
        family."""
        return self.main_variants if keras.backend.backend() == "torch" else self.variants_here

    @property
    def main_variants(self) -> list[str]:
        left = () if self.is_full else self.twins
        return [name for name in self.small_variants if name not in left]

    @property
    def official_variants(self) -> list[str]:
        return [name for name in self.variants if not name.endswith("_test")]

    @property
    def x(self) -> np.ndarray:
        """Two small images."""
        return images(2, self.size + 32, self.size, 3)

    def model(self, variant: str) -> ConvNet:
        """The variant for `x`, with seeded weights and logits; all tests share it, so none may
        change it."""
        return _seeded(type(self), variant)

    def logits(self, variant: str) -> np.ndarray:
        """Those of `model` for `x`, compiled."""
        return _logits(type(self), variant)

    def seeded(self, variant: str, **arguments) -> ConvNet:
        """A variant of the test's own with seeded weights, and logits unless told otherwise."""
        arguments = {"input_shape": self.x.shape[1:], "weights": None, **arguments}
        if not arguments.get("features") and arguments.get("include_top", True):
            arguments.setdefault("classifier_activation", None)
        model = create_model(variant, **arguments)
        fill_seeded(model, self.gain)
        return model

    def test_forward_at_any_size_with_any_channels(self):
        for variant in self.variants_here:
            height, width = self.size + 33, 2 * self.size - 31
            shape = (None, None, 4)
            if find_family(variant).is_fixed(variant):
                check_refusal_of_open_sides(variant)
                shape = (height, width, 4)
            model = self.seeded(variant, input_shape=shape, classes=CLASSES)
            logits = run_once(model, images(2, height, width, 4))
            assert logits.shape == (2, CLASSES)
            assert np.isfinite(logits).all()
            assert not np.allclose(logits[0], logits[1])
            model = create_model(variant, weights=None, input_shape=(self.size, self.size, 1))
            probabilities = run_once(model, images(2, self.size, self.size, 1))
            np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-4)

    def test_taps_have_the_strides_and_channels_that_model_info_tells(self):
        for variant in self.variants_here:
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
        for variant in self.variants_here:
            full = self.model(variant)
            body = create_model(variant, weights=None, include_top=False)
            pooled = self.seeded(variant, include_top=False, pooling="avg")
            assert len(body.output.shape) == 4
            features = full.get_layer(pooled.layers[-1].name).output
            logits = run_once(keras.Model(features, full.output), run_once(pooled, self.x))
            what = f"{variant}: classifier on the pooled output"
            assert_close(logits, self.logits(variant), 1e-5, what)

    def test_every_trainable_variable_has_a_finite_gradient_that_is_not_zero(self):
        for variant in self.variants_here_or_on_torch:
            keras.utils.set_random_seed(0)  # of the dropped paths
            drop_path = {"drop_path_rate": 0.1} if find_family(variant).takes_drop_path else {}
            model = self.seeded(variant, classes=CLASSES, **drop_path)
            model.compile(
                keras.optimizers.SGD(1.0), "mse", jit_compile=keras.backend.backend() == "jax"
            )
            before = [np.array(v) for v in model.trainable_variables]
            loss = model.train_on_batch(images(8, *self.x.shape[1:]), images(8, CLASSES))
            assert np.isfinite(loss)
            for variable, old in zip(model.trainable_variables, before):
                step = np.array(variable) - old
                assert np.isfinite(step).all(), f"{variant}: {variable.path} is not finite"
                path = f"{variant}/{variable.path}"
                has_none = self.no_gradient and re.search(self.no_gradient, path)
                if not step.any() and not has_none:
                    assert _is_taken_away(model, variable, self.x), f"{path} has no gradient"

    def test_round_trip_in_a_fresh_process(self, tmp_path):
        for variant in self.variants_here:
            model = self.model(variant)
            model.save(tmp_path / "model.keras")
            model.save_weights(tmp_path / "model.weights.h5")
            reloaded, same = _other_process().submit(_reload, tmp_path, variant, self.x).result()
            compiled = keras.backend.backend() == "jax"  # as by `run_once` in the other process
            expected = self.logits(variant) if compiled else run(model, self.x)
            assert_close(reloaded, expected, 1e-6, f"{variant}: after .keras")
            assert same, f"{variant}: .weights.h5 and .keras give other weights"

    def test_mixed_precision(self):
        policy = keras.config.dtype_policy()
        try:
            for variant in self.variants_here:
                expected = self.logits(variant)
                for dtype, tolerance in (("mixed_float16", 0.05), ("mixed_bfloat16", 0.2)):
                    keras.config.set_dtype_policy(dtype)
                    model = self.seeded(variant)
                    keras.config.set_dtype_policy(policy)
                    assert model.output.dtype == "float32"
                    assert_close(
                        run_once(model, self.x), expected, tolerance, f"{variant} in {dtype}"
                    )
        finally:
            keras.config.set_dtype_policy(policy)

    def test_flat_form_is_bit_equal(self):
        for variant in self.variants_here:
            model = self.model(variant)
            flat = flatten(model)
            assert all(not layer._layers for layer in flat.layers)
            compiled = keras.backend.backend() == "jax"
            expected = self.logits(variant) if compiled else run(model, self.x)
            np.testing.assert_array_equal(run_once(flat, self.x), expected)

    def test_every_batchnorm_folds_but_those_that_cannot(self):
        left, variants = [], self.variants_here_or_on_torch
        for variant in variants:
            model = self.model(variant)
            folded = fold_batchnorm(reparameterize(model))
            expected = self.logits(variant)
            assert_close(run(folded, self.x), expected, 1e-5, f"{variant}: folded")
            fused = fuse(model)
            assert_close(run_once(fused, self.x), expected, 1e-5, f"{variant}: fused")
            if keras.backend.backend() == "torch":
                assert_close(run(fused, self.x), expected, 1e-5, f"{variant}: recorded")
                assert fused.is_recorded(self.x.shape), variant
            left += [
                f"{variant}/{layer.name}"
                for layer in folded.layers
                if isinstance(layer, keras.layers.BatchNormalization)
            ]
        kept = self.keeps_batchnorm
        unexpected = [path for path in left if not kept or not re.search(kept, path)]
        assert not unexpected, f"not folded: {unexpected}"
        assert left or not kept or not variants, f"{kept!r}: all were folded"

    def test_branches_merge_as_in_the_reference(self):
        for variant in self.variants_here_or_on_torch:
            model = self.model(variant)
            merges = any(hasattr(type(layer), "fused") for layer in model._flatten_layers())
            assert merges or not self.reference.has_branches(variant)
            if merges:
                state = state_dict(model)
                expected = self.reference.run_reparameterized(variant, state, self.x)
                logits = run_once(reparameterize(model), self.x)
                assert_close(logits, expected, self.tolerance, f"{variant}: re-parameterised")

    def test_lowered_form_is_equal(self):
        for variant in self.variants_here:
            lowered = lower(self.model(variant))
            for layer in lowered.layers:
                if isinstance(layer, keras.layers.Conv2D):
                    assert layer.groups == 1, f"{variant}/{layer.name}"
                assert not isinstance(layer, keras.layers.LayerNormalization)
            expected = self.logits(variant)
            assert_close(run_once(lowered, self.x), expected, 1e-5, f"{variant}: lowered")

    def test_litert_files_of_every_form(self, tmp_path):
        if keras.backend.backend() != "tensorflow":
            return  # the others hand over to it, see tests/test_deploy.py
        for variant in self.main_variants:
            model, x = _settled(type(self), variant)
            expected = run(model, x)
            forms = (None, *self.least_cosine)
            if variant != self.main_variants[0] and not self.is_full:
                forms = [form for form in (None, "int8") if form in forms]
            for form, path in export_litert_forms(model, tmp_path, forms, x).items():
                if isinstance(path, ValueError):
                    raise path
                (logits,) = LiteRTModel(path).predict(x)
                what = f"{variant} in {form}"
                if form is None:
                    assert_close(logits, expected, 1e-4, what)
                    assert np.abs(logits - expected).mean() <= 1e-6 * np.abs(expected).max(), what
                    assert targets(model) == targets_of(LiteRTFile(path)), what
                else:
                    agreement = cosine(logits, expected)
                    assert agreement >= self.least_cosine[form], f"{what}: cosine {agreement:.4f}"

    def test_quantized_training_step_and_its_file(self, tmp_path):
        if keras.backend.backend() != "tensorflow":
            return  # see tests/test_quantization.py: this takes seconds, and the others hand over
        for variant in self.main_variants if self.is_full else self.main_variants[:1]:
            float_model, x = _settled(type(self), variant)
            x = x[:4]
            if variant in self.without_integers:
                self._check_refusal(float_model, x, self.without_integers[variant])
                continue
            model = quantize_aware(with_maps(float_model), calibration=x)
            targets = [images(len(x), *y.shape[1:]) for y in model.outputs]
            model.compile("sgd", ["mse"] * len(targets), run_eagerly=True)
            before = [np.array(v) for v in model.trainable_variables]
            assert np.isfinite(model.train_on_batch(x, targets)).all(), variant
            after = [np.array(v) for v in model.trainable_variables]
            assert all(np.isfinite(v).all() for v in after), variant
            assert any((a != b).any() for a, b in zip(before, after)), variant
            file = tmp_path / f"{variant}.tflite"
            file.write_bytes(convert(model))
            self._check_quantized_file(model, file, x)

    def _check_refusal(self, model, x, lacking):
        try:
            quantize_aware(model, calibration=x)
        except ValueError as error:
            assert f"keep_float={sorted(lacking)}" in str(error), str(error)
        else:
            raise AssertionError(f"{model.name} has integers for all its operators")

    def _check_quantized_file(self, model, file, x):
        assert {t.dtype for t in LiteRTFile(file).tensors} <= {"int8", "int32"}
        litert = LiteRTModel(file, xnnpack=False)
        ends = zip(litert.predict(x), outputs_of(as_integers(model), x), litert.output_scales)
        kinds = {kind_of(operation) for operation in model.operations}
        most = max((STEPS_APART.get(kind, 1) for kind in kinds), default=1)
        for i, (have, want, step) in enumerate(ends):
            apart = np.abs(have - want).max() / step
            assert apart < most + 0.01, f"{model.name}: output {i} is {apart:.2f} steps off"

    def test_weights_parameters_and_macs_equal_the_reference(self):
        variants = self.variants
        if keras.backend.backend() != "jax":
            # Names and shapes do not depend on the backend, and all of them take minutes: the one
            # that builds models quickest goes through them.
            variants = self.small_variants
        for variant in variants:
            model = catalog.build(variant)
            entry = catalog.entry_of(model)
            shapes, parameters, macs = self.reference.facts(variant, entry.input_size)
            assert entry.parameters == parameters, variant
            if macs is not None:
                assert abs(entry.macs / macs - 1) <= self.macs_tolerance, (
                    variant,
                    entry.macs,
                    macs,
                )
            ours = {key: slot.shape for key, slot in slots(model).items()}
            surplus = find_family(variant).surplus
            expected = {
                key: shape
                for key, shape in shapes.items()
                if not key.endswith("num_batches_tracked")
                and not (surplus and re.match(surplus, key) and key not in ours)
            }
            assert ours == expected, variant
            listed = catalog.read().get(variant)
            assert listed in (entry, None), f"{variant}: data/models.tsv is out of date"

    def test_parity_with_the_reference(self, tmp_path):
        """Taps and logits; of the small variants with weights that ours saved for the reference."""
        for variant in self.small_variants:
            file = tmp_path / f"{variant}.safetensors"
            save_state_dict(self.model(variant), file)
            self._compare_with_reference(variant, load_file(file))
            again = create_model(variant, weights=file, input_shape=self.x.shape[1:])
            for ours, theirs in zip(self.model(variant).variables, again.variables, strict=True):
                np.testing.assert_array_equal(np.array(ours), np.array(theirs))

    def test_parity_of_an_official_variant(self):
        """On PyTorch, and in turn on the others, which show the small variants of all families."""
        if not self.variants_here_or_on_torch:
            return
        variant = self.parity_variant
        shapes = self.reference.facts(variant, DEFAULT_SIZE)[0]
        self._compare_with_reference(variant, seeded_state(shapes, self.gain))

    def _compare_with_reference(self, variant, state):
        expected, expected_taps = self.reference.run(variant, state, self.x)
        model = build_with_taps(variant, self.x.shape[1:], classifier_activation=None)
        load_state_dict(model, state)
        *taps, logits = run_once(model, self.x)
        assert_close(logits, expected, self.tolerance, f"{variant}: logits")
        for i, (tap, expected_tap) in enumerate(zip(taps, expected_taps, strict=True)):
            assert_close(tap, expected_tap, self.tolerance, f"{variant}: tap {i}")

    def test_initial_kernels_are_distributed_as_in_the_reference(self):
        """Quantiles of all kernels of a kind, of which small networks have too few values."""
        if keras.backend.backend() != "torch":
            return  # what an initialiser draws is tested on each backend by itself
        keras.utils.set_random_seed(0)
        model = create_model(self.parity_variant, weights=None)
        ours = _values_by_kind(state_dict(model))
        for kind, expected in _values_by_kind(self.reference.initial(self.parity_variant)).items():
            quantiles = [0.05, 0.25, 0.75, 0.95]
            want, have = (np.quantile(values, quantiles) for values in (expected, ours[kind]))
            allowed = 0.02 * np.abs(want) + 15 * np.std(expected) / len(expected) ** 0.5
            assert (np.abs(want - have) <= allowed).all(), f"{kind}: {have} is not {want}"

    def test_logits_from_the_pixels_of_a_photograph(self):
        from sklearn.datasets import load_sample_image

        photograph, checkpoint = load_sample_image("china.jpg"), self.default_checkpoint
        for variant in self.variants_here_or_on_torch[:1]:
            expected_input = self.reference.preprocess(photograph, checkpoint)
            state = seeded_state(self.reference.facts(variant, DEFAULT_SIZE)[0], self.gain)
            expected, _ = self.reference.run(variant, state, expected_input)
            ours = preprocess_image(photograph, list_weights()[checkpoint])[None]
            model = create_model(
                variant, weights=state, input_shape=ours.shape[1:], classifier_activation=None
            )
            assert_close(run_once(model, ours), expected, 1e-4, f"{variant} with {checkpoint}")


# As many as a family has small variants; xdist keeps the tests of a class together.
@functools.lru_cache(4)
def _seeded(tests, variant):
    return tests().seeded(variant)


@functools.lru_cache(4)
def _logits(tests, variant):
    return _seeded(tests, variant).predict_on_batch(tests().x)


@functools.lru_cache(4)
def _settled(tests, variant):
    """A model for photographs, whose statistics are those of these, for exports that change none of
    them; and the photographs."""
    x = photographs(32, tests.size)
    model = tests().seeded(variant, input_shape=x.shape[1:])
    for variable in model.variables if tests.damped else ():
        if re.search(tests.damped, variable.path):
            variable.assign(0.1 * variable)
    settle_statistics(model, x)
    return model, x


def _values_by_kind(state):
    """Values of all kernels together whose keys end alike, numbers left out."""
    kinds = {}
    for key, value in state.items():
        if value.ndim > 1:
            kind = re.sub(r"\d", "", ".".join(key.split(".")[-2:]))
            kinds.setdefault(kind, []).append(value.ravel()[:100_000])
    return {kind: np.concatenate(values) for kind, values in kinds.items()}


def _is_taken_away(model, variable, x):
    """Whether outputs depend on a shift at inference and not in training, where a
    BatchNormalization takes it away: its gradient is zero but for rounding, and by chance zero."""
    if variable.name not in ("beta", "bias"):
        return False
    state = [np.array(v) for v in model.non_trainable_variables]  # seeds of dropped paths too

    def outputs(training):
        for v, value in zip(model.non_trainable_variables, state):
            v.assign(value)
        return keras.ops.convert_to_numpy(model(x, training=training))

    before = [outputs(training) for training in (True, False)]
    variable.assign(variable + 1.0)
    after = [outputs(training) for training in (True, False)]
    in_training, at_inference = (
        np.abs(a - b).max() / np.abs(b).max() for a, b in zip(after, before)
    )
    return in_training < 1e-4 and at_inference > 1e-3


@functools.cache
def _other_process():
    """A process that has built none of the models, one for all tests: it takes seconds to start."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_the_parent)


def _end_with_the_parent():
    """A test process that is stopped does not end its children."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _reload(folder, variant, x):
    """Logits of the saved model, and whether the saved weights are the same. For the other
    process."""
    loaded = keras.saving.load_model(folder / "model.keras")
    assert loaded.variant == variant
    filled = create_model(variant, weights=None, input_shape=x.shape[1:])
    filled.load_weights(folder / "model.weights.h5")
    pairs = zip(loaded.variables, filled.variables, strict=True)
    same = all(np.array_equal(np.array(a), np.array(b)) for a, b in pairs)
    return run_once(loaded, x), same
