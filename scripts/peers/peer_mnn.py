"""MNN: FP32; its convolutions are Winograd's."""
from __future__ import annotations

import os
import subprocess
import sys

import MNN
import numpy as np

import peer
from peer import Network, Row, Run, Task

NAME = "mnn"
ROWS = [Row("MNN FP32", 32, True)]


def versions() -> dict[str, str]:
    return {"MNN": MNN.version()}


# The package's own program mnnconvert is not used: it installs another package and reports to a server.
CONVERT = "import sys, MNN, _tools; _tools.mnnconvert(['mnnconvert', *sys.argv[1:]])"


def convert(source: str, target: str) -> None:
    done = subprocess.run([sys.executable, "-c", CONVERT, "-f", "ONNX", "--modelFile", source, "--MNNModel", target,
                           "--bizCode", "nibble"], capture_output=True, text=True, check=False)
    if done.returncode or not os.path.exists(target):
        raise RuntimeError(f"MNN does not convert the ONNX model: {(done.stderr or done.stdout).strip()[-150:]}")


def runner(file: str, chunk: int) -> Run:
    config = {"backend": "CPU", "numThread": peer.THREADS, "precision": "high"}
    manager = MNN.nn.create_runtime_manager((config,))
    module = MNN.nn.load_module_from_file(file, ["pixels"], ["logits"], runtime_manager=manager)

    def run(pixels: np.ndarray) -> np.ndarray:
        value = MNN.expr.const(np.ascontiguousarray(pixels), list(pixels.shape), MNN.expr.data_format.NCHW,
                               MNN.expr.dtype.uint8)
        return np.array(module.forward([value])[0].read()).reshape(-1, 10)
    return peer.in_chunks(peer.padded(run, chunk), chunk)


def build(row: Row, task: Task) -> Network:
    file = str(task.folder / "fp32.mnn")
    convert(task.onnx_file(), file)
    return Network("precision high", os.path.getsize(file), lambda chunk: runner(file, chunk))
