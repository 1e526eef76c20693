"""What every engine's module has, and the way it is timed.

A module is called by its engine and has
    NAME       the engine as reports spell it
    versions() package -> version
    ROWS       the rows it can give
    build(row, task) -> Network
It imports its engine at the top, so that one that is not installed is an ImportError.
"""
from __future__ import annotations

import dataclasses
import pathlib
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import checkpoints  # noqa: E402

THREADS = 2
LEAST_TURNS, LEAST_SECONDS = 3, 1.0  # of each chunk, before one is chosen
Run = Callable[[np.ndarray], np.ndarray]  # u8 pixels [n, 3, 32, 32] -> float logits [n, 10]


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    bits: int  # 32, 16 (BF16), 8, or as the engine calls it
    fused: bool
    chunks: tuple[int, ...] = (16, 64, 256, 1024)  # sizes into which a batch may be cut


@dataclasses.dataclass
class Task:
    checkpoint: str
    folder: pathlib.Path  # for files of this engine
    calibration: int  # images

    def network(self) -> checkpoints.FloatNetwork:
        return checkpoints.read_float(self.checkpoint)

    def calibration_pixels(self, count: int | None = None) -> np.ndarray:
        return checkpoints.calibration_images(count or self.calibration)

    def onnx_file(self) -> str:
        """Our FP32 network as ONNX, batch normalization folded."""
        import to_onnx
        path = self.folder / "fp32.onnx"
        path.write_bytes(to_onnx.convert(self.checkpoint).SerializeToString())
        return str(path)


@dataclasses.dataclass
class Network:
    settings: str
    file_bytes: int | None
    make: Callable[[int], Run]  # for chunks of this size; the function that it returns takes any number of images
    loader: Callable[[np.ndarray, int], Iterable[np.ndarray]] | None = None  # in place of prefetched()
    run_loaded: Run | None = None  # for what that loader gives


def in_chunks(run: Run, chunk: int) -> Run:
    def run_all(pixels: np.ndarray) -> np.ndarray:
        if len(pixels) <= chunk:
            return run(pixels)
        return np.concatenate([run(pixels[i:i + chunk]) for i in range(0, len(pixels), chunk)])
    return run_all


def padded(run: Run, chunk: int) -> Run:
    """For a graph that takes exactly `chunk` images."""
    def run_some(pixels: np.ndarray) -> np.ndarray:
        missing = chunk - len(pixels)
        if missing:
            pixels = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), pixels.dtype)])
        return run(pixels)[:chunk - missing]
    return run_some


def prefetched(pixels: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    """Batches copied by a thread of their own, two ahead: the work of our loader."""
    ready: queue.Queue = queue.Queue(2)

    def copy() -> None:
        for i in range(0, len(pixels), batch):
            ready.put(pixels[i:i + batch].copy())
        ready.put(None)
    threading.Thread(target=copy, daemon=True).start()
    while (item := ready.get()) is not None:
        yield item


class Timed:
    """A network with the best chunk of its row, measured by the rules that `bench` has."""

    def __init__(self, row: Row, network: Network, pixels: np.ndarray, batch: int) -> None:
        self.network, self.pixels, self.batch = network, pixels, batch
        self.chunk, self.run = self._best_chunk(row.chunks)
        self.run_one = network.make(1)

    def _best_chunk(self, chunks: tuple[int, ...]) -> tuple[int, Run]:
        """The one with the most images a second, by the best of its turns on the chunk or a quarter of a batch. All take
        turns, at least three and at least a second each: what happens beside one of them must not choose the row."""
        runs = [self.network.make(chunk) for chunk in chunks]
        if len(chunks) == 1:
            return chunks[0], runs[0]
        batches = [self.pixels[:min(self.batch, max(chunk, self.batch // 4))] for chunk in chunks]
        turns: list[list[float]] = [[] for _ in chunks]
        for run, batch in zip(runs, batches):
            run(batch)
        while len(turns[0]) < LEAST_TURNS or min(map(sum, turns)) < LEAST_SECONDS:
            for run, batch, seconds in zip(runs, batches, turns):
                start = time.perf_counter()
                run(batch)
                seconds.append(time.perf_counter() - start)
        best = min(range(len(chunks)), key=lambda i: min(turns[i]) / len(batches[i]))
        return chunks[best], runs[best]

    def classes(self) -> np.ndarray:
        """The lowest index of the largest logit."""
        return np.concatenate([self.run(self.pixels[i:i + self.batch]).argmax(1)
                               for i in range(0, len(self.pixels), self.batch)])

    def seconds(self) -> float:
        start = time.perf_counter()
        loader = self.network.loader or prefetched
        run = self.network.run_loaded or self.run
        for batch in loader(self.pixels, self.batch):
            run(batch)
        return time.perf_counter() - start

    def seconds_without_loader(self) -> float:
        start = time.perf_counter()
        for i in range(0, len(self.pixels), self.batch):
            self.run(self.pixels[i:i + self.batch])
        return time.perf_counter() - start

    def latencies(self, images: int) -> list[float]:
        """The second time that the images come, as `bench` has it: the first time the loader is inside."""
        images = min(images, len(self.pixels))
        for i in range(images):
            self.run_one(self.pixels[i:i + 1])
        seconds = []
        for i in range(images):
            start = time.perf_counter()
            self.run_one(self.pixels[i:i + 1])
            seconds.append(time.perf_counter() - start)
        return seconds
