"""OpenVINO: FP32, BF16, and int8 by NNCF."""
from __future__ import annotations

import os

import numpy as np
import openvino as ov

import peer
from peer import Network, Row, Run, Task

NAME = "openvino"
ROWS = [Row("OpenVINO FP32", 32, True), Row("OpenVINO BF16", 16, True), Row("OpenVINO int8", 8, True)]


def versions() -> dict[str, str]:
    found = {"OpenVINO": ov.__version__.split("-")[0]}
    try:
        import nncf
        found["NNCF"] = nncf.__version__
    except ImportError:
        pass
    return found


def runner(model: ov.Model, bf16: bool, chunk: int) -> Run:
    """A graph of exactly `chunk` images; one on both threads, or, of a batch of many, two at a time."""
    streams = 1 if chunk == 1 else peer.THREADS
    fixed = model.clone()
    fixed.reshape([chunk, 3, 32, 32])
    compiled = ov.Core().compile_model(fixed, "CPU", {
        "INFERENCE_NUM_THREADS": peer.THREADS, "NUM_STREAMS": streams, "INFERENCE_PRECISION_HINT":
        "bf16" if bf16 else "f32"})
    if chunk == 1:
        request = compiled.create_infer_request()
        one = lambda pixels: request.infer([pixels], share_inputs=True)[0].copy()  # noqa: E731
        return peer.in_chunks(one, 1)

    requests = ov.AsyncInferQueue(compiled, streams)

    def run(pixels: np.ndarray) -> np.ndarray:
        logits = np.empty((len(pixels), 10), np.float32)

        def keep(request: ov.InferRequest, first: int) -> None:
            end = min(first + chunk, len(pixels))
            logits[first:end] = request.get_output_tensor(0).data[:end - first]
        requests.set_callback(keep)
        for first in range(0, len(pixels), chunk):
            part = pixels[first:first + chunk]
            if len(part) < chunk:
                part = np.concatenate([part, np.zeros((chunk - len(part), 3, 32, 32), np.uint8)])
            requests.start_async([part], first)
        requests.wait_all()
        return logits
    return run


def build(row: Row, task: Task) -> Network:
    model = ov.Core().read_model(task.onnx_file())
    settings = "fixed shapes"
    if row.bits == 8:
        import nncf
        pixels = task.calibration_pixels()
        data = nncf.Dataset([pixels[i:i + 1] for i in range(len(pixels))])
        model.reshape([-1, 3, 32, 32])
        model = nncf.quantize(model, data, preset=nncf.QuantizationPreset.PERFORMANCE, subset_size=len(pixels))
        settings = f"NNCF, performance preset on {len(pixels)} images, fixed shapes"
    elif row.bits == 16:
        settings = "INFERENCE_PRECISION_HINT bf16, fixed shapes"
    file = task.folder / f"openvino_{row.bits}.xml"
    ov.save_model(model, str(file), compress_to_fp16=False)
    size = os.path.getsize(file) + os.path.getsize(file.with_suffix(".bin"))
    return Network(settings, size, lambda chunk: runner(model, row.bits == 16, chunk))
