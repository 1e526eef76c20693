"""refusals_test.py CHECKOUT BUILD: wrong configurations, options and checkpoints, given to the programs as users would.

Each is refused in one sentence with exit code 2 (1 where running failed), and leaves all files as they were. Needs no
data set.
"""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def main():
    checkout, build = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    environment = {name: value for name, value in os.environ.items() if name != "CIFAR10_ROOT"}
    environment["no_proxy"] = "nowhere.invalid"

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "chkp").mkdir()
        trained = folder / "chkp" / "p.safetensors"
        int4 = folder / "chkp" / "p_int4.safetensors"

        def files():
            """Content by name; the folder of the download may keep what it got."""
            found = [file for file in folder.rglob("*") if file.is_file() and folder / "data" not in file.parents]
            return {file: hashlib.sha256(file.read_bytes()).digest() for file in found}

        def run(program, *arguments):
            return subprocess.run(
                [build / program, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True
            )

        def refused(words, program, *arguments, code=2):
            before = files()
            result = run(program, *arguments)
            told = (program, arguments, result.returncode, result.stdout, result.stderr)
            assert result.returncode == code and not result.stdout, told
            sentences = [line for line in result.stderr.splitlines() if "calibrating on" not in line]
            assert len(sentences) == 1 and sentences[0].startswith(program + ": ") and words in sentences[0], told
            assert files() == before, told

        def configuration(text):
            (folder / "c.json").write_text(text)
            return "--cfg", "c.json"

        refused("holds nothing but comments", "train", *configuration("// nothing"))
        refused("is empty", "train", *configuration(""))
        refused("cfg_train.n_epoches is given twice", "train", *configuration('{"cfg_train": {"n_epoches": 1, "n_epoches": 2}}'))
        refused("cfg_train.n_epoches is 1000000000", "train", *configuration('{"cfg_train": {"n_epoches": 1000000000}}'))
        refused("cfg_train.n_epoches is 1000000000", "train", *configuration('{"cfg_train": {"n_epoches": 1e9}}'))
        for size in (0, 50001):
            text = f'{{"cfg_dataloader_train": {{"batch_size": {size}}}}}'
            refused(f"cfg_dataloader_train.batch_size is {size}", "train", *configuration(text))
        refused("did you mean cfg_train.n_epoches?", "train", *configuration('{"cfg_train": {"n_epochs": 2}}'))
        refused("choose --bits 16, 8, 4 or 2", "quant", "--bits", "5")
        for program in ("train", "quant", "bench"):
            refused("there is no option --nonsense", program, "--nonsense")
            refused("--threads", program, "--threads", "0")
            refused("missing.json", program, "--cfg", "missing.json", *(("--bits", "8") if program == "quant" else ()))

        configuration('{"cfg": {"checkpoint_path": "./chkp/p"}, "cfg_CIFAR": {"root": "./none", "download": false}}')
        refused("set CIFAR10_ROOT", "train", "--cfg", "c.json")
        # A name that never exists (RFC 2606) stands for a machine without a network.
        no_network = '{"cfg": {"checkpoint_path": "./chkp/p"}, "cfg_CIFAR": {"url": "http://nowhere.invalid/a.tar.gz"}}'
        configuration(no_network)
        refused("CIFAR10_ROOT", "train", "--cfg", "c.json", code=1)
        refused("cannot be written", "train", "--cfg", "c.json", "--checkpoint-path", "/proc/self/p")
        refused("checkpoint_path is empty", "train", "--cfg", "c.json", "--checkpoint-path", "")
        refused("checkpoint_path is the folder", "train", "--cfg", "c.json", "--checkpoint-path", "chkp/")
        refused("cannot be made", "train", "--cfg", "c.json", "--checkpoint-path", "c.json/p")

        if not (checkout / "chkp" / "64_200.safetensors").is_file():
            print("chkp/ holds no network: damaged checkpoints are not tried")
            return
        shutil.copyfile(checkout / "chkp" / "64_200.safetensors", trained)
        other = '{"cfg": {"checkpoint_path": "./chkp/p"}, "cfg_network": {"variant": "he", "depth": 20, "shortcut": "A"}}'
        refused("the configuration asks for he of depth 20", "train", *configuration(other))
        configuration(no_network)
        # Without a network and without data only bench has something to do.
        refused("CIFAR10_ROOT", "train", "--cfg", "c.json", "-e", code=1)
        refused("CIFAR10_ROOT", "quant", "--cfg", "c.json", "--bits", "8", code=1)
        told = run("bench", "--cfg", "c.json", "--runs", "1", "--images", "8", "--models", "FP32", "--report", "json")
        assert told.returncode == 0 and "CIFAR10_ROOT" in told.stderr, told
        row = json.loads(told.stdout)["rows"][0]
        assert row["seconds"]["runs"] and row["agreement"] == 1 and row["top1"] is None, row
        whole = trained.read_bytes()
        header = int.from_bytes(whole[:8], "little")
        damages = [b"", whole[:4], whole[:header], whole[:-1], whole + b"x", whole + bytes(4096)]
        damages += [flipped(whole, place) for place in (7, 8 + header // 2, len(whole) // 2, len(whole) - 1)]
        for damaged in damages:
            trained.write_bytes(damaged)
            refused("p.safetensors: ", "train", "--cfg", "c.json")
            refused("p.safetensors: ", "train", "--cfg", "c.json", "-e")
            refused("p.safetensors: ", "quant", "--cfg", "c.json", "--bits", "8")
            refused("p.safetensors: ", "bench", "--cfg", "c.json")
        trained.write_bytes(whole)
        whole = (checkout / "chkp" / "64_200_int4.safetensors").read_bytes()
        for damaged in (b"", whole[:-1], whole + b"x", flipped(whole, len(whole) // 2)):
            int4.write_bytes(damaged)
            refused("p_int4.safetensors: ", "bench", "--cfg", "c.json")


main()
