#!/usr/bin/env python3
"""scripts/compare_training: what it says when something is missing, and its table beside a stand-in for PyTorch.

    tests/scripts/compare_training_test.py SOURCE_FOLDER TRAIN_PROGRAM
"""
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

SOURCE, TRAIN = map(os.path.abspath, sys.argv[1:3])


class CompareTraining(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        python = pathlib.Path(folder.name, "bin", "python")
        python.parent.mkdir()
        python.write_text("#!/bin/sh\necho 2.5\n")  # images a second
        python.chmod(0o755)
        self.environment = {**os.environ, "NIBBLE_PEERS_VENV": folder.name}

    def run_script(self, *options, **environment):
        return subprocess.run([sys.executable, os.path.join(SOURCE, "scripts", "compare_training"), *options],
                              capture_output=True, text=True, check=False, timeout=300,
                              env={**self.environment, **environment})

    def test_refused(self):
        cases = [([], {"NIBBLE_PEERS_VENV": "/nonexistent"}, "run scripts/peers/setup"),
                 (["--train", "/nonexistent"], {}, "build it"),
                 (["--train", TRAIN], {"CIFAR10_ROOT": "/nonexistent"}, "CIFAR-10 is not in /nonexistent")]
        for options, environment, expected in cases:
            done = self.run_script(*options, **environment)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn(expected, done.stderr)
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)

    def test_table(self):
        if not os.environ.get("CIFAR10_ROOT"):
            self.skipTest("CIFAR10_ROOT is not set")
        done = self.run_script("--train", TRAIN, "--turns", "1", "--seconds", "8")
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
        self.assertEqual([row[0].split(",")[0] for row in rows], ["FP32", "BF16"])
        for row in rows:
            images = float(row[1].split()[0].replace(",", ""))
            self.assertGreater(images, 0)
            self.assertEqual(row[2].split()[0], "2")
            self.assertAlmostEqual(float(row[3]), images / 2.5, delta=0.5)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
