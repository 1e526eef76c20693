"""fresh_clone_test.py CHECKOUT BUILD: the README's commands in a copy of the committed files."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile


def copy_of_committed_files(checkout, copy):
    names = subprocess.run(["git", "-C", checkout, "ls-files", "-z"], check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (checkout / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkout / name, copy / name)


def main():
    checkout, build = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    if "CIFAR10_ROOT" not in os.environ:
        print("CIFAR10_ROOT is not set: the commands are not run")
        sys.exit(77)  # CMakeLists.txt: skipped

    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder)
        copy_of_committed_files(checkout, copy)

        def run(program, *arguments):
            result = subprocess.run([build / program, *arguments], cwd=copy, capture_output=True, text=True)
            assert result.returncode == 0, (program, arguments, result.returncode, result.stdout, result.stderr)
            return result.stdout

        # The network in chkp/ is finished, so it is evaluated and stays as it is.
        trained = copy / "chkp" / "64_200.safetensors"
        before = trained.read_bytes()
        run("train", "--cfg", "64_200.json")
        assert trained.read_bytes() == before

        quantized = copy / "chkp" / "64_200_int8.safetensors"
        quantized.unlink(missing_ok=True)
        run("quant", "--bits", "8", "--fuse")
        assert quantized.stat().st_size <= 405_000, quantized.stat().st_size

        # Of two rows here; .ci/run makes the whole table.
        text = run("bench", "--report", "json", "--runs", "1", "--models", "FP32,int8 fused")
        (copy / "report.json").write_text(text)
        table = run("bench", "--render", "report.json", "--report", "md")
        names = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
        assert {"FP32", "int8 fused"} <= set(names), table
        assert table.index("| FP32") < table.index("| int8 fused"), table

        report = json.loads(text)
        rows = {}
        for row in report["rows"]:  # of one name the first: a row that saturates on this CPU stands below
            rows.setdefault(row["name"], row)
        assert report["context"]["dataset"]["images"] == 10000, report["context"]
        assert rows["int8 fused"]["top1"] > rows["FP32"]["top1"] - 0.005, rows
        assert rows["int8 fused"]["file_bytes"] == quantized.stat().st_size, rows
        print(f"FP32 {rows['FP32']['top1']}, int8 fused {rows['int8 fused']['top1']}")


main()
