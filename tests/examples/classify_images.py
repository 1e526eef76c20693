"""classify_images.py CLASSIFY PRINT_LOGITS CHKP: runs examples/classify on wrong images, and compares its logits with
those that the build's own program computes for all images at once."""

import math
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import zlib

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
RGB, RGBA = 2, 6  # colour types of PNG
IMAGES = 10


def png(width, height, rows, colour=RGB):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def rows_of(record):
    """The rows of a record's 32x32 red, green and blue planes, as a PNG has them."""
    planes = [record[:1024], record[1024:2048], record[2048:]]
    return [[planes[c][32 * y + x] for x in range(32) for c in range(3)] for y in range(32)]


def generated_images():
    """SplitMix64 from state 1, each byte the top 8 bits of the next output."""
    state, mask = 1, (1 << 64) - 1

    def byte():
        nonlocal state
        state = (state + 0x9E3779B97F4A7C15) & mask
        value = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        return (value ^ (value >> 31)) >> 56

    for _ in range(IMAGES):
        yield rows_of([byte() for _ in range(3072)])


def test_images(root):
    """The first test images; a record is 1 label, then the planes."""
    for folder in (root, root / "cifar-10-batches-bin"):
        if (folder / "test_batch.bin").is_file():
            records = (folder / "test_batch.bin").read_bytes()
    for i in range(IMAGES):
        yield rows_of(records[3073 * i + 1 : 3073 * (i + 1)])


def main():
    classify, print_logits, chkp = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])

    def run(*arguments):
        return subprocess.run([classify, *map(str, arguments)], capture_output=True, text=True)

    def refused(words, *arguments):
        result = run(*arguments)
        assert result.returncode == 2 and not result.stdout, result
        assert words in result.stderr and result.stderr.count("\n") == 1, result

    def compare(network, logits, image):
        """What is printed has all digits of a float32, so equal text is equal bits."""
        printed = run(network, image, "--logits")
        assert printed.returncode == 0, printed
        assert [line.split() for line in printed.stdout.splitlines()] == list(map(list, zip(CLASSES, logits)))
        likeliest = run(network, image)
        assert likeliest.returncode == 0, likeliest
        names = [line.split()[0] for line in likeliest.stdout.splitlines()]
        shares = [float(line.split()[1]) for line in likeliest.stdout.splitlines()]
        values = list(map(float, logits))
        order = sorted(range(10), key=lambda label: -values[label])[:3]
        assert names == [CLASSES[label] for label in order], (likeliest, logits)
        total = sum(math.exp(value - max(values)) for value in values)
        for label, share in zip(order, shares):
            assert abs(share - 100 * math.exp(values[label] - max(values)) / total) < 0.051, (likeliest, logits)

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

        sets = [("generated", list(generated_images()), [])]
        if "CIFAR10_ROOT" in os.environ:
            sets.append(("test", list(test_images(pathlib.Path(os.environ["CIFAR10_ROOT"]))), ["--test-images"]))
        else:
            print("CIFAR10_ROOT is not set: no real image classified")
        for network in networks:
            for kind, images, options in sets:
                expected = subprocess.run(
                    [print_logits, network, str(IMAGES), *options], check=True, capture_output=True, text=True
                ).stdout.splitlines()
                assert len(expected) == IMAGES, expected
                for rows, line in zip(images, expected):
                    compare(network, line.split(), *write(image, png(32, 32, rows)))
                print(f"{network.name}: the logits of {IMAGES} {kind} images are equal")


def write(path, content):
    path.write_bytes(content)
    return (path,)


main()
