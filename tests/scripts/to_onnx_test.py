#!/usr/bin/env python3
"""The ONNX models of this project's checkpoints, checked by onnx and run by ONNX Runtime.

    tests/scripts/to_onnx_test.py SOURCE_FOLDER BENCH_PROGRAM

Runs in the peers' environment (.venv-peers) where there is one. With CIFAR10_ROOT the accuracies are compared too.
"""
import json
import os
import subprocess
import sys
import tempfile
import unittest

SOURCE, BENCH = map(os.path.abspath, sys.argv[1:3])
sys.path.insert(0, os.path.join(SOURCE, "scripts"))
from plain_files import restart_in_peers  # noqa: E402

try:
    import numpy as np
    import onnx
    import onnxruntime
except ImportError as missing:
    restart_in_peers()
    print(f"{missing.name} is not installed (scripts/peers/setup installs it): the ONNX models were not checked")
    sys.exit(77)  # CMakeLists.txt: skipped

import checkpoints  # noqa: E402
import to_onnx  # noqa: E402

WIDTHS = {"": 32, "_int8": 8, "_int4": 4, "_int2": 2, "_int2a4": 2, "_mixed": None}


def run_script(source, target):
    return subprocess.run([sys.executable, os.path.join(SOURCE, "scripts", "to_onnx.py"), source, target],
                          capture_output=True, text=True, check=False)


def checkpoint(suffix):
    return os.path.join(SOURCE, "chkp", f"64_200{suffix}.safetensors")


def classes(model, pixels, optimized):
    """Not optimized, ONNX Runtime computes what the model says. Optimized, it has integer kernels of its own, with
    roundings of their own (biases become integers), which differ from CPU to CPU."""
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 2, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return np.concatenate([session.run(None, {"pixels": pixels[i:i + 100]})[0].argmax(1)
                           for i in range(0, len(pixels), 100)])


def bench_top1(suffix, images):
    out = subprocess.run([BENCH, "--report", "json", "--models", checkpoint(suffix), "--runs", "1", "--images",
                          str(images), "--threads", "2"], capture_output=True, text=True, check=True, cwd=SOURCE)
    return json.loads(out.stdout)["rows"][0]["top1"]


class ToOnnx(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.models = {}
        for suffix in WIDTHS:
            path = os.path.join(cls.folder.name, f"m{suffix}.onnx")
            done = run_script(checkpoint(suffix), path)
            assert done.returncode == 0, done.stderr
            cls.models[suffix] = onnx.load(path)

    def test_checked(self):
        for model in self.models.values():
            onnx.checker.check_model(model, full_check=True)

    def test_weights_have_their_width(self):
        kinds = {8: onnx.TensorProto.INT8, 4: onnx.TensorProto.INT4, 2: onnx.TensorProto.UINT2}
        for suffix, bits in WIDTHS.items():
            if bits == 32:
                continue
            tensors = {tensor.name: tensor for tensor in self.models[suffix].graph.initializer}
            source = checkpoints.read_quantized(checkpoint(suffix))
            names = [convolution.name for convolution in source.network.convolutions] + ["linear"]
            for name, layer in zip(names, source.layers):
                tensor = tensors[name + ".weight"]
                if bits is not None:
                    self.assertEqual(layer.bits, 8 if name in ("conv1", "linear") else bits)
                self.assertEqual(tensor.data_type, kinds[layer.bits], name)
                found = onnx.numpy_helper.to_array(tensor).astype(np.int32)
                np.testing.assert_array_equal(found, layer.codes if layer.bits == 2 else layer.weight)
                self.assertEqual(len(tensor.raw_data), -(-layer.weight.size * layer.bits // 8))

    def test_accuracy(self):
        if not os.environ.get("CIFAR10_ROOT"):
            print("CIFAR10_ROOT is not set: the accuracy of the ONNX models was not compared")
            return
        pixels, labels = checkpoints.test_images()
        for suffix, images in (("", 1000), ("_int8", 10000), ("_int4", 1000), ("_int2", 1000),
                               ("_int2a4", 1000), ("_mixed", 1000)):
            ours = bench_top1(suffix, images)
            found = (classes(self.models[suffix], pixels[:images], False) == labels[:images]).mean()
            self.assertLessEqual(abs(found - ours), 0.001 + 1e-9, suffix)
            if suffix == "_int8":
                found = (classes(self.models[suffix], pixels[:images], True) == labels[:images]).mean()
                self.assertLessEqual(abs(found - ours), 0.002 + 1e-9, "optimized")

    def test_mixed_widths_are_those_of_the_file(self):
        found = {layer.bits for layer in checkpoints.read_quantized(checkpoint("_mixed")).layers[1:-1]}
        self.assertGreater(len(found), 1)
        self.assertEqual(self.models["_mixed"].opset_import[0].version, to_onnx.OPSETS[min(found)][0])

    def test_refused(self):
        target = os.path.join(self.folder.name, "refused.onnx")
        for source, code, expected in ((checkpoint("_int16"), 2, "16-bit network has no ONNX form"),
                                       (checkpoint("_int8_unfused"), 2, "the format is 'nibble-unfused-1'"),
                                       (checkpoint("_none"), 2, "cannot be read"), (__file__, 2, "not a safetensors")):
            done = run_script(source, target)
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertIn(expected, done.stderr)
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        done = run_script(checkpoint("_int8"), os.path.join(self.folder.name, "none", "a.onnx"))
        self.assertEqual((done.returncode, len(done.stderr.splitlines())), (1, 1), done.stderr)
        self.assertFalse(os.path.exists(target))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
