"""The C++ sources around a .tflite file for TensorFlow Lite Micro."""

from __future__ import annotations

from collections.abc import Iterable

# Builtin operators that TensorFlow Lite Micro has, and the methods of its MicroMutableOpResolver
# that register them, from micro_mutable_op_resolver.h. Left out are operators with resource
# variables, which a program has to make room for, and custom ones.
_METHODS = """
    ABS Abs, ADD Add, ADD_N AddN, ARG_MAX ArgMax, ARG_MIN ArgMin, AVERAGE_POOL_2D AveragePool2D,
    BATCH_MATMUL BatchMatMul, BATCH_TO_SPACE_ND BatchToSpaceNd, BROADCAST_ARGS BroadcastArgs,
    BROADCAST_TO BroadcastTo, CAST Cast, CEIL Ceil, CONCATENATION Concatenation, CONV_2D Conv2D,
    COS Cos, CUMSUM CumSum, DEPTHWISE_CONV_2D DepthwiseConv2D, DEPTH_TO_SPACE DepthToSpace,
    DEQUANTIZE Dequantize, DIV Div, DYNAMIC_UPDATE_SLICE DynamicUpdateSlice, ELU Elu,
    EMBEDDING_LOOKUP EmbeddingLookup, EQUAL Equal, EXP Exp, EXPAND_DIMS ExpandDims, FILL Fill,
    FLOOR Floor, FLOOR_DIV FloorDiv, FLOOR_MOD FloorMod, FULLY_CONNECTED FullyConnected,
    GATHER Gather, GATHER_ND GatherNd, GREATER Greater, GREATER_EQUAL GreaterEqual,
    HARD_SWISH HardSwish, IF If, L2_NORMALIZATION L2Normalization, L2_POOL_2D L2Pool2D,
    LEAKY_RELU LeakyRelu, LESS Less, LESS_EQUAL LessEqual, LOG Log, LOGICAL_AND LogicalAnd,
    LOGICAL_NOT LogicalNot, LOGICAL_OR LogicalOr, LOGISTIC Logistic, LOG_SOFTMAX LogSoftmax,
    MAXIMUM Maximum, MAX_POOL_2D MaxPool2D, MEAN Mean, MINIMUM Minimum, MIRROR_PAD MirrorPad,
    MUL Mul, NEG Neg, NOT_EQUAL NotEqual, PACK Pack, PAD Pad, PADV2 PadV2, PRELU Prelu,
    QUANTIZE Quantize, REDUCE_ALL ReduceAll, REDUCE_MAX ReduceMax, REDUCE_MIN ReduceMin, RELU Relu,
    RELU6 Relu6, RESHAPE Reshape, RESIZE_BILINEAR ResizeBilinear,
    RESIZE_NEAREST_NEIGHBOR ResizeNearestNeighbor, REVERSE_V2 ReverseV2, ROUND Round, RSQRT Rsqrt,
    SELECT_V2 SelectV2, SHAPE Shape, SIN Sin, SLICE Slice, SOFTMAX Softmax,
    SPACE_TO_BATCH_ND SpaceToBatchNd, SPACE_TO_DEPTH SpaceToDepth, SPLIT Split, SPLIT_V SplitV,
    SQRT Sqrt, SQUARE Square, SQUARED_DIFFERENCE SquaredDifference, SQUEEZE Squeeze,
    STRIDED_SLICE StridedSlice, SUB Sub, SUM Sum, SVDF Svdf, TANH Tanh, TRANSPOSE Transpose,
    TRANSPOSE_CONV TransposeConv, UNIDIRECTIONAL_SEQUENCE_LSTM UnidirectionalSequenceLSTM,
    UNPACK Unpack, WHILE While, ZEROS_LIKE ZerosLike
"""
RESOLVER = {
    operator: f"Add{method}"
    for operator, method in (row.split() for row in _METHODS.replace("\n", " ").split(","))
}

