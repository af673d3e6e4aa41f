"""Read files of weights without running anything that is in them.

Three kinds of file are read: safetensors, what `torch.save` wrote, and archives of TorchScript. A name that ends in
`.safetensors` is only ever read as safetensors. Of an archive of TorchScript only the tensors are read: its program
stays in the file, because TorchScript has operations that write files.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..files import one_line


def read_tensors(path: Path) -> Any:
    """The content of a file of weights, on the CPU.

    Args:
        path: a regular file. The ending `.safetensors` decides that it is read as safetensors; any other file is read
            as an archive of TorchScript if it has the parts of one, else as what `torch.save` wrote.

    Returns:
        A dictionary of tensors, or what was given to `torch.save`: tensors in plain containers.

    Raises:
        FileNotFoundError: if there is no regular file at `path`.
        ValueError: one sentence, if the file is of another kind, is cut off, unpacks to more bytes than it has, or
            holds objects other than tensors and containers. Such objects are not unpickled.
    """
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' is not a regular file.")
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    try:
        content = _read_archive(path) if is_torchscript(path) else _read_pickle(path)
        _check_sizes(content, path.stat().st_size)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, error)) from None
    except Exception as error:  # a damaged or hostile file makes the readers raise almost anything
        reason = one_line(error)
        raise ValueError(f"'{path}' is cut off or is not a file that torch.save wrote ({reason[:200]}).") from None
    return content


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of TorchScript, judging by the names of its parts."""
    parts = {name.partition("/")[2].partition("/")[0] for name in zip_entries(path)}
    return "constants.pkl" in parts or "code" in parts


def zip_entries(path: Path) -> list[str]:
    """The names in a zip file; none for another kind of file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return []


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"'{path}' is not a whole safetensors file ({error}).") from None


def _read_pickle(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_stored(archive, path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _refusal(path: Path, error: pickle.UnpicklingError) -> str:
    if not zipfile.is_zipfile(path) and "GLOBAL" not in str(error):
        return f"'{path}' is not a file that torch.save wrote."
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    return (
        f"'{path}' holds a pickled {refused[1] if refused else 'object'}, and unpickling it could run any code, so "
        "it is not loaded; save the network's state_dict alone."
    )


def _check_stored(archive: zipfile.ZipFile, path: Path) -> None:
    """PyTorch compresses no part of a file but source code; other parts could unpack to any size."""
    entries = [entry for entry in archive.infolist() if entry.filename.split("/")[1:2] != ["code"]]
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it has compressed parts")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("its parts overlap")


def _check_sizes(content: Any, most: int) -> None:
    """Refuse tensors that claim more bytes than the file has, `most`."""
    for tensor in _tensors_in(content):
        if tensor.numel() * tensor.element_size() > most:
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is larger than the file")


def _tensors_in(content: Any) -> Iterator[Tensor]:
    left, seen = [content], set()
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (Mapping, list, tuple, set)) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, Mapping) else value


# --- archives of TorchScript ------------------------------------------------------------------------------------------


class _Module:
    """Stands for a module of a program: keeps its attributes, has no methods."""


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _as_given(data: Any, *_: Any) -> Any:
    return data


_STORAGES = {
    ("torch", f"{name}Storage"): dtype
    for name, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
_KNOWN: dict[tuple[str, str], Any] = {
    **_STORAGES,
    **{("torch.jit._pickle", name): _as_given for name in _LISTS},
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("collections", "OrderedDict"): dict,
    ("torch", "device"): str,
}
# What TorchScript writes. Others could index far into the memo, or make objects in ways that nobody needs here.
_OPCODES = {
    *("PROTO", "STOP", "MARK", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "BINPERSID"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS"),
}


class _Weights(pickle.Unpickler):
    """Reads the modules of a program as plain attributes; calls nothing but the functions of `_KNOWN`."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        data = archive.read(f"{root}/data.pkl")
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name not in _OPCODES or ("PUT" in opcode.name and int(argument or 0) > len(data)):
                raise ValueError(f"its data have the opcode {opcode.name}, which TorchScript doesn't write")
        super().__init__(io.BytesIO(data))
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for a module of the program, or one of `_KNOWN`."""
        if module.partition(".")[0] == "__torch__":
            return _Module
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return _KNOWN[module, name]

    def persistent_load(self, saved: Any) -> Tensor:
        """The numbers of a storage, in one dimension."""
        _, dtype, key, *_ = saved
        raw = self._archive.read(f"{self._root}/data/{key}")
        return torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)


def _read_archive(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of an archive by name, as `state_dict` of the module would give them."""
    with zipfile.ZipFile(path) as archive:
        _check_stored(archive, path)
        root = archive.namelist()[0].partition("/")[0]
        module = _Weights(archive, root).load()
    weights: dict[str, Tensor] = {}
    left, seen = [("", module)], set()
    while left:
        prefix, value = left.pop()
        if isinstance(value, Tensor):
            weights[prefix[:-1]] = value
        elif isinstance(value, _Module) and id(value) not in seen:
            seen.add(id(value))
            left += [(f"{prefix}{name}.", part) for name, part in reversed(vars(value).items())]
    return weights
