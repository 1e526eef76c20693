#!/usr/bin/env python3
"""Compares converted PyTorch networks with PyTorch itself.

    tests/scripts/from_pytorch_test.py SOURCE_FOLDER TRAIN_PROGRAM PRINT_LOGITS_PROGRAM

Runs in the peers' environment (.venv-peers) where there is one. Networks with random weights in all three namings;
with NIBBLE_FOREIGN_CHECKPOINT (akamaster's ResNet-20) and CIFAR10_ROOT also that one and its 9,173 correct test images.
"""
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import unittest

SOURCE, TRAIN, PRINT_LOGITS = map(os.path.abspath, sys.argv[1:4])
sys.path.insert(0, os.path.join(SOURCE, "scripts"))
from plain_files import restart_in_peers  # noqa: E402

try:
    import numpy  # noqa: F401
    import torch
    from torch import nn
    import torch.nn.functional as F
except ImportError:
    restart_in_peers()
    print("PyTorch is not installed (scripts/peers/setup installs it): the comparison with it was not made")
    sys.exit(77)  # CMakeLists.txt: skipped

spec = importlib.util.spec_from_file_location("from_pytorch", os.path.join(SOURCE, "scripts", "from_pytorch.py"))
from_pytorch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(from_pytorch)

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def generated_images(count):
    """SplitMix64 from state 1, the top byte of each output, red, green and blue plane of each image."""
    mask, state, values = (1 << 64) - 1, 1, []
    for _ in range(count * 3072):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        values.append((z ^ z >> 31) >> 56)
    return torch.tensor(values, dtype=torch.float64).view(count, 3, 32, 32)


IMAGES = generated_images(16)
INPUTS = (IMAGES / 255 - MEAN) / DEVIATION


class Block(nn.Module):
    """`names` are those of the two halves and of the shortcut."""

    def __init__(self, inputs, outputs, stride, shortcut, name):
        super().__init__()
        self.name, self.stride, self.pad = name, stride, (outputs - inputs) // 2
        first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        projection = None
        if shortcut and inputs != outputs:
            kernel = 3 if shortcut == "3x3" else 1
            projection = nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
                                       nn.BatchNorm2d(outputs))
        if name == "f":
            self.f = nn.Sequential(first[0], first[1], nn.ReLU(), second[0], second[1])
            if projection:
                self.c = projection
        else:
            self.conv1, self.bn1, self.conv2, self.bn2 = *first, *second
            if projection:
                setattr(self, name, projection)

    def forward(self, x):
        main = self.f(x) if self.name == "f" else self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        projection = getattr(self, "c" if self.name == "f" else self.name, None)
        if projection is not None:
            x = projection(x)
        elif self.pad:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(main + x)


def stage_blocks(inputs, outputs, stride, count, shortcut, name):
    return [Block(inputs if i == 0 else outputs, outputs, stride if i == 0 else 1, shortcut, name)
            for i in range(count)]


def sequential_network():
    blocks = (stage_blocks(16, 16, 1, 3, "3x3", "f") + stage_blocks(16, 32, 2, 4, "3x3", "f") +
              stage_blocks(32, 64, 2, 4, "3x3", "f"))
    return nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *blocks,
                         nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10))


class NamedNetwork(nn.Module):
    def __init__(self, n, shortcut, name, linear):
        super().__init__()
        self.conv1, self.bn1, self.linear_name = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), linear
        self.layer1 = nn.Sequential(*stage_blocks(16, 16, 1, n, shortcut, name))
        self.layer2 = nn.Sequential(*stage_blocks(16, 32, 2, n, shortcut, name))
        self.layer3 = nn.Sequential(*stage_blocks(32, 64, 2, n, shortcut, name))
        setattr(self, linear, nn.Linear(64, 10))

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return getattr(self, self.linear_name)(x.mean((2, 3)))


