"""MNN: FP32, whose convolutions are Winograd's, and int8 by its own tool for quantization after training."""
from __future__ import annotations

import json
import os
import subprocess
import sys

import MNN
import numpy as np
import onnx

import peer
from peer import Network, Row, Run, Task

NAME = "mnn"
ROWS = [Row("MNN FP32", 32, True), Row("MNN int8", 8, True)]


def versions() -> dict[str, str]:
    return {"MNN": MNN.version()}


def tool(name: str, arguments: list[str], target: str) -> None:
    """The package's own programs are not used: they install another package and report to a server."""
    call = f"import sys, MNN, _tools; _tools.{name}(['{name}', *sys.argv[1:]])"
    done = subprocess.run([sys.executable, "-c", call, *arguments], capture_output=True, text=True, check=False)
    if done.returncode or not os.path.exists(target):
        raise RuntimeError(f"MNN's {name} fails: {(done.stderr or done.stdout).strip()[-150:]}")


def convert(source: str, target: str) -> None:
    tool("mnnconvert", ["-f", "ONNX", "--modelFile", source, "--MNNModel", target, "--bizCode", "nibble"], target)


def with_float_pixels(source: str, target: str) -> None:
    """The same network without its conversion from u8: mnnquant fills a float input."""
    model = onnx.load(source)
    graph = model.graph
    cast = next(node for node in graph.node if node.op_type == "Cast" and node.input[0] == "pixels")
    for node in graph.node:
        node.input[:] = ["pixels" if name == cast.output[0] else name for name in node.input]
    graph.node.remove(cast)
    graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    onnx.save(model, target)


def quantize(task: Task, source: str, target: str) -> None:
    images = task.folder / "images"
    images.mkdir(exist_ok=True)
    for index, image in enumerate(task.calibration_pixels()):
        (images / f"{index:05}.ppm").write_bytes(b"P6\n32 32\n255\n" + image.transpose(1, 2, 0).tobytes())
    configuration = task.folder / "quantization.json"
    configuration.write_text(json.dumps({
        "format": "RGB", "mean": [0, 0, 0], "normal": [1, 1, 1], "width": 32, "height": 32, "path": f"{images}/",
        "used_image_num": task.calibration, "feature_quantize_method": "KL", "weight_quantize_method": "MAX_ABS"}))
    tool("mnnquant", [source, target, str(configuration)], target)


def runner(file: str, chunk: int, kind: type) -> Run:
    """kind: the type of the pixels that the network reads."""
    config = {"backend": "CPU", "numThread": peer.THREADS, "precision": "high"}
    manager = MNN.nn.create_runtime_manager((config,))
    module = MNN.nn.load_module_from_file(file, ["pixels"], ["logits"], runtime_manager=manager)
    name = MNN.expr.dtype.uint8 if kind is np.uint8 else MNN.expr.dtype.float

    def run(pixels: np.ndarray) -> np.ndarray:
        value = MNN.expr.const(np.ascontiguousarray(pixels, kind), list(pixels.shape), MNN.expr.data_format.NCHW, name)
        return np.array(module.forward([value])[0].read()).reshape(-1, 10)
    return peer.in_chunks(peer.padded(run, chunk), chunk)


def build(row: Row, task: Task) -> Network:
    source, float_file = task.onnx_file(), str(task.folder / "fp32.mnn")
    if row.bits == 32:
        convert(source, float_file)
        return Network("precision high", os.path.getsize(float_file), lambda chunk: runner(float_file, chunk, np.uint8))
    float_pixels, unquantized, file = (str(task.folder / name) for name in ("float_pixels.onnx", "float_pixels.mnn",
                                                                            "int8.mnn"))
    with_float_pixels(source, float_pixels)
    convert(float_pixels, unquantized)
    quantize(task, unquantized, file)
    return Network(f"mnnquant, KL divergence on {task.calibration} images, one weight scale an output channel",
                   os.path.getsize(file), lambda chunk: runner(file, chunk, np.float32))
