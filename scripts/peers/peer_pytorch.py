"""PyTorch: as the reference system uses it, and with the best settings found."""
from __future__ import annotations

import io
import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
from torch import nn
import torch.ao.quantization as tq
from torch.ao.quantization import quantize_fx

import peer
from peer import Network, Row, Run, Task, checkpoints

NAME = "pytorch"
ROWS = [Row("PyTorch FP32", 32, False, (1024,)), Row("PyTorch int2", 2, False, (1024,)),
        Row("PyTorch int4", 4, False, (1024,)), Row("PyTorch int8", 8, False, (1024,)),
        Row("PyTorch fused int8", 8, True, (1024,)), Row("PyTorch FP32 best", 32, True),
        Row("PyTorch int8 best", 8, True)]
REFERENCE_IMAGES = 10
MEAN = torch.tensor(checkpoints.MEAN, dtype=torch.float32).view(1, 3, 1, 1)
DEVIATION = torch.tensor(checkpoints.DEVIATION, dtype=torch.float32).view(1, 3, 1, 1)

torch.set_num_threads(peer.THREADS)
torch.set_grad_enabled(False)


def versions() -> dict[str, str]:
    return {"PyTorch": torch.__version__}


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, projection_kernel: int | None, pads: bool) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
                               nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.c = nn.Identity()
        if projection_kernel:
            self.c = nn.Sequential(nn.Conv2d(inputs, outputs, projection_kernel, stride, projection_kernel // 2,
                                             bias=False), nn.BatchNorm2d(outputs))
        self.pad = (outputs - inputs) // 2 if pads else 0
        self.add, self.relu = nn.quantized.FloatFunctional(), nn.ReLU()
        self.fused_add = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = self.c(x)
        if self.pad:
            shortcut = nn.functional.pad(shortcut[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        if self.fused_add:
            return self.add.add_relu(self.f(x), shortcut)
        return self.relu(self.add.add(self.f(x), shortcut))


class ResNet(nn.Module):
    """Normalized pixels -> logits; stubs mark where eager quantization begins and ends."""

    def __init__(self, source: checkpoints.FloatNetwork) -> None:
        super().__init__()
        network, blocks = source.network, []
        for block in network.blocks:
            first = network.convolutions[block.conv1]
            kernel = None if block.projection is None else network.convolutions[block.projection].kernel
            blocks.append(Residual(first.inputs, first.outputs, first.stride, kernel, block.pads_channels))
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10))
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self._load(source)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dequant(self.last(self.blocks(self.first(self.quant(x)))))

    def _load(self, source: checkpoints.FloatNetwork) -> None:
        def tensor(name: str) -> torch.Tensor:
            return torch.from_numpy(source.tensors[name].copy())

        def load(name: str, convolution: nn.Module, norm: nn.Module) -> None:
            convolution.weight.copy_(tensor(f"{name}.weight").permute(0, 3, 1, 2))
            for ours, theirs in (("gamma", norm.weight), ("beta", norm.bias), ("running_mean", norm.running_mean),
                                 ("running_variance", norm.running_var)):
                theirs.copy_(tensor(f"{name}.{ours}"))

        load("conv1", self.first[0], self.first[1])
        for index, (block, part) in enumerate(zip(self.blocks, source.network.blocks)):
            load(f"blocks.{index}.conv1", block.f[0], block.f[1])
            load(f"blocks.{index}.conv2", block.f[3], block.f[4])
            if part.projection is not None:
                load(f"blocks.{index}.shortcut", block.c[0], block.c[1])
        self.last[2].weight.copy_(tensor("linear.weight"))
        self.last[2].bias.copy_(tensor("linear.bias"))


def normalized(pixels: np.ndarray, channels_last: bool) -> torch.Tensor:
    x = torch.from_numpy(pixels)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return x.float().sub_(255 * MEAN).mul_(1 / (255 * DEVIATION))


