"""Nibble's checkpoints and CIFAR-10 for tools in Python: files to numpy arrays. Needs numpy; nothing else.

Only reads; the programs `train` and `quant` write. graph/network/quantized_parameters.h says what the numbers mean.
"""
from __future__ import annotations

import dataclasses
import os

import numpy as np

from plain_files import WrongInput, data_folder, not_of_this_project, read_header

MEAN = np.array([0.485, 0.456, 0.406])
DEVIATION = np.array([0.229, 0.224, 0.225])
BORDER = np.rint(255 * MEAN).astype(np.int64)  # what surrounds the image of a quantized network
EPSILON = 1e-5
TYPES = {"U8": "u1", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "U64": "<u8", "F32": "<f4"}


@dataclasses.dataclass(frozen=True)
class Convolution:
    name: str
    inputs: int
    outputs: int
    kernel: int
    stride: int


@dataclasses.dataclass(frozen=True)
class Block:
    conv1: int  # places in Network.convolutions
    conv2: int
    projection: int | None
    pads_channels: bool  # shortcut A: every second row and column, new channels are zero


@dataclasses.dataclass(frozen=True)
class Network:
    convolutions: list[Convolution]
    blocks: list[Block]


@dataclasses.dataclass
class Layer:
    """Folded float: weight [output, input, row, column] or [class, feature], bias [output]."""
    weight: np.ndarray
    bias: np.ndarray


@dataclasses.dataclass
class FloatNetwork:
    network: Network
    tensors: dict[str, np.ndarray]  # as in the file

    def folded(self) -> list[Layer]:
        """Each convolution without its batch normalization, then the linear layer; pixels are normalized ones."""
        layers = []
        for convolution in self.network.convolutions:
            part = {key: self.tensors[f"{convolution.name}.{key}"].astype(np.float64)
                    for key in ("weight", "gamma", "beta", "running_mean", "running_variance")}
            factor = part["gamma"] / np.sqrt(part["running_variance"] + EPSILON)
            weight = part["weight"].transpose(0, 3, 1, 2) * factor[:, None, None, None]
            layers.append(Layer(weight.astype(np.float32),
                                (part["beta"] - part["running_mean"] * factor).astype(np.float32)))
        return layers + [Layer(self.tensors["linear.weight"], self.tensors["linear.bias"])]


@dataclasses.dataclass
class QuantizedLayer:
    bits: int
    weight: np.ndarray  # integers, [output, input, row, column] or [class, feature]
    codes: np.ndarray | None  # at 2 bits: 0..3, the places of the weights in `levels`
    levels: np.ndarray | None
    scale: np.ndarray  # [output]
    bias: np.ndarray  # [output], real units


@dataclasses.dataclass
class QuantizedBlock:
    input_bits: int
    middle_bits: int
    input_scale: np.float32
    middle_scale: np.float32
    shortcut_scale: np.float32
    output_scale: np.float32


@dataclasses.dataclass
class QuantizedNetwork:
    network: Network
    weight_bits: int
    activation_bits: int
    first_output_scale: np.float32
    blocks: list[QuantizedBlock]
    layers: list[QuantizedLayer]  # the convolutions, then the linear layer


def describe(variant: str, depth: int, shortcut: str) -> Network:
    """The network as graph/network/description.cpp describes it."""
    if variant == "resnet_344":
        stages, projection_kernel = ((16, 3), (32, 4), (64, 4)), 3
    elif variant == "he" and depth % 6 == 2 and shortcut in ("A", "B"):
        n = (depth - 2) // 6
        stages, projection_kernel = ((16, n), (32, n), (64, n)), 1 if shortcut == "B" else 0
    else:
        raise WrongInput(f"there is no network '{variant}' with depth {depth} and shortcut '{shortcut}'")
    convolutions, blocks, channels = [Convolution("conv1", 3, 16, 3, 1)], [], 16
    for outputs, count in stages:
        for index in range(count):
            narrows = index == 0 and outputs != 16
            stride, name, first = 2 if narrows else 1, f"blocks.{len(blocks)}", len(convolutions)
            convolutions.append(Convolution(f"{name}.conv1", channels, outputs, 3, stride))
            convolutions.append(Convolution(f"{name}.conv2", outputs, outputs, 3, 1))
            if narrows and projection_kernel:
                convolutions.append(Convolution(f"{name}.shortcut", channels, outputs, projection_kernel, stride))
            blocks.append(Block(first, first + 1, first + 2 if narrows and projection_kernel else None,
                                narrows and not projection_kernel))
            channels = outputs
    return Network(convolutions, blocks)


