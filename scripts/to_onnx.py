#!/usr/bin/env python3
"""Writes a checkpoint of Nibble as an ONNX model.

    scripts/to_onnx.py chkp/64_200_int8.safetensors int8.onnx

Input `pixels`: raw u8 [images, 3, 32, 32]; output `logits`: float [images, 10].
FP32: batch normalization folded. int8: QuantizeLinear and DequantizeLinear, one weight scale an output channel.
int4: weights as INT4 (opset 21), activations clamped to 15 steps. int2: weights as UINT2 codes that stand for four
levels (opset 25), activations clamped to 3 steps. Needs numpy and onnx (scripts/peers/setup installs both).
"""
from __future__ import annotations

import argparse
import os
import sys

try:
    import numpy as np
except ImportError:
    sys.exit(print("to_onnx.py: the Python package numpy is needed: run scripts/peers/setup, or pip install numpy",
                   file=sys.stderr) or 2)

import checkpoints
from checkpoints import BORDER, DEVIATION, MEAN, Network, WrongInput
from plain_files import replace_file

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError:
    onnx = None

OPSETS = {32: (17, 8), 8: (17, 8), 4: (21, 10), 2: (25, 13)}  # weight bits -> opset, version of the file format


class Graph:
    """Collects nodes and constants; every method returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list = []
        self.constants: list = []

    def name(self, wanted: str) -> str:
        """A layer's weight is called as in the checkpoint; all else gets a number."""
        return wanted if wanted.endswith(".weight") else f"{wanted}_{len(self.nodes) + len(self.constants)}"

    def constant(self, values: np.ndarray, wanted: str) -> str:
        name = self.name(wanted)
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def narrow(self, values: np.ndarray, bits: int, wanted: str) -> str:
        """An initializer of signed 4-bit values or unsigned 2-bit codes, two or four in a byte, lowest first."""
        name, codes = self.name(wanted), values.reshape(-1).astype(np.int64) & ((1 << bits) - 1)
        each = 8 // bits
        codes = np.pad(codes, (0, -len(codes) % each)).reshape(-1, each)
        packed = (codes << np.arange(0, 8, bits)).sum(axis=1).astype(np.uint8)
        kind = TensorProto.INT4 if bits == 4 else TensorProto.UINT2
        self.constants.append(helper.make_tensor(name, kind, values.shape, packed.tobytes(), raw=True))
        return name

    def node(self, kind: str, inputs: list[str], wanted: str, **attributes: object) -> str:
        name = self.name(wanted)
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def convolution(self, inputs: list[str], kernel: int, stride: int, wanted: str) -> str:
        return self.node("Conv", inputs, wanted, kernel_shape=[kernel] * 2, strides=[stride] * 2,
                         pads=[kernel // 2] * 4)

    def dequantized(self, values: str, scale: float, unsigned: bool = True) -> str:
        zero = np.zeros((), np.uint8 if unsigned else np.int8)
        return self.node("DequantizeLinear", [values, self.constant(np.float32(scale), "scale"),
                                              self.constant(zero, "zero")], "value")

    def integers(self, values: str, scale: float, unsigned: bool = True) -> str:
        zero = np.zeros((), np.uint8 if unsigned else np.int8)
        return self.node("QuantizeLinear", [values, self.constant(np.float32(scale), "scale"),
                                            self.constant(zero, "zero")], "integer")

    def activation(self, integers: str, scale: float, bits: int) -> str:
        """What a convolution reads. Clamped as float: where DequantizeLinear stands directly before a convolution, ONNX
        Runtime makes 8-bit weights of its own from narrower ones."""
        values = self.dequantized(integers, scale)
        if bits == 8:
            return values
        largest = np.float32((1 << bits) - 1) * np.float32(scale)
        return self.node("Clip", [values, self.constant(np.float32(0), "least"),
                                  self.constant(largest, "largest")], "clamped")

    def narrowed(self, integers: str, ratio: float, scale: float, bits: int) -> str:
        """From the u8 stream to `bits` bits of `scale`. ratio: the scale in units of the stream's.

        By way of Cast: two QuantizeLinear after another would be made one by ONNX Runtime, with other roundings.
        """
        values = self.node("Cast", [integers], "stream_integers", to=TensorProto.FLOAT)
        return self.activation(self.integers(values, ratio), scale, bits)

    def shortcut_a(self, values: str, inputs: int, outputs: int) -> str:
        """He et al. 2015, option A: every second row and column, new channels are zero."""
        ends = [np.array(part, np.int64) for part in ([0, 0], [1 << 30, 1 << 30], [2, 3], [2, 2])]
        halved = self.node("Slice", [values, *(self.constant(end, "slice") for end in ends)], "halved")
        new = (outputs - inputs) // 2
        pads = np.array([0, new, 0, 0, 0, new, 0, 0], np.int64)
        return self.node("Pad", [halved, self.constant(pads, "pads")], "padded")

    def model(self, output: str, bits: int, title: str) -> "onnx.ModelProto":
        self.nodes.append(helper.make_node("Identity", [output], ["logits"], name="logits"))
        graph = helper.make_graph(
            self.nodes, title,
            [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["images", 3, 32, 32])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["images", 10])], self.constants)
        opset, format_version = OPSETS[bits]
        return helper.make_model(graph, producer_name="nibble", ir_version=format_version,
                                 opset_imports=[helper.make_opsetid("", opset)])