def runner(module: nn.Module, channels_last: bool) -> Run:
    def run(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(normalized(pixels, channels_last)).numpy()
    return run


class ImageByImage(torch.utils.data.Dataset):
    """What the reference system's transform does with each image."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.pixels[index]).float().div(255).sub_(MEAN[0]).div_(DEVIATION[0])


def data_loader(pixels: np.ndarray, batch: int) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(ImageByImage(pixels), batch_size=batch, num_workers=2)


def state_bytes(module: nn.Module) -> int:
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    return buffer.getbuffer().nbytes


def as_the_reference(settings: str, module: nn.Module) -> Network:
    def run_loaded(x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return module(x)
    return Network(f"as the reference system: {settings}, DataLoader with 2 workers", state_bytes(module),
                   lambda chunk: peer.in_chunks(runner(module, False), chunk), data_loader, run_loaded)


def narrowed_qconfig(bits: int) -> tq.QConfig:
    """int4 and int2 by narrowing the range that int8 values may take."""
    return tq.QConfig(
        activation=tq.MinMaxObserver.with_args(dtype=torch.quint8, quant_min=0, quant_max=2**bits - 1),
        weight=tq.MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric,
                                           quant_min=-2**(bits - 1), quant_max=2**(bits - 1) - 1))


def fuse(model: ResNet) -> None:
    tq.fuse_modules(model.first, [["0", "1", "2"]], inplace=True)
    for block in model.blocks:
        tq.fuse_modules(block.f, [["0", "1", "2"], ["3", "4"]], inplace=True)
        if isinstance(block.c, nn.Sequential):
            tq.fuse_modules(block.c, [["0", "1"]], inplace=True)
        block.fused_add = True


def reference_int(row: Row, task: Task) -> Network:
    model = ResNet(task.network())
    torch.backends.quantized.engine = "x86"
    if row.fused:
        fuse(model)
    model.qconfig = narrowed_qconfig(row.bits)
    tq.prepare(model, inplace=True)
    model(normalized(task.calibration_pixels(REFERENCE_IMAGES), False))
    tq.convert(model, inplace=True)
    how = "fused" if row.fused else "unfused"
    range_ = "" if row.bits == 8 else f", int8 narrowed to {row.bits} bits"
    return as_the_reference(f"int8 {how}{range_}, MinMax on {REFERENCE_IMAGES} images", model)


def frozen(module: nn.Module, chunk: int) -> nn.Module:
    example = normalized(np.zeros((chunk, 3, 32, 32), np.uint8), True)
    return torch.jit.freeze(torch.jit.trace(module.eval(), example, check_trace=False))


def script_bytes(script: torch.jit.ScriptModule) -> int:
    buffer = io.BytesIO()
    torch.jit.save(script, buffer)
    return buffer.getbuffer().nbytes


def traced(settings: str, module: nn.Module, optimize: bool) -> Network:
    def make(chunk: int) -> Run:
        script = frozen(module, chunk)
        if optimize:
            script = torch.jit.optimize_for_inference(script)
        run = runner(script, True)
        for _ in range(3):  # the profiling executor settles
            run(np.zeros((chunk, 3, 32, 32), np.uint8))
        return peer.in_chunks(run, chunk)
    return Network(settings, script_bytes(frozen(module, 64)), make)


def best_fp32(task: Task) -> Network:
    model = ResNet(task.network()).to(memory_format=torch.channels_last)
    return traced("channels_last, traced, frozen, optimize_for_inference", model, True)


def best_int8(task: Task) -> Network:
    torch.backends.quantized.engine = "x86"
    model = ResNet(task.network())
    model.quant = model.dequant = nn.Identity()
    for block in model.blocks:
        block.add = Sum()
    example = normalized(np.zeros((1, 3, 32, 32), np.uint8), True)
    mapping = tq.get_default_qconfig_mapping("x86")
    prepared = quantize_fx.prepare_fx(model, mapping, (example,))
    for part in np.array_split(task.calibration_pixels(), 10):
        prepared(normalized(part, True))
    quantized = quantize_fx.convert_fx(prepared)
    return traced(f"FX graph mode, x86, per channel, histogram on {task.calibration} images, fused, channels_last, "
                  "traced, frozen", quantized, False)


class Sum(nn.Module):
    """FX sees the addition itself and fuses the ReLU after it."""

    def add(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b


def build(row: Row, task: Task) -> Network:
    if row.name == "PyTorch FP32":
        return as_the_reference("FP32, eager, nchw", ResNet(task.network()))
    if row.name == "PyTorch FP32 best":
        return best_fp32(task)
    if row.name == "PyTorch int8 best":
        return best_int8(task)
    return reference_int(row, task)
