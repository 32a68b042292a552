"""Which operators of a .tflite file to run in int8 where not all of them are fast in it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection

from keras_convnets.deploy.inspect import LiteRTFile, Step

# In hundredths of a nanosecond for each value of the output, by
# benchmarks/results/litert_operators.md: to or from int8, and what an operator takes more in int8
# than in float. At least 1, for in int8 it rounds: where nothing is saved it stays in float.
CONVERSION = 10
MORE_IN_INT8 = {"GELU": 2, "MUL": 2}
MORE_FOR_TAPS = ((9, 3), (25, 9))  # a depthwise convolution of at most so many taps
MANY_TAPS = 500


def in_int8(file: LiteRTFile, products: Collection[str], others: Collection[str]) -> list[Step]:
    """The operators to run in int8 beside the products, so that conversions between int8 and float,
    and operators that are slower in int8, take least.

    This is a minimum cut between what must be in int8 and what must be in float. Of several, the
    one with the fewest operators in int8.

    Args:
        file: all in float.
        products: operators that always run in int8.
        others: operators that may.
    """
    import networkx

    graph = networkx.DiGraph()
    graph.add_nodes_from(("int8", "float"))
    makers, readers = dict.fromkeys(file.inputs, "float"), defaultdict(set)
    free = []
    for position, step in enumerate(file.steps):
        node = "float"
        if step.kind in products:
            node = "int8"
        elif step.kind in others and file.tensors[step.outputs[0]].dtype == "float32":
            node = position
            free.append(position)
            graph.add_edge(position, "float", capacity=_more_in_int8(file, step))
        makers |= dict.fromkeys(step.outputs, node)
        for index in step.inputs:
            readers[index].add(node)
    for index in file.outputs:
        readers[index].add("float")
    for index, maker in makers.items():
        cost = CONVERSION * math.prod(file.tensors[index].shape)
        # One conversion serves all readers; edges without a capacity can't be cut.
        graph.add_edge(maker, ("to float", index), capacity=cost)
        graph.add_edge(("to int8", index), maker, capacity=cost)
        for reader in readers[index]:
            graph.add_edge(("to float", index), reader)
            graph.add_edge(reader, ("to int8", index))
    # Reversed: the side of the sink is the smallest there is.
    _, (_, integers) = networkx.minimum_cut(graph.reverse(), "float", "int8")
    return [file.steps[position] for position in free if position in integers]


def _more_in_int8(file, step):
    values, more = math.prod(file.tensors[step.outputs[0]].shape), MORE_IN_INT8.get(step.kind, 1)
    if step.kind == "DEPTHWISE_CONV_2D":
        taps = math.prod(file.tensors[step.inputs[1]].shape[1:3])
        more = next((extra for most, extra in MORE_FOR_TAPS if taps <= most), MANY_TAPS)
    return more * values
