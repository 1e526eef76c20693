"""One engine in a process of its own, for scripts/compare: commands on stdin, one JSON line each on stdout.

    worker.py MODULE CHECKPOINT FOLDER IMAGES BATCH CALIBRATION
    {"do": "versions"}  {"do": "prepare", "row"}  {"do": "round", "row"}  {"do": "latency", "row", "images"}
"""
from __future__ import annotations

import importlib
import json
import os
import pathlib
import sys
import traceback

import peer
from peer import checkpoints


class Worker:
    def __init__(self, module: str, checkpoint: str, folder: str, images: str, batch: str, calibration: str) -> None:
        self.engine = importlib.import_module(module)
        self.task = peer.Task(checkpoint, pathlib.Path(folder), int(calibration))
        pixels, labels = checkpoints.test_images()
        self.pixels, self.labels, self.batch = pixels[:int(images)], labels[:int(images)], int(batch)
        self.rows = {row.name: row for row in self.engine.ROWS}
        self.timed: dict[str, peer.Timed] = {}

    def versions(self, _: dict) -> dict:
        return {"versions": self.engine.versions()}

    def prepare(self, command: dict) -> dict:
        """Builds, classifies all images; the figures that do not change."""
        row = self.rows[command["row"]]
        network = self.engine.build(row, self.task)
        timed = self.timed[row.name] = peer.Timed(row, network, self.pixels, self.batch)
        found = timed.classes()
        cut = f"batches cut into {timed.chunk}" if timed.chunk < self.batch else "batches whole"
        return {"right": int((found == self.labels).sum()), "classes": found.tolist(), "file_bytes": network.file_bytes,
                "settings": f"{network.settings}; {cut}; {peer.THREADS} threads"}

    def round(self, command: dict) -> dict:
        timed = self.timed[command["row"]]
        return {"seconds": timed.seconds(), "seconds_without_loader": timed.seconds_without_loader()}

    def latency(self, command: dict) -> dict:
        return {"latencies": self.timed[command["row"]].latencies(command["images"])}


def main() -> int:
    # Engines print to standard output as they like; the parent's line is another descriptor.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(*sys.argv[1:])
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = {"versions": worker.versions, "prepare": worker.prepare, "round": worker.round,
                      "latency": worker.latency}[command["do"]](command)
        except Exception as error:  # an engine may raise anything; the row says what
            traceback.print_exc()
            answer = {"error": (str(error).strip().splitlines() or [type(error).__name__])[0][:200]}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