def features(graph: Graph, stream: str) -> str:
    return graph.node("Flatten", [graph.node("GlobalAveragePool", [stream], "pool")], "features", axis=1)


def float_model(source: checkpoints.FloatNetwork) -> "onnx.ModelProto":
    """Pixels minus 255 mean; the deviation is part of the first convolution's weights."""
    graph, network, layers = Graph(), source.network, source.folded()
    layers[0].weight = (layers[0].weight / (255 * DEVIATION.reshape(1, 3, 1, 1))).astype(np.float32)

    def convolution(index: int, values: str) -> str:
        shape, layer = network.convolutions[index], layers[index]
        inputs = [values, graph.constant(layer.weight, f"{shape.name}.weight"), graph.constant(layer.bias, "bias")]
        return graph.convolution(inputs, shape.kernel, shape.stride, shape.name)

    def block(part: checkpoints.Block, stream: str) -> str:
        middle = graph.node("Relu", [convolution(part.conv1, stream)], "middle")
        shortcut = stream
        if part.projection is not None:
            shortcut = convolution(part.projection, stream)
        elif part.pads_channels:
            shape = network.convolutions[part.conv1]
            shortcut = graph.shortcut_a(stream, shape.inputs, shape.outputs)
        total = graph.node("Add", [convolution(part.conv2, middle), shortcut], "sum")
        return graph.node("Relu", [total], "stream")

    mean = graph.constant((255 * MEAN).astype(np.float32).reshape(1, 3, 1, 1), "mean")
    pixels = graph.node("Sub", [graph.node("Cast", ["pixels"], "float", to=TensorProto.FLOAT), mean], "centred")
    stream = graph.node("Relu", [convolution(0, pixels)], "stream")
    for part in network.blocks:
        stream = block(part, stream)
    logits = graph.node("Gemm", [features(graph, stream), graph.constant(layers[-1].weight, "linear.weight"),
                                 graph.constant(layers[-1].bias, "bias")], "linear", transB=1)
    return graph.model(logits, 32, "FP32")


def quantized_weight(graph: Graph, layer: checkpoints.QuantizedLayer, name: str) -> str:
    """The real weights, from integers of their own width."""
    if layer.bits == 2:
        codes = graph.node("Cast", [graph.narrow(layer.codes, 2, f"{name}.weight")], "indices", to=TensorProto.INT32)
        levels = graph.node("Gather", [graph.constant(layer.levels.astype(np.float32), "levels"), codes], "levels")
        each = graph.constant(layer.scale.reshape(-1, 1, 1, 1), "weight_scale")
        return graph.node("Mul", [levels, each], "weight")
    scale = graph.constant(layer.scale, "weight_scale")
    if layer.bits == 4:
        integers = graph.narrow(layer.weight, 4, f"{name}.weight")
        return graph.node("DequantizeLinear", [integers, scale], "weight", axis=0)
    zero = graph.constant(np.zeros(layer.scale.shape, np.int8), "zero")
    integers = graph.constant(layer.weight.astype(np.int8), f"{name}.weight")
    return graph.node("DequantizeLinear", [integers, scale, zero], "weight", axis=0)


