#!/usr/bin/env python3
"""Turns a PyTorch state dict of a CIFAR ResNet into a checkpoint of Nibble.

    scripts/from_pytorch.py resnet20.th chkp/resnet20.safetensors
    build/release/train -e --checkpoint-path chkp/resnet20.safetensors

Three ways of naming are understood, each with or without "module." in front and "state_dict" around:
akamaster's (layer1.0.conv1.weight, shortcut.0.weight, linear.weight), torchvision's (downsample.0.weight, fc.weight)
and a plain nn.Sequential (0.weight, 1.weight, 3.f.0.weight, 6.c.0.weight, 16.weight). Needs torch and numpy.
"""
import argparse
import json
import os
import pathlib
import re
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from plain_files import WrongInput, replace_file  # noqa: E402

MASK = (1 << 64) - 1
PRIMES = (11400714785074694791, 14029467366897019727, 1609587929392839161, 9650029242287828579, 2870177450012600261)


def xxh64(data):
    """XXH64 with seed 0 (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md)."""
    try:
        import xxhash
        return xxhash.xxh64_intdigest(data)
    except ImportError:
        pass
    p1, p2, p3, p4, p5 = PRIMES

    def rotate(x, r):
        return (x << r | x >> (64 - r)) & MASK

    def mix(accumulator, lane):
        return rotate((accumulator + lane * p2) & MASK, 31) * p1 & MASK

    position = 0
    if len(data) >= 32:
        a, b, c, d = (p1 + p2) & MASK, p2, 0, -p1 & MASK
        position = len(data) // 32 * 32
        for w, x, y, z in struct.iter_unpack("<4Q", data[:position]):
            a, b, c, d = mix(a, w), mix(b, x), mix(c, y), mix(d, z)
        result = (rotate(a, 1) + rotate(b, 7) + rotate(c, 12) + rotate(d, 18)) & MASK
        for lane in (a, b, c, d):
            result = ((result ^ mix(0, lane)) * p1 + p4) & MASK
    else:
        result = p5
    result = (result + len(data)) & MASK
    while position + 8 <= len(data):
        lane, = struct.unpack_from("<Q", data, position)
        result = (rotate(result ^ mix(0, lane), 27) * p1 + p4) & MASK
        position += 8
    if position + 4 <= len(data):
        lane, = struct.unpack_from("<I", data, position)
        result = (rotate(result ^ lane * p1 & MASK, 23) * p2 + p3) & MASK
        position += 4
    for byte in data[position:]:
        result = rotate(result ^ byte * p5 & MASK, 11) * p1 & MASK
    result = (result ^ result >> 33) * p2 & MASK
    result = (result ^ result >> 29) * p3 & MASK
    return result ^ result >> 32


def safetensors(tensors, metadata):
    """The bytes of a file. tensors: name -> (shape, little-endian float32 bytes)."""
    header = {"__metadata__": dict(sorted({**metadata, "xxh64": "0" * 16}.items()))}
    end = 0
    for name in sorted(tensors):
        shape, data = tensors[name]
        header[name] = {"data_offsets": [end, end + len(data)], "dtype": "F32", "shape": shape}
        end += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = struct.pack("<Q", len(text)) + text + b"".join(tensors[name][1] for name in sorted(tensors))
    return data.replace(b'"xxh64":"' + b"0" * 16, b'"xxh64":"%016x' % xxh64(data), 1)


def akamaster_layers(names):
    """(convolution, batch normalization, our name) of each layer, for akamaster's and torchvision's naming."""
    yield "conv1", "bn1", "conv1"
    blocks = {tuple(map(int, match.groups())) for match in
              (re.match(r"layer(\d+)\.(\d+)\.", name) for name in names) if match}
    for index, (stage, block) in enumerate(sorted(blocks)):
        source, target = f"layer{stage}.{block}", f"blocks.{index}"
        yield f"{source}.conv1", f"{source}.bn1", f"{target}.conv1"
        yield f"{source}.conv2", f"{source}.bn2", f"{target}.conv2"
        for shortcut in ("shortcut", "downsample"):
            if f"{source}.{shortcut}.0.weight" in names:
                yield f"{source}.{shortcut}.0", f"{source}.{shortcut}.1", f"{target}.shortcut"


def sequential_layers(names):
    """The same for a plain nn.Sequential."""
    yield "0", "1", "conv1"
    blocks = {int(match.group(1)) for match in (re.match(r"(\d+)\.f\.", name) for name in names) if match}
    for index, block in enumerate(sorted(blocks)):
        yield f"{block}.f.0", f"{block}.f.1", f"blocks.{index}.conv1"
        yield f"{block}.f.3", f"{block}.f.4", f"blocks.{index}.conv2"
        if f"{block}.c.0.weight" in names:
            yield f"{block}.c.0", f"{block}.c.1", f"blocks.{index}.shortcut"


def find_linear(names):
    numbered = [name[:-len(".weight")] for name in names
                if re.fullmatch(r"\d+\.weight", name) and name[:-len("weight")] + "running_mean" not in names
                and name != "0.weight"]
    for name in ["linear", "fc", *numbered]:
        if f"{name}.weight" in names:
            return name
    raise WrongInput("there is no linear layer (linear.weight, fc.weight or <number>.weight)")


