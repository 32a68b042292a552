"""From a family's tables to a Keras model: the public callables, heads, taps and their checks."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import keras

from keras_convnets import catalog
from keras_convnets.graph.count import count
from keras_convnets.graph.rewrite import without_allocation
from keras_convnets.labels import decode_predictions
from keras_convnets.layers.fast import Activation, Dense, GlobalAveragePooling2D
from keras_convnets.registry import Checkpoint, Family, find_family

MIN_SIZE = 32
DEFAULT_SIZE = 224
DEFAULT_CLASSES = 1000
DROP_PATH_TEXT = """
    drop_path_rate: rate of stochastic depth of the last block, falling linearly to 0 at the first.
        Default 0."""
DOCSTRING = """{variant}. {summary}

{papers}
{parameters:,} parameters, {macs:,.1f} M multiply-accumulates at {size}x{size} pixels.
Taps at strides {taps}.

Args:
    include_top: whether the model ends with the classifier.
    weights: `None` (random), `"imagenet"` (the first checkpoint below), a checkpoint's tag,
        `"hf://organization/repository[@revision][/file]"`, an https URL, the path of a
        .safetensors, .pth, .npz, .keras or .weights.h5 file, or a state dict.
    input_tensor: symbolic tensor to build on, instead of a new `keras.Input`.
    input_shape: (height, width, channels), at least 32 pixels a side, or `None` for an open side.
        Default: the checkpoint's size with the classifier, open sides without.
    pooling: with `include_top=False`, `None` (the last map), `"avg"` or `"max"` (features as the
        classifier would get them).
    classes: size of the classifier. Default: the checkpoint's, else 1000. Another number than the
        checkpoint's gives a fresh classifier, with a warning.
    classifier_activation: `"softmax"` (default), another activation, or `None` for logits.
    name: the model's name. Default: `"{variant}"`.
    features: give the list of taps instead of the classifier's output.
    out_indices: give these taps only, e.g. `(1, 2, 3)` or `(-1,)`.
    dropout_rate: share of the features that training hides from the classifier, from 0 (default)
        up to, but not including, 1.{drop_path}

Raises:
    ValueError: for arguments that are unknown, impossible or contradict each other, and for weights
        that do not fit; nothing is then loaded.