def quantized_model(source: checkpoints.QuantizedNetwork) -> "onnx.ModelProto":
    """The integer network of docs/formats.md: between two layers stand the integers that our kernels have there.

    The border of the image is 124, 116, 104, so the pixels are taken minus that and padded with zeros.
    """
    if source.weight_bits not in (8, 4, 2):
        raise WrongInput(f"a {source.weight_bits}-bit network has no ONNX form here; choose one of 8, 4 or 2 bits")
    graph, network, layers = Graph(), source.network, source.layers

    def convolution(index: int, values: str) -> str:
        shape, layer = network.convolutions[index], layers[index]
        bias = layer.bias.astype(np.float64)
        if index == 0:
            bias = bias + layer.scale * (layer.weight * BORDER.reshape(1, 3, 1, 1)).sum(axis=(1, 2, 3))
        inputs = [values, quantized_weight(graph, layer, shape.name), graph.constant(bias.astype(np.float32), "bias")]
        return graph.convolution(inputs, shape.kernel, shape.stride, shape.name)

    def block(part: checkpoints.Block, widths: checkpoints.QuantizedBlock, integers: str, scale: float) -> str:
        """integers: the u8 stream, whose unit is scale; returns the next one."""
        stream = read = graph.dequantized(integers, scale)
        if widths.input_bits < 8:
            read = graph.narrowed(integers, widths.input_scale / scale, widths.input_scale, widths.input_bits)
        middle = graph.integers(graph.node("Relu", [convolution(part.conv1, read)], "positive"), widths.middle_scale)
        middle = graph.activation(middle, widths.middle_scale, widths.middle_bits)
        shortcut = stream
        if part.projection is not None:
            shortcut = graph.integers(convolution(part.projection, read), widths.shortcut_scale, unsigned=False)
            shortcut = graph.dequantized(shortcut, widths.shortcut_scale, unsigned=False)
        elif part.pads_channels:
            shape = network.convolutions[part.conv1]
            shortcut = graph.shortcut_a(stream, shape.inputs, shape.outputs)
        total = graph.node("Add", [convolution(part.conv2, middle), shortcut], "sum")
        return graph.integers(graph.node("Relu", [total], "positive"), widths.output_scale)

    ones = graph.constant(np.ones(3, np.float32), "scale")
    pixels = graph.node("DequantizeLinear", ["pixels", ones, graph.constant(BORDER.astype(np.uint8), "border")],
                        "centred", axis=1)
    scale, linear = source.first_output_scale, layers[-1]
    integers = graph.integers(graph.node("Relu", [convolution(0, pixels)], "positive"), scale)
    for part, widths in zip(network.blocks, source.blocks):
        integers, scale = block(part, widths, integers, scale), widths.output_scale
    pooled = features(graph, graph.dequantized(integers, scale))
    logits = graph.node("Gemm", [pooled, quantized_weight(graph, linear, "linear"),
                                 graph.constant(linear.bias, "bias")], "linear", transB=1)
    widths = sorted({layer.bits for layer in layers[1:-1]})
    return graph.model(logits, widths[0], f"int{widths[0]}" if len(widths) == 1 else "mixed")


def convert(path: os.PathLike | str) -> "onnx.ModelProto":
    """The model of a checkpoint, checked."""
    if onnx is None:
        raise WrongInput("the Python package onnx is needed: run scripts/peers/setup, or pip install onnx")
    found = checkpoints.checkpoint_format(path)
    if found == "nibble-float-1":
        model = float_model(checkpoints.read_float(path))
    elif found == "nibble-integer-1":
        model = quantized_model(checkpoints.read_quantized(path))
    else:
        raise WrongInput(f"{path}: the format is '{found}'; name an FP32 checkpoint or an integer one")
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a checkpoint, *.safetensors")
    parser.add_argument("target", help="the model to write, *.onnx")
    options = parser.parse_args()
    try:
        model = convert(options.source)
        replace_file(options.target, model.SerializeToString())
    except WrongInput as error:
        print(f"to_onnx.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"to_onnx.py: {options.target} cannot be written ({error.strerror})", file=sys.stderr)
        return 1
    print(f"{options.target}: {model.graph.name}, opset {model.opset_import[0].version}, "
          f"{os.path.getsize(options.target)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