def read_safetensors(path: os.PathLike | str) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and tensors of a safetensors file."""
    metadata, entries, data = read_header(path)
    try:
        tensors = {}
        for name, entry in entries.items():
            first, end = entry["data_offsets"]
            if not 0 <= first <= end <= len(data):
                raise ValueError(f"the place of tensor '{name}' is outside the file")
            tensors[name] = np.frombuffer(data[first:end], TYPES[entry["dtype"]]).reshape(entry["shape"])
        return metadata, tensors
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise not_of_this_project(path, error) from None


def _network_of(path: os.PathLike | str, metadata: dict[str, str], kind: str) -> Network:
    found = metadata.get("format")
    if found != kind:
        raise WrongInput(f"{path}: the format is '{found}', expected '{kind}'; name a checkpoint of that kind")
    try:
        return describe(metadata["variant"], int(metadata["depth"]), metadata["shortcut"])
    except (KeyError, ValueError) as error:
        raise WrongInput(f"{path}: the metadata do not name a network ({error})") from None
    except WrongInput as error:
        raise WrongInput(f"{path}: {error}") from None


def checkpoint_format(path: os.PathLike | str) -> str:
    return read_safetensors(path)[0].get("format", "")


def read_float(path: os.PathLike | str) -> FloatNetwork:
    metadata, tensors = read_safetensors(path)
    network = _network_of(path, metadata, "nibble-float-1")
    for convolution in network.convolutions:
        shape = (convolution.outputs, convolution.kernel, convolution.kernel, convolution.inputs)
        expected = {"weight": shape, **dict.fromkeys(("gamma", "beta", "running_mean", "running_variance"), shape[:1])}
        for key, wanted in expected.items():
            _check_shape(path, tensors, f"{convolution.name}.{key}", wanted)
    _check_shape(path, tensors, "linear.weight", (10, 64))
    _check_shape(path, tensors, "linear.bias", (10,))
    return FloatNetwork(network, tensors)


def _check_shape(path: os.PathLike | str, tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> None:
    found = tensors[name].shape if name in tensors else "no such tensor"
    if found != shape:
        raise WrongInput(f"{path}: tensor '{name}': {found}, expected the shape {shape}")


def _unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Codes of a packed tensor, lowest bits first; signed (two's complement) but at 2 bits."""
    if bits == 16:
        return packed.view("<i2").astype(np.int32)
    codes = (packed[:, None] >> np.arange(0, 8, bits, dtype=np.uint8)) & ((1 << bits) - 1)
    codes = codes.reshape(-1)[:count].astype(np.int32)
    sign = 1 << (bits - 1)
    return codes if bits == 2 else (codes ^ sign) - sign


def _read_layer(tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...], bits: int,
                levels: np.ndarray | None, scale: np.ndarray, bias: np.ndarray) -> QuantizedLayer:
    values = _unpack(tensors[f"{name}.weight"], bits, int(np.prod(shape))).reshape(shape)
    values = values.transpose(0, 3, 1, 2) if len(shape) == 4 else values
    if bits == 2:
        return QuantizedLayer(bits, levels.astype(np.int32)[values], values, levels, scale, bias)
    return QuantizedLayer(bits, values, None, None, scale, bias)


def read_quantized(path: os.PathLike | str) -> QuantizedNetwork:
    metadata, tensors = read_safetensors(path)
    network = _network_of(path, metadata, "nibble-integer-1")
    shapes = [(c.name, (c.outputs, c.kernel, c.kernel, c.inputs)) for c in network.convolutions]
    shapes.append(("linear", (10, 64)))
    count, channels = len(network.blocks), sum(shape[0] for _, shape in shapes)
    _check_shape(path, tensors, "widths", (len(shapes) + 2 * count,))
    _check_shape(path, tensors, "scales", (1 + 4 * count + channels,))
    _check_shape(path, tensors, "biases", (channels,))
    widths = [int(width) for width in tensors["widths"]]
    scales, biases, levels = tensors["scales"], tensors["biases"], iter(tensors["levels"])
    blocks = [QuantizedBlock(*widths[len(shapes) + 2 * i:len(shapes) + 2 * i + 2], *scales[1 + 4 * i:5 + 4 * i])
              for i in range(count)]
    layers, first = [], 0
    for (name, shape), bits in zip(shapes, widths):
        _check_shape(path, tensors, f"{name}.weight", ((int(np.prod(shape)) * bits + 7) // 8,))
        part = slice(first, first + shape[0])
        layers.append(_read_layer(tensors, name, shape, bits, next(levels) if bits == 2 else None,
                                  scales[1 + 4 * count:][part], biases[part]))
        first += shape[0]
    return QuantizedNetwork(network, int(metadata["weight_bits"]), int(metadata["activation_bits"]),
                            scales[0], blocks, layers)


# --- CIFAR-10 ---------------------------------------------------------------------------------------------

RECORD = 1 + 3072


def read_images(names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """u8 pixels [image, channel, row, column] and labels."""
    records = []
    for name in names:
        path = data_folder() / name
        try:
            values = np.fromfile(path, np.uint8)
        except OSError as error:
            raise WrongInput(f"{path} cannot be read ({error.strerror})") from None
        if values.size == 0 or values.size % RECORD:
            raise WrongInput(f"{path} has {values.size} bytes, which is no number of records; fetch the data again")
        records.append(values.reshape(-1, RECORD))
    data = np.concatenate(records)
    return np.ascontiguousarray(data[:, 1:]).reshape(-1, 3, 32, 32), data[:, 0].astype(np.int64)


def test_images() -> tuple[np.ndarray, np.ndarray]:
    return read_images(["test_batch.bin"])


class SplitMix64:
    """graph/data/random.h."""
    MASK = (1 << 64) - 1

    def __init__(self, state: int):
        self.state = state

    def next(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & self.MASK
        z = self.state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & self.MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & self.MASK
        return z ^ z >> 31

    def below(self, bound: int) -> int:
        threshold = (1 << 32) % bound
        while True:
            product = (self.next() >> 32) * bound
            if product & 0xFFFFFFFF >= threshold:
                return product >> 32


def calibration_indices(count: int, seed: int = 1, available: int = 50000) -> list[int]:
    """The training images that `quant` calibrates with."""
    order = list(range(available))
    random = SplitMix64(SplitMix64(seed ^ SplitMix64(0).next()).next())
    for remaining in range(available, 1, -1):
        other = random.below(remaining)
        order[remaining - 1], order[other] = order[other], order[remaining - 1]
    return order[:count]


def calibration_images(count: int, seed: int = 1) -> np.ndarray:
    pixels, _ = read_images([f"data_batch_{i}.bin" for i in range(1, 6)])
    return pixels[calibration_indices(count, seed)]
