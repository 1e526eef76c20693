"""ncnn: FP32 by Winograd, one image after the other. Its Python package has no quantization tool."""
from __future__ import annotations

import concurrent.futures
import os
import pathlib

import ncnn
import numpy as np

import peer
from peer import Network, Row, Run, Task, checkpoints

NAME = "ncnn"
ROWS = [Row("ncnn FP32", 32, True, (1, 2))]


def versions() -> dict[str, str]:
    return {"ncnn": ncnn.__version__}


class Writer:
    """ncnn's text of layers and its file of weights (a zero before each convolution's weights: they are float32)."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.blobs: set[str] = set()
        self.weights: list[bytes] = []

    def layer(self, kind: str, inputs: list[str], outputs: list[str], parameters: str = "") -> str:
        name = f"layer{len(self.lines)}"
        self.blobs.update(outputs)
        self.lines.append(" ".join([kind, name, str(len(inputs)), str(len(outputs)), *inputs, *outputs, parameters]))
        return outputs[0]

    def weight(self, layer: checkpoints.Layer) -> None:
        self.weights += [bytes(4), layer.weight.astype("<f4").tobytes(), layer.bias.astype("<f4").tobytes()]

    def convolution(self, shape: checkpoints.Convolution, layer: checkpoints.Layer, blob: str, output: str,
                    relu: bool) -> str:
        self.weight(layer)
        return self.layer("Convolution", [blob], [output], f"0={shape.outputs} 1={shape.kernel} 3={shape.stride} "
                          f"4={shape.kernel // 2} 5=1 6={layer.weight.size} 9={int(relu)}")

    def write(self, folder: pathlib.Path) -> tuple[str, str]:
        text = f"7767517\n{len(self.lines)} {len(self.blobs)}\n" + "\n".join(self.lines) + "\n"
        (folder / "ncnn.param").write_text(text)
        (folder / "ncnn.bin").write_bytes(b"".join(self.weights))
        return str(folder / "ncnn.param"), str(folder / "ncnn.bin")


def write_network(source: checkpoints.FloatNetwork, folder: pathlib.Path) -> tuple[str, str]:
    writer, network, layers = Writer(), source.network, source.folded()
    writer.layer("Input", [], ["pixels"])
    stream = writer.convolution(network.convolutions[0], layers[0], "pixels", "first", True)
    for index, block in enumerate(network.blocks):
        if block.pads_channels:
            raise ValueError("shortcut A was not written for ncnn")
        first, second = f"b{index}a", f"b{index}b"
        writer.layer("Split", [stream], [first, second])
        middle = writer.convolution(network.convolutions[block.conv1], layers[block.conv1], first, f"b{index}m", True)
        main = writer.convolution(network.convolutions[block.conv2], layers[block.conv2], middle, f"b{index}n", False)
        if block.projection is not None:
            second = writer.convolution(network.convolutions[block.projection], layers[block.projection], second,
                                        f"b{index}p", False)
        total = writer.layer("BinaryOp", [main, second], [f"b{index}s"], "0=0")
        stream = writer.layer("ReLU", [total], [f"b{index}r"])
    pooled = writer.layer("Pooling", [stream], ["pool"], "0=1 4=1")
    writer.weight(layers[-1])
    writer.layer("InnerProduct", [pooled], ["logits"], f"0=10 1=1 2={layers[-1].weight.size}")
    return writer.write(folder)


def runner(files: tuple[str, str], at_once: int) -> Run:
    """at_once images, each with its share of the threads."""
    net = ncnn.Net()
    net.opt.num_threads = peer.THREADS // at_once
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    if net.load_param(files[0]) or net.load_model(files[1]):
        raise RuntimeError("ncnn does not read the network that was written for it")
    mean = (255 * checkpoints.MEAN).astype(np.float32).reshape(3, 1, 1)
    factor = (1 / (255 * checkpoints.DEVIATION)).astype(np.float32).reshape(3, 1, 1)

    def some(pixels: np.ndarray) -> np.ndarray:
        logits = np.empty((len(pixels), 10), np.float32)
        for index, image in enumerate(pixels):
            values = (image.astype(np.float32) - mean) * factor
            extractor = net.create_extractor()
            extractor.input("pixels", ncnn.Mat(values))
            logits[index] = np.array(extractor.extract("logits")[1])
        return logits

    if at_once == 1:
        return some
    pool = concurrent.futures.ThreadPoolExecutor(at_once)
    return lambda pixels: np.concatenate(list(pool.map(some, np.array_split(pixels, min(at_once, len(pixels))))))


def build(row: Row, task: Task) -> Network:
    files = write_network(task.network(), task.folder)
    size = sum(os.path.getsize(file) for file in files)
    return Network("float32 storage and arithmetic, one image at a time for each thread or on all",
                   size, lambda chunk: runner(files, chunk))
