"""classify_images.py CLASSIFY CHKP: runs examples/classify on wrong and on real images."""

import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import zlib

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
RGB, RGBA = 2, 6  # colour types of PNG
IMAGES = 100


def png(width, height, rows, colour=RGB):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_images(root):
    """(label, rows) of the first test images; a record is 1 label, then 32x32 red, green, blue."""
    for folder in (root, root / "cifar-10-batches-bin"):
        if (folder / "test_batch.bin").is_file():
            records = (folder / "test_batch.bin").read_bytes()
    for i in range(IMAGES):
        label, *pixels = records[3073 * i : 3073 * (i + 1)]
        planes = [pixels[:1024], pixels[1024:2048], pixels[2048:]]
        yield label, [[planes[c][32 * y + x] for x in range(32) for c in range(3)] for y in range(32)]


def main():
    classify, chkp = sys.argv[1], pathlib.Path(sys.argv[2])

    def run(*arguments):
        return subprocess.run([classify, *map(str, arguments)], capture_output=True, text=True)

    def refused(words, *arguments):
        result = run(*arguments)
        assert result.returncode == 2 and not result.stdout, result
        assert words in result.stderr and result.stderr.count("\n") == 1, result

    with tempfile.TemporaryDirectory() as folder:
        image = pathlib.Path(folder) / "image.png"
        missing = pathlib.Path(folder) / "missing.safetensors"
        image.write_bytes(png(32, 32, [[0] * 96] * 32))
        refused("Usage:", image)
        refused("missing.safetensors", missing, image)

        networks = sorted(chkp.glob("*_int[0-9]*.safetensors"))
        networks = [network for network in networks if "unfused" not in network.name]
        if not networks:
            print("chkp/ holds no quantized network: no image classified")
            return
        network = networks[0]
        refused("is 33x32 pixels", network, *write(image, png(33, 32, [[0] * 99] * 32)))
        refused("transparent", network, *write(image, png(32, 32, [[0] * 128] * 32, RGBA)))
        refused("image.png", network, *write(image, b"no image"))

        if "CIFAR10_ROOT" not in os.environ:
            print("CIFAR10_ROOT is not set: no real image classified")
            return
        for network in networks:
            right = 0
            for label, rows in test_images(pathlib.Path(os.environ["CIFAR10_ROOT"])):
                result = run(network, *write(image, png(32, 32, rows)))
                assert result.returncode == 0, result
                lines = [line.split() for line in result.stdout.splitlines()]
                shares = [float(share) for _, share, _ in lines]
                assert len(lines) == 3 and shares == sorted(shares, reverse=True) and sum(shares) <= 100.11, result
                right += lines[0][0] == CLASSES[label]
            print(f"{network.name}: {right} of {IMAGES} right")
            # Guessing gets 10; networks in chkp/ are expected to get 85 and more. Nearest rounding to 2 bits has
            # 77.95 % on all test images, and a sample of 100 deviates by 4.1: four deviations below it.
            assert right >= (61 if "_int2" in network.name else 75), network


def write(path, content):
    path.write_bytes(content)
    return (path,)


main()