def expected_shapes(variant, stages, projection_kernel):
    """Our name -> [output, rows, columns, input] of each convolution."""
    shapes = {"conv1": [16, 3, 3, 3]}
    channels, index = 16, 0
    for stage_channels, blocks in zip((16, 32, 64), stages):
        for block in range(blocks):
            shapes[f"blocks.{index}.conv1"] = [stage_channels, 3, 3, channels]
            shapes[f"blocks.{index}.conv2"] = [stage_channels, 3, 3, stage_channels]
            if channels != stage_channels and projection_kernel:
                shapes[f"blocks.{index}.shortcut"] = [stage_channels, projection_kernel, projection_kernel, channels]
            channels = stage_channels
            index += 1
    return shapes


def recognize(shapes):
    """Metadata of the network whose convolutions have these shapes."""
    networks = [(dict(variant="resnet_344", depth="24", shortcut="B"), (3, 4, 4), 3)]
    for n in (3, 5, 7, 9):
        networks.append((dict(variant="he", depth=str(6 * n + 2), shortcut="A"), (n, n, n), 0))
        networks.append((dict(variant="he", depth=str(6 * n + 2), shortcut="B"), (n, n, n), 1))
    for metadata, stages, projection_kernel in networks:
        if expected_shapes(metadata["variant"], stages, projection_kernel) == shapes:
            return metadata
    raise WrongInput(f"its {len(shapes)} convolutions are those of no network known here "
                     "(resnet_344; he with depth 20, 32, 44 or 56 and shortcut A or B)")


def convert(state):
    """State dict of tensors -> (tensors, metadata) for safetensors()."""
    import torch
    names = {}
    for name, value in state.items():
        name = name.removeprefix("module.")
        if torch.is_tensor(value) and not name.endswith("num_batches_tracked"):
            names[name] = value.detach().to(torch.float32)
    used = set()

    def take(name, dimensions):
        if name not in names:
            raise WrongInput(f"tensor {name} is missing")
        if names[name].dim() != dimensions:
            raise WrongInput(f"tensor {name} has {names[name].dim()} dimensions, expected {dimensions}")
        if not torch.isfinite(names[name]).all():
            raise WrongInput(f"tensor {name} has values that are not finite")
        used.add(name)
        return names[name]

    def entry(tensor):
        tensor = tensor.contiguous()
        return list(tensor.shape), tensor.numpy().astype("<f4").tobytes()

    layers = sequential_layers(names) if "0.weight" in names else akamaster_layers(names)
    tensors, shapes = {}, {}
    for convolution, normalization, ours in layers:
        weight = take(convolution + ".weight", 4).permute(0, 2, 3, 1)
        shapes[ours] = list(weight.shape)
        tensors[ours + ".weight"] = entry(weight)
        for theirs, suffix in (("weight", "gamma"), ("bias", "beta"), ("running_mean", "running_mean"),
                               ("running_var", "running_variance")):
            values = take(f"{normalization}.{theirs}", 1)
            if values.shape[0] != weight.shape[0]:
                raise WrongInput(f"tensor {normalization}.{theirs} has {values.shape[0]} values, "
                                 f"expected {weight.shape[0]}")
            tensors[f"{ours}.{suffix}"] = entry(values)
    metadata = recognize(shapes)
    linear = find_linear(names)
    for suffix, shape in (("weight", (10, 64)), ("bias", (10,))):
        values = take(f"{linear}.{suffix}", len(shape))
        if tuple(values.shape) != shape:
            raise WrongInput(f"tensor {linear}.{suffix} has the shape {tuple(values.shape)}, expected {shape}")
        tensors[f"linear.{suffix}"] = entry(values)
    left = sorted(set(names) - used)
    if left:
        raise WrongInput(f"tensor {left[0]} has no place in the network" +
                         (f", nor have {len(left) - 1} others" if len(left) > 1 else ""))
    return tensors, {"format": "nibble-float-1", **metadata}


def load(path):
    try:
        import numpy  # noqa: F401, for Tensor.numpy()
        import torch
    except ImportError as missing:
        raise WrongInput(f"{missing.name} is needed to read PyTorch's files: pip install torch numpy") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WrongInput("there is no such file") from None
    except Exception as error:  # torch raises many kinds for a damaged file
        raise WrongInput(f"PyTorch cannot read it ({str(error).splitlines()[0]})") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise WrongInput(f"it holds a {type(state).__name__}, expected a state dict")
    return state


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a file written by torch.save")
    parser.add_argument("target", help="the checkpoint to write, *.safetensors")
    options = parser.parse_args()
    try:
        tensors, metadata = convert(load(options.source))
    except WrongInput as error:
        sys.exit(print(f"from_pytorch.py: {options.source}: {error}", file=sys.stderr) or 2)
    metadata["source"] = os.path.basename(options.source)
    try:
        replace_file(options.target, safetensors(tensors, metadata))
    except OSError as error:
        sys.exit(f"from_pytorch.py: {options.target} cannot be written ({error.strerror})")
    print(f"{options.target}: {metadata['variant']}, {metadata['depth']} layers, shortcut {metadata['shortcut']}")


if __name__ == "__main__":
    main()
