"""What the tools in Python share and do without any package: where CIFAR-10 is, what a checkpoint says of itself, files
written whole or not at all, children that end with their parent, the Python that has the other engines."""
from __future__ import annotations

import ctypes
import json
import os
import pathlib
import signal
import struct
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


class WrongInput(Exception):
    """Something the user can mend; exit code 2."""


def not_of_this_project(path: os.PathLike | str, error: Exception) -> WrongInput:
    return WrongInput(f"{path} is not a safetensors file of this project ({error})")


def read_header(path: os.PathLike | str) -> tuple[dict[str, str], dict[str, dict], bytes]:
    """A safetensors file's metadata, its tensors' entries, and the bytes behind them."""
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise WrongInput(f"{path} cannot be read ({error.strerror})") from None
    try:
        length, = struct.unpack_from("<Q", data)
        header = json.loads(data[8:8 + length])
        return header.pop("__metadata__", {}), header, data[8 + length:]
    except (ValueError, KeyError, TypeError, struct.error, AttributeError) as error:
        raise not_of_this_project(path, error) from None


def die_with_parent() -> None:
    """In a child before its program starts: a new group, and an end when the parent ends, however it does."""
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def replace_file(path: os.PathLike | str, data: bytes) -> None:
    """The old file or the new one, whatever happens. Raises OSError."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def peers_python() -> pathlib.Path:
    """The Python that scripts/peers/setup installs the other engines for, whether it is there or not."""
    return pathlib.Path(os.environ.get("NIBBLE_PEERS_VENV") or ROOT / ".venv-peers").absolute() / "bin" / "python"


def restart_in_peers() -> None:
    """Starts this program again in the peers' environment, where there is one and it is not in it yet."""
    if peers_python().exists() and not os.environ.get("NIBBLE_IN_PEERS"):
        os.environ["NIBBLE_IN_PEERS"] = "1"
        os.execv(peers_python(), [peers_python(), *sys.argv])


def data_folder(default: os.PathLike | str = "data") -> pathlib.Path:
    """Where the six files are: CIFAR10_ROOT, else `default`, or cifar-10-batches-bin in it."""
    root = pathlib.Path(os.environ.get("CIFAR10_ROOT") or default)
    for folder in (root, root / "cifar-10-batches-bin"):
        if (folder / "test_batch.bin").is_file():
            return folder
    raise WrongInput(f"CIFAR-10 is not in {root}; set CIFAR10_ROOT to the folder of its .bin files")