HEADER = """\
// {title}
#ifndef MODEL_H_
#define MODEL_H_

#include <cstddef>
#include <cstdint>

// The network, a .tflite file.
extern const unsigned char kModel[];
extern const size_t kModelSize;

// Memory that it needs, measured with the reference kernels on a 64-bit machine. Pointers of 4
// bytes need less, kernels with scratch buffers of their own (CMSIS-NN, ESP-NN) somewhat more.
constexpr size_t kArenaSize = {arena};

// Input and output are int8: value = (steps - zero point) * scale.
constexpr size_t kInputSize = {input_size};  // {input_shape}
constexpr float kInputScale = {input_scale};
constexpr int kInputZeroPoint = {input_zero_point};
constexpr size_t kOutputs = {outputs};
constexpr size_t kOutputSize[kOutputs] = {{{output_sizes}}};
constexpr float kOutputScale[kOutputs] = {{{output_scales}}};
constexpr int kOutputZeroPoint[kOutputs] = {{{output_zero_points}}};

#endif  // MODEL_H_
"""
DATA = """\
// {title}
#include "model.h"

// TensorFlow Lite reads weights in place, so they must be aligned.
alignas(16) const unsigned char kModel[] = {{
{rows}
}};
const size_t kModelSize = sizeof(kModel);
"""
PROGRAM = """\
// {title}
// Runs the network once. Build it with model_data.cc and TensorFlow Lite Micro.
#include <cmath>

#include "model.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_log.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/micro/system_setup.h"
#include "tensorflow/lite/schema/schema_generated.h"

namespace {{

alignas(16) uint8_t arena[kArenaSize];

// Your sensor: value number `index` of the input, normalised as in training.
float ReadInput([[maybe_unused]] size_t index) {{ return 0.0f; }}

int8_t Quantize(float value) {{
  const float steps = std::round(value / kInputScale) + kInputZeroPoint;
  return static_cast<int8_t>(std::fmin(std::fmax(steps, -128.0f), 127.0f));
}}

}}  // namespace

int main() {{
  tflite::InitializeTarget();
  // The operators of this network, and no others.
  tflite::MicroMutableOpResolver<{count}> resolver;
{registrations}
  tflite::MicroInterpreter interpreter(tflite::GetModel(kModel), resolver, arena, kArenaSize);
  if (interpreter.AllocateTensors() != kTfLiteOk) return 1;

  int8_t* input = interpreter.input(0)->data.int8;
  for (size_t i = 0; i < kInputSize; ++i) input[i] = Quantize(ReadInput(i));
  if (interpreter.Invoke() != kTfLiteOk) return 1;

  for (size_t k = 0; k < kOutputs; ++k) {{
    const int8_t* output = interpreter.output(k)->data.int8;
    for (size_t i = 0; i < kOutputSize[k]; ++i) {{
      const float value = (output[i] - kOutputZeroPoint[k]) * kOutputScale[k];
      MicroPrintf("%d", static_cast<int>(std::lround(1000 * value)));  // thousandths
    }}
  }}
  return 0;
}}
"""


def header(title: str, arena: int, ports: list) -> str:
    """`model.h`. `ports`: the input and the outputs, each with `shape`, `size`, `scale` and
    `zero_point`."""
    image, *outputs = ports
    return HEADER.format(
        title=title,
        arena=arena,
        input_size=image.size,
        input_shape=" x ".join(map(str, image.shape)),
        input_scale=_float(image.scale),
        input_zero_point=image.zero_point,
        outputs=len(outputs),
        output_sizes=", ".join(str(port.size) for port in outputs),
        output_scales=", ".join(_float(port.scale) for port in outputs),
        output_zero_points=", ".join(str(port.zero_point) for port in outputs),
    )


def data(title: str, content: bytes) -> str:
    """`model_data.cc`."""
    rows = [content[i : i + 16] for i in range(0, len(content), 16)]
    text = "\n".join("    " + ", ".join(f"0x{byte:02x}" for byte in row) + "," for row in rows)
    return DATA.format(title=title, rows=text)


def program(title: str, operators: Iterable[str]) -> str:
    """`main.cc`, for these builtin operators."""
    methods = [RESOLVER[operator] for operator in sorted(operators)]
    lines = (f"  if (resolver.{method}() != kTfLiteOk) return 1;" for method in methods)
    return PROGRAM.format(title=title, count=len(methods), registrations="\n".join(lines))


def _float(value):
    """All digits of a float32, as a C++ literal."""
    text = f"{value:.9g}"
    return f"{text}f" if set(text) & set(".en") else f"{text}.0f"