Checkpoints, the default first:
{checkpoints}
"""


@keras.saving.register_keras_serializable("keras_convnets")
class ConvNet(keras.Model):
    """A Functional model that remembers which variant it is and which checkpoint filled it.

    `model.variant` is the registry id, `model.checkpoint` the `"variant.tag"` of its weights or
    `None`; both survive saving.
    """

    def __init__(self, inputs, outputs, name=None, **kwargs):
        super().__init__(inputs=inputs, outputs=outputs, name=name, **kwargs)
        self.variant = None
        self.checkpoint = None

    def get_config(self):
        return {**super().get_config(), "variant": self.variant, "checkpoint": self.checkpoint}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        variant, checkpoint = config.pop("variant"), config.pop("checkpoint")
        model = super().from_config(config, custom_objects)
        model.variant, model.checkpoint = variant, checkpoint
        return model


class Application:
    """The public callable of one variant, with the signature of `keras.applications`."""

    def __init__(self, variant: str):
        self.variant = variant
        row = find_family(variant)
        parameters = [
            parameter.replace(default="imagenet" if row.rows(variant) else None)
            if parameter.name == "weights"
            else parameter
            for parameter in inspect.signature(_build).parameters.values()
            if parameter.name not in ("row", "variant")
            and (parameter.name != "drop_path_rate" or row.takes_drop_path)
        ]
        self.__signature__ = inspect.Signature(parameters)
        self.__name__ = variant

    def __call__(self, *args, **kwargs) -> ConvNet:
        try:
            bound = self.__signature__.bind(*args, **kwargs)
        except TypeError as error:
            allowed = ", ".join(self.__signature__.parameters)
            raise ValueError(f"{self.variant}: {error}; its arguments are {allowed}.") from None
        bound.apply_defaults()
        return _build(find_family(self.variant), self.variant, **bound.arguments)

    def __repr__(self):
        return f"<keras_convnets application {self.variant}>"

    @property
    def __doc__(self) -> str:
        info = model_info(self.variant)
        checkpoints = [
            f"    {tag}: {row.license}"
            + (f", {row.top1:.2f}% top-1" if row.top1 else "")
            + f" at {row.input_size}"
            for tag, row in info.checkpoints.items()
        ]
        drop_path = DROP_PATH_TEXT if find_family(self.variant).takes_drop_path else ""
        return DOCSTRING.format(
            variant=self.variant,
            summary=find_family(self.variant).module.__doc__.partition("\n")[0],
            papers="\n".join(info.papers),
            parameters=info.parameters,
            macs=info.macs / 1e6,
            size=info.input_size,
            taps=", ".join(f"{stride} ({channels} channels)" for stride, channels in info.taps),
            drop_path=drop_path,
            checkpoints="\n".join(checkpoints) or "    none published",
        )


def application(variant: str) -> Application:
    """The public callable of a variant, for a family file: `ResNet18 = application("resnet18")`."""
    return Application(variant)


def create_model(name: str, **arguments) -> ConvNet:
    """Builds a model by its registry name.

    Args:
        name: `"convnext_tiny"`, or with a checkpoint's tag `"convnext_tiny.fb_in1k"`.
        **arguments: those of the variant's callable in `keras_convnets.applications`.

    Raises:
        ValueError: for an unknown name, checkpoint or argument; the message says what is allowed.
    """
    variant, _, tag = name.partition(".")
    if tag:
        if "weights" in arguments:
            raise ValueError(f"weights={arguments['weights']!r} contradicts the tag in {name!r}.")
        arguments["weights"] = tag
    return Application(variant)(**arguments)


def _build(
    row: Family,
    variant: str,
    include_top: bool = True,
    weights: str | os.PathLike | Mapping | None = None,
    input_tensor=None,
    input_shape: tuple[int | None, ...] | None = None,
    pooling: str | None = None,
    classes: int | None = None,
    classifier_activation: str | None = "softmax",
    name: str | None = None,
    features: bool = False,
    out_indices: tuple[int, ...] | None = None,
    dropout_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> ConvNet:
    features = features or out_indices is not None
    include_top = include_top and not features
    _check_arguments(include_top, features, pooling, classes, classifier_activation, dropout_rate)
    tag, checkpoint = find_checkpoint(row, variant, weights)
    state = _open_weights(variant, tag, checkpoint, weights)
    if include_top and classes is None:
        classes = _published_classes(row, variant, checkpoint, state)
    is_fixed = row.is_fixed(variant)
    image = _image(input_tensor, input_shape, include_top or is_fixed, checkpoint)
    if is_fixed and None in image.shape[1:]:
        raise ValueError(
            f"{variant} has weights for each position of its maps, so that a model is made for "
            f"images of one size: input_shape={tuple(image.shape[1:])} must be numbers, e.g. "
            f"({DEFAULT_SIZE}, {DEFAULT_SIZE}, 3)."
        )

    taps, final, head = _maps(row, variant, image, drop_path_rate)
    if features:
        outputs = _select(taps, out_indices)
    else:
        outputs = _pooled(row, final, head, include_top, pooling)
    if include_top:
        outputs = _classified(row, outputs, classes, classifier_activation, dropout_rate)

    model = ConvNet(image, outputs, name=name or variant)
    model.variant = variant
    if state is not None:
        from keras_convnets.weights import fill

        fill(model, state)
    if input_tensor is not None:
        (source,) = keras.utils.get_source_inputs(input_tensor)
        model = ConvNet(source, outputs, name=model.name)
        model.variant = variant
    model.checkpoint = tag and f"{variant}.{tag}"
    return model


def _check_arguments(include_top, features, pooling, classes, classifier_activation, dropout_rate):
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "image_data_format='channels_first' is not supported: the models are channels-last; "
            "call keras.config.set_image_data_format('channels_last') first."
        )
    if pooling not in (None, "avg", "max"):
        raise ValueError(f"pooling={pooling!r} must be None, 'avg' or 'max'.")
    if pooling == "max" and include_top:
        raise ValueError(
            "pooling='max' contradicts include_top=True, whose classifier stands on the average; "
            "use include_top=False."
        )
    if features and pooling:
        raise ValueError(
            f"pooling={pooling!r} contradicts features=True, which gives the unpooled maps."
        )
    if classes is not None and not include_top:
        raise ValueError(
            f"classes={classes!r} contradicts include_top=False or features=True: there is no "
            "classifier; leave classes out."
        )
    if classes is not None and (not isinstance(classes, int) or classes < 1):
        raise ValueError(f"classes={classes!r} must be a positive integer.")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate={dropout_rate!r} must be at least 0 and less than 1.")
    if dropout_rate and not include_top:
        raise ValueError(
            f"dropout_rate={dropout_rate!r} contradicts include_top=False or features=True: there "
            "is no classifier; leave dropout_rate out."
        )
    try:
        keras.activations.get(classifier_activation)
    except ValueError:
        raise ValueError(
            f"classifier_activation={classifier_activation!r} is not a Keras activation; use "
            "'softmax', 'sigmoid', None for logits, or a function."
        ) from None


def find_checkpoint(
    row: Family, variant: str, weights: str | os.PathLike | Mapping | None
) -> tuple[str | None, Checkpoint | None]:
    """The published row that `weights=` names, as `(tag, Checkpoint)`; `(None, None)` for `None`,
    a state dict, a path or a URL.

    Raises:
        ValueError: for a word that is neither a tag of the variant nor a file; lists the tags.
    """
    if not isinstance(weights, str):
        return None, None
    rows = row.rows(variant)
    if weights == "imagenet" and rows:
        return next(iter(rows.items()))
    tag = weights.removeprefix(f"{variant}.")
    if tag in rows:
        return tag, rows[tag]
    if "://" in weights or os.path.exists(weights):
        return None, None
    known = ", ".join(map(repr, ["imagenet", *rows])) if rows else "none is published"
    raise ValueError(
        f"weights={weights!r} is no checkpoint of {variant!r} and no file: allowed are None, a "
        f"published tag ({known}), an hf:// or https:// address, or the path of a file."
    )


def _open_weights(variant, tag, checkpoint, weights):
    if weights is None:
        return None
    from keras_convnets.weights import as_published, open_checkpoint, open_source

    if checkpoint is not None:
        state = open_checkpoint(f"{variant}.{tag}", checkpoint)
    else:
        state = weights if isinstance(weights, Mapping) else open_source(weights)
    return as_published(variant, state)


def _published_classes(row, variant, checkpoint, state):
    if not isinstance(state, Mapping):
        return DEFAULT_CLASSES
    from keras_convnets.weights import count_classes, published_names

    classes = count_classes(row, state)
    known = published_names(variant)
    if classes is None and sum(key in known for key in state) < len(state) / 2:
        return DEFAULT_CLASSES  # of another model altogether: loading lists what does not fit
    if classes is None or (checkpoint is not None and checkpoint.labels is None):
        raise ValueError(
            f"These weights of {variant!r} have no classifier, which contradicts include_top=True: "
            "pass classes=... for a new one, or include_top=False."
        )
    return classes


def _image(input_tensor, input_shape, is_sized, checkpoint):
    if input_tensor is None:
        size = (checkpoint.input_size if checkpoint else DEFAULT_SIZE) if is_sized else None
        shape = (size, size, 3) if input_shape is None else input_shape
        return keras.Input(_checked(shape, "input_shape"))
    if not isinstance(input_tensor, keras.KerasTensor):
        raise ValueError(
            f"input_tensor is a {type(input_tensor).__name__}; it must be a symbolic KerasTensor, "
            "such as keras.Input(shape) or a layer's output."
        )
    shape = _checked(input_tensor.shape[1:], "input_tensor's shape")
    if input_shape is not None and tuple(input_shape) != shape:
        raise ValueError(f"input_shape={input_shape} contradicts input_tensor's shape {shape}.")
    return input_tensor


def _checked(shape, argument):
    try:
        height, width, channels = shape
        sizes_ok = all(s is None or (s == int(s) and s >= MIN_SIZE) for s in (height, width))
        channels_ok = channels == int(channels) and channels >= 1
    except (TypeError, ValueError):
        sizes_ok = channels_ok = False
    if not (sizes_ok and channels_ok):
        raise ValueError(
            f"{argument}={shape} must be (height, width, channels), channels last: sizes of at "
            f"least {MIN_SIZE} pixels or None, and a known number of channels."
        )
    return tuple(shape)


def build_with_taps(
    variant: str,
    input_shape: tuple[int, int, int],
    classes: int = DEFAULT_CLASSES,
    classifier_activation: str | None = "softmax",
) -> ConvNet:
    """A new model whose outputs are its taps, and then those of its classifier."""
    row, image = find_family(variant), keras.Input(input_shape)
    taps, final, head = _maps(row, variant, image)
    pooled = _pooled(row, final, head, True, None)
    outputs = _classified(row, pooled, classes, classifier_activation, 0.0)
    model = ConvNet(image, [*taps, outputs], name=variant)
    model.variant = variant
    return model


def _maps(row, variant, image, drop_path_rate=0.0):
    """A family's generator run: its taps, its return value or the last tap, and what is for the
    head."""
    arguments = {"drop_path_rate": drop_path_rate} if row.takes_drop_path else {}
    arguments |= row.variants[variant]
    head = arguments.pop("head", {})
    return *_levels(row.build(image, **arguments)), head


def _levels(levels):
    taps = []
    while True:
        try:
            taps.append(next(levels))
        except StopIteration as stop:
            return taps, taps[-1] if stop.value is None else stop.value


def _select(taps, out_indices):
    if out_indices is None:
        return taps
    try:
        return [taps[index] for index in out_indices]
    except (IndexError, TypeError):
        raise ValueError(
            f"out_indices={out_indices!r} must be a sequence of integers from {-len(taps)} to "
            f"{len(taps) - 1}."
        ) from None


def _pooled(row, x, arguments, include_top, pooling):
    if not include_top and pooling is None:
        return x
    if row.pre_pool is not None:
        x = row.pre_pool(x)
    pool = keras.layers.GlobalMaxPooling2D if pooling == "max" else GlobalAveragePooling2D
    x = pool(name="pool")(x)
    return x if row.pre_logits is None else row.pre_logits(x, **arguments)


def _classified(row, x, classes, classifier_activation, dropout_rate):
    if dropout_rate:
        x = keras.layers.Dropout(dropout_rate, name="dropout")(x)
    if row.classifier is not None:
        x = row.classifier(x, classes)
    else:
        x = Dense(classes, kernel_initializer=row.head_initializer, name="head")(x)
    # In float32 also under mixed precision: a float16 softmax loses the small probabilities.
    return Activation(classifier_activation or "linear", dtype="float32", name="predictions")(x)


def image_functions(weights: Mapping[str, Checkpoint]) -> tuple[Callable, Callable]:
    """A family's `preprocess_input`, from its table of checkpoints, and `decode_predictions`."""

    def preprocess_input(images, checkpoint: str | ConvNet | None = None):
        """Normalises pixels as a checkpoint of this family expects them.

        Args:
            images: pixels from 0 to 255 of shape (..., 3), RGB; an array or a tensor.
            checkpoint: `"variant.tag"`, or the model itself. Default: the family's first row.

        Returns:
            float32 of the same shape.

        Raises:
            ValueError: if there is no such row.
        """
        from keras_convnets import preprocessing

        key = getattr(checkpoint, "checkpoint", checkpoint) or next(iter(weights))
        if key not in weights:
            raise ValueError(
                f"checkpoint={key!r} must be one of {', '.join(weights)}; for weights of your own "
                "use keras_convnets.preprocessing.preprocess_input with a Checkpoint."
            )
        return preprocessing.preprocess_input(images, weights[key])

    return preprocess_input, decode_predictions


