#!/usr/bin/env python3
"""The README's pictures, drawn from a small report.

    tests/scripts/plot_test.py SOURCE_FOLDER

What is drawn is checked where matplotlib is installed (scripts/peers/setup), the messages everywhere.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

SOURCE = os.path.abspath(sys.argv.pop(1))


def row(name, top1, seconds, file_bytes, file):
    return {"name": name, "top1": top1, "seconds": {"mean": seconds}, "file_bytes": file_bytes, "file": file}


CONTEXT = {"dataset": {"images": 10000}, "threads": 3}
REPORT = {"context": CONTEXT,
          "rows": [row("FP32", 0.94, 4.0, 1563000, "a"), row("int2", 0.885, 0.4, 108000, "b"),
                   row("Other int8", 0.938, 0.7, 430000, None), row("Other int2", 0.108, 3.8, 480000, None),
                   {**row("unmeasured", None, 1.0, 1, None), "seconds": None}]}


def epoch(number):
    return {"epoch": number, "train_loss": 1 / number, "train_top1": 0.5, "learning_rate": 0.1,
            "images_per_second": 1000.0}


class Plot(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        (self.folder / "report.json").write_text(json.dumps(REPORT))
        lines = [{"event": "start"}, epoch(1), epoch(2), epoch(2)]
        (self.folder / "64_200.log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def plot(self, *arguments, **environment):
        return subprocess.run([sys.executable, os.path.join(SOURCE, "scripts", "plot"), *arguments], check=False,
                              capture_output=True, text=True, cwd=self.folder, env={**os.environ, **environment})

    def refuses(self, expected, *arguments, **environment):
        done = self.plot(*arguments, **environment)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn(expected, done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)

    def test_wrong_input(self):
        self.refuses("missing.json cannot be read", "missing.json")
        self.refuses("is not a report of bench", "64_200.log.jsonl")
        (self.folder / "empty.json").write_text(json.dumps({**REPORT, "rows": []}))
        self.refuses("no row with accuracy and time", "empty.json")
        (self.folder / "64_200.log.jsonl").write_text("no log\n")
        self.refuses("is not a log of train", "report.json", "--logs", ".")

    def test_without_the_library(self):
        (self.folder / "matplotlib.py").write_text('raise ImportError("hidden", name="matplotlib")\n')
        self.refuses("scripts/peers/setup", "report.json", PYTHONPATH=".", NIBBLE_PEERS_VENV="nowhere")

    def test_draws_every_row_that_was_measured(self):
        first = self.plot("report.json", "--logs", ".", "--output", "first")
        if "is not installed" in first.stderr:
            self.skipTest("matplotlib is not installed (scripts/peers/setup installs it): nothing was drawn")
        self.assertEqual(first.returncode, 0, first.stderr)
        accuracy = (self.folder / "first" / "accuracy.svg").read_text()
        xml.etree.ElementTree.fromstring(accuracy)
        for name in ("FP32", "int2", "Other int8", "Other int2 (10.8 %)"):
            self.assertIn(f">{name}<", accuracy)
        self.assertIn("seconds for 10,000 images, 3 threads", accuracy)
        self.assertNotIn("unmeasured", accuracy)
        self.assertIn("learning rate", (self.folder / "first" / "training.svg").read_text())

        (self.folder / "occupied").write_text("")
        self.refuses("cannot be written", "report.json", "--output", "occupied/folder")
        self.plot("report.json", "--logs", ".", "--output", "second")
        self.assertEqual(accuracy, (self.folder / "second" / "accuracy.svg").read_text())


if __name__ == "__main__":
    unittest.main(verbosity=2)
