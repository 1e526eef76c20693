#!/usr/bin/env python3
"""scripts/compare: what it says when something is missing, and the file that it writes.

    tests/scripts/compare_test.py SOURCE_FOLDER BENCH_PROGRAM

The other engines are taken as not installed, so this needs none of them.
"""
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import unittest

SOURCE, BENCH = map(os.path.abspath, sys.argv[1:3])
COMPARE = os.path.join(SOURCE, "scripts", "compare")
COMPARE_RUNS = os.path.join(SOURCE, "scripts", "compare_runs")
NO_PEERS = {**os.environ, "NIBBLE_PEERS_VENV": "/nonexistent"}


class Compare(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.file = pathlib.Path(self.folder.name, "peers.json")

    def command(self, *options):
        return [sys.executable, COMPARE, "--bench", BENCH, "--output", str(self.file), *options]

    def compare(self, *options, environment=None):
        return subprocess.run(self.command(*options), capture_output=True, text=True, check=False,
                              env=environment or NO_PEERS, timeout=300)

    def need_data(self):
        if not os.environ.get("CIFAR10_ROOT"):
            self.skipTest("CIFAR10_ROOT is not set")

    def test_refused(self):
        without_data = {**NO_PEERS, "CIFAR10_ROOT": self.folder.name}
        cases = [(["--bench", "/nonexistent"], "build it", NO_PEERS),
                 (["--checkpoint", "/nonexistent"], "name an FP32 checkpoint", NO_PEERS),
                 (["--output", "/nonexistent/peers.json"], "cannot be written", NO_PEERS),
                 ([], "CIFAR-10 is not in", without_data)]
        if os.environ.get("CIFAR10_ROOT"):
            cases.append((["--rows", "int3"], "there is no row 'int3'", NO_PEERS))
        for options, expected, environment in cases:
            done = self.compare(*options, environment=environment)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn(expected, done.stderr)
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertFalse(self.file.exists())

    def test_file(self):
        self.need_data()
        done = self.compare("--rows", "int2,pytorch fp32,mnn", "--images", "64", "--runs", "2", "--batch", "32")
        self.assertEqual(done.returncode, 0, done.stderr)
        result = json.loads(self.file.read_text())
        self.assertTrue(result["complete"])
        self.assertEqual(result["settings"]["rounds"], 2)
        self.assertEqual([row["name"] for row in result["ours"]], ["int2"])
        self.assertEqual(len(result["ours"][0]["seconds"]["runs"]), 2)
        self.assertGreater(result["ours"][0]["latency_seconds"]["median"], 0)
        self.assertEqual(len(result["ours"][0]["latency_seconds"]["means"]), 16)
        self.assertEqual([row["name"] for row in result["rows"]], ["PyTorch FP32", "MNN FP32", "MNN int8"])
        for row in result["rows"]:
            self.assertNotIn("seconds", row)
            self.assertIn("not installed", row["note"])
        self.assertIn("not installed; scripts/peers/setup installs it", done.stdout)
        report = subprocess.run([BENCH, "--report", "json", "--peers", str(self.file), "--images", "64", "--runs", "1",
                                 "--batch", "32"], capture_output=True, text=True, check=True, cwd=SOURCE)
        rows = {row["name"]: row for row in json.loads(report.stdout)["rows"]}
        self.assertIn("not installed", rows["MNN FP32"]["note"])
        self.assertIsNone(rows["MNN FP32"]["seconds"])

    def test_name_of_several_rows(self):
        self.need_data()
        done = self.compare("--ours", "64_200_int8", "--rows", "ours", "--images", "64", "--runs", "1", "--batch", "32")
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn("64_200_int8: this is 2 rows (int8 fused, int8); name one of them", done.stderr)

    def test_ratio_of_common_turns(self):
        loader = importlib.machinery.SourceFileLoader("compare", COMPARE)
        module = importlib.util.module_from_spec(importlib.util.spec_from_loader("compare", loader))
        sys.modules["compare"] = module
        self.addCleanup(sys.modules.pop, "compare")
        sys.dont_write_bytecode = True
        loader.exec_module(module)

        def row(rounds, seconds):
            return {"rounds": rounds, "seconds_without_loader": {"runs": seconds},
                    "latency_seconds": {"means": seconds}}

        # The machine is twice as slow in round 2, which both meet, and in round 1, which only ours does.
        ours, peer = row([0, 1, 2, 3], [1.0, 2.0, 2.0, 1.0]), row([0, 2], [3.0, 6.0])
        self.assertEqual(module.ratio(ours, peer, False), 3.0)
        self.assertEqual(module.ratio(ours, peer, True), 3.0)
        self.assertIsNone(module.ratio(ours, {}, False))
        unfinished = {"rounds": [0], "seconds_without_loader": None, "latency_seconds": None}
        self.assertIsNone(module.ratio(ours, unfinished, False))
        self.assertIsNone(module.ratio(ours, unfinished, True))

    def runs_compared(self, factor=1.0, rounds=3, changed=10):
        """compare_runs on ten rows, and on the same; `changed` of them are `factor` times as long."""
        files = []
        for number, scale in enumerate((1.0, factor)):
            unable = {"name": "BF16", "seconds": None, "latency_seconds": None}
            rows = []
            for bits in range(10):
                times = [(scale if bits < changed else 1.0) * second for second in (1.00, 1.02, 0.99)[:rounds]]
                rows.append({"name": f"int{bits}", "seconds": {"runs": times},
                             "seconds_without_loader": {"runs": times}, "latency_seconds": {"means": times}})
            ratio = {"what": "int2 against the best int8", "ratio": 2.0, "least": 2.0}
            files.append(pathlib.Path(self.folder.name, f"{number}.json"))
            files[-1].write_text(json.dumps({"ours": [*rows[:5], unable], "rows": rows[5:], "ratios": [ratio]}))
        return subprocess.run([sys.executable, COMPARE_RUNS, *map(str, files)], capture_output=True, text=True,
                              check=False, timeout=60)

    def test_runs_compared(self):
        same, near, far = self.runs_compared(), self.runs_compared(1.02), self.runs_compared(1.1, changed=4)
        self.assertEqual((same.returncode, near.returncode, far.returncode), (0, 0, 1))
        slower = self.runs_compared(1.5)
        self.assertEqual(slower.returncode, 0)
        self.assertIn("30 of 30 comparisons are outside", slower.stdout)
        self.assertIn("factor 1.50, by which the second run's times are longer in the median, 0 are", slower.stdout)
        self.assertIn("0 of 30 comparisons", near.stdout)
        self.assertIn("| ours int3 | latency | 1,003.333 ± 37.949 | 1,023.400 ± 38.708 | +2.0 % | yes | yes |", near.stdout)
        self.assertIn("12 of 30 comparisons are outside", far.stdout)
        short = self.runs_compared(rounds=2)
        self.assertEqual((short.returncode, short.stdout), (2, ""))
        self.assertIn("share no row with 3 rounds", short.stderr)

    def test_interrupted(self):
        self.need_data()
        child = subprocess.Popen(self.command("--rows", "int2", "--images", "512", "--runs", "1000"), env=NO_PEERS,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        rounds = 0
        for line in child.stderr:
            rounds += " of 1000: " in line
            if rounds == 3:
                break
        child.send_signal(signal.SIGINT)
        out, messages = child.communicate(timeout=120)
        self.assertEqual(child.returncode, 1, messages)
        self.assertIn("the finished rounds are kept", messages)
        self.assertIn("int2", out)
        self.assertFalse(self.file.exists())
        result = json.loads(self.file.with_suffix(".partial.json").read_text())
        self.assertFalse(result["complete"])
        self.assertGreaterEqual(len(result["ours"][0]["seconds"]["runs"]), 2)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