@dataclass(frozen=True)
class ModelInfo:
    """What `model_info` tells; `taps` are `(stride, channels)`, `macs` those of one image."""

    name: str
    family: str
    papers: tuple[str, ...]
    parameters: int
    macs: int
    input_size: int
    taps: tuple[tuple[int, int], ...]
    checkpoints: dict[str, Checkpoint]


def model_info(name: str, input_size: int | None = None) -> ModelInfo:
    """Facts about a model, found without building it (but for MACs at another size).

    Args:
        name: registry name.
        input_size: side of the image in pixels that MACs are counted at; default: that of the
            default checkpoint, else 224.
    """
    row = find_family(name)
    entry = catalog.read().get(name) or catalog.derive(name)  # a family of the user's own
    if input_size in (None, entry.input_size):
        macs = entry.macs
    else:
        with without_allocation():
            shape = (input_size, input_size, 3)
            macs = count(create_model(name, weights=None, input_shape=shape)).macs
    return ModelInfo(
        name,
        row.name,
        tuple(re.findall(r"https://[^\s,)]+", row.module.__doc__)),
        entry.parameters,
        macs,
        input_size or entry.input_size,
        tuple(tuple(map(int, tap.split(":"))) for tap in entry.taps.split()),
        row.rows(name),
    )