def randomize(network, seed):
    """Weights and statistics that are all different, of the size that training gives."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.9)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return network.eval()


class FromPytorch(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def convert(self, source, target="a.safetensors"):
        return subprocess.run([sys.executable, os.path.join(SOURCE, "scripts", "from_pytorch.py"), source,
                               self.path(target)], capture_output=True, text=True, check=False)

    def expect_equal_logits(self, network, source):
        done = self.convert(source)
        self.assertEqual(done.returncode, 0, done.stderr)
        with torch.no_grad():
            expected = network.double()(INPUTS)
        out = subprocess.run([PRINT_LOGITS, self.path("a.safetensors"), "16"], capture_output=True, text=True,
                             check=True).stdout
        logits = torch.tensor([[float(value) for value in line.split()] for line in out.splitlines()],
                              dtype=torch.float64)
        self.assertEqual(logits.shape, expected.shape)
        self.assertGreater(expected.std(), 0.1)
        self.assertLess((logits - expected).abs().max().item(), 1e-4)

    def test_sequential(self):
        network = randomize(sequential_network(), 1)
        torch.save({"state_dict": network.state_dict(), "epoch": 7}, self.path("a.pt"))
        self.assertIn("16.weight", network.state_dict())
        self.assertIn("6.c.0.weight", network.state_dict())
        self.expect_equal_logits(network, self.path("a.pt"))

    def test_akamaster(self):
        for n, shortcut in ((3, None), (5, "1x1")):
            network = randomize(NamedNetwork(n, shortcut, "shortcut", "linear"), n)
            state = {"module." + name: value for name, value in network.state_dict().items()}
            torch.save({"state_dict": state, "best_prec1": 90.0}, self.path("a.th"))
            self.expect_equal_logits(network, self.path("a.th"))

    def test_torchvision(self):
        network = randomize(NamedNetwork(3, "1x1", "downsample", "fc"), 9)
        torch.save(network.state_dict(), self.path("a.pt"))
        self.expect_equal_logits(network, self.path("a.pt"))

    def test_wrong_files(self):
        state = randomize(NamedNetwork(3, None, "shortcut", "linear"), 1).state_dict()
        without = {name: value for name, value in state.items() if name != "layer2.1.bn2.running_var"}
        extra = {**state, "layer2.1.conv3.weight": torch.zeros(1)}
        nan = {**state, "conv1.weight": torch.full((16, 3, 3, 3), float("nan"))}
        deep = randomize(NamedNetwork(4, None, "shortcut", "linear"), 1).state_dict()
        for content, expected in ((without, "tensor layer2.1.bn2.running_var is missing"),
                                  (extra, "tensor layer2.1.conv3.weight has no place"),
                                  (nan, "tensor conv1.weight has values that are not finite"),
                                  (deep, "no network known here"), ([1, 2], "expected a state dict")):
            torch.save(content, self.path("bad.pt"))
            done = self.convert(self.path("bad.pt"))
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn(expected, done.stderr)
            self.assertNotIn("Traceback", done.stderr)
        with open(self.path("bad.pt"), "wb") as file:
            file.write(b"no pickle")
        for source in ("bad.pt", "missing.pt"):
            done = self.convert(self.path(source))
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertFalse(os.path.exists(self.path("a.safetensors")))

    def test_checksum(self):
        # Of xxHash's own test vectors: the sanity buffer's prefixes, seed 0.
        value, data = 2654435761, bytearray()
        for _ in range(222):
            data.append(value >> 56 & 255)
            value = value * 11400714785074694797 & (1 << 64) - 1
        for length, expected in ((0, 0xEF46DB3751D8E999), (1, 0xE934A84ADB052768), (14, 0x8282DCC4994E35C8),
                                 (222, 0xB641AE8CB691C174)):
            self.assertEqual(from_pytorch.xxh64(bytes(data[:length])), expected, length)

    def test_foreign_checkpoint(self):
        foreign = os.environ.get("NIBBLE_FOREIGN_CHECKPOINT")
        if not foreign:
            print("NIBBLE_FOREIGN_CHECKPOINT is not set: the foreign checkpoint was not converted")
            return
        network = NamedNetwork(3, None, "shortcut", "linear").eval()
        state = torch.load(foreign, map_location="cpu", weights_only=True)["state_dict"]
        network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
        self.expect_equal_logits(network, foreign)
        if not os.environ.get("CIFAR10_ROOT"):
            print("CIFAR10_ROOT is not set: the foreign checkpoint was not evaluated")
            return
        out = subprocess.run([TRAIN, "-e", "--checkpoint-path", self.path("a.safetensors")], capture_output=True,
                             text=True, check=True, cwd=SOURCE).stdout
        correct = int(re.search(r"\((\d+) of 10000\)", out).group(1))
        self.assertLessEqual(abs(correct - 9173), 1, out)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
