"""ONNX Runtime: FP32, and int8 by its own quantizer."""
from __future__ import annotations

import os
import pathlib

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import (CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType,
                                      quantize_static)

import peer
from peer import Network, Row, Run, Task

NAME = "onnxruntime"
ROWS = [Row("ONNX Runtime FP32", 32, True), Row("ONNX Runtime int8", 8, True)]


def versions() -> dict[str, str]:
    return {"ONNX Runtime": ort.__version__}


class Pixels(CalibrationDataReader):
    def __init__(self, pixels: np.ndarray) -> None:
        self.batches = iter(np.array_split(pixels, max(1, len(pixels) // 50)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"pixels": batch}


def runner(file: str, chunk: int) -> Run:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = peer.THREADS, 1
    options.log_severity_level = 3
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return peer.in_chunks(lambda pixels: session.run(None, {"pixels": pixels})[0], chunk)


def build(row: Row, task: Task) -> Network:
    file, settings = task.onnx_file(), "default graph optimizations"
    if row.bits == 8:
        source, file = file, str(pathlib.Path(file).with_name("onnxruntime_int8.onnx"))
        quantize_static(source, file, Pixels(task.calibration_pixels()), quant_format=QuantFormat.QDQ,
                        per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                        calibrate_method=CalibrationMethod.MinMax)
        settings = f"QDQ, per channel, u8 s8, MinMax on {task.calibration} images"
    return Network(settings, os.path.getsize(file), lambda chunk: runner(file, chunk))
