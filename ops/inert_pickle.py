"""Reads a module pickled by `torch.save(module)` without running anything of its pickle.

A pickle is a program; this reader knows four operations of it: tensors, parameters, ordered dicts
and sets are rebuilt by code of this file, classes of torch.nn and of the script that saved the file
become inert holders of their attributes, and any other name ends the reading.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ops.errors import ConfigError

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
}
MAX_PICKLE_BYTES = 1 << 20  # the program; a classifier's takes a few kilobytes


class Inert:
    """Stands in for a class of the file: keeps attributes, ignores arguments, does nothing."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("an object's state is not a dict of attributes")
        self.__dict__.update(state)


class _Storage:
    """Names a dtype until its bytes are read."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


def load_inert(path: Path) -> Inert:
    """The module saved in that file; its attributes hold dicts of tensors and further Inerts.

    Raises ConfigError when the file is damaged, of the old format without zip, or names anything
    beside tensors and modules.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            module = _InertUnpickler(archive).load()
    except zipfile.BadZipFile as error:
        raise ConfigError(
            f"{path} is not a file that torch.save writes (torch >= 1.6); save it again"
        ) from error
    except _Refused as error:
        raise ConfigError(f"{path} is refused: its pickle asks for {error}") from error
    except Exception as error:  # a hostile pickle can raise anything
        raise ConfigError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(module, Inert):
        raise ConfigError(
            f"{path} holds no module; give the file that the original's train.py saved"
        )
    return module


class _Refused(pickle.UnpicklingError):
    """The pickle names something that is neither a tensor nor a module."""


class _InertUnpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._names = {info.filename.split("/", 1)[-1]: info for info in archive.infolist()}
        super().__init__(io.BytesIO(self._read("data.pkl", MAX_PICKLE_BYTES)))

    def _read(self, name: str, max_bytes: int) -> bytes:
        info = self._names[name]
        if info.file_size > max_bytes:
            raise pickle.UnpicklingError(
                f"{name} holds {info.file_size} bytes, expected {max_bytes}"
            )
        return self._archive.read(info)

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("builtins", "set"): set,
            ("__builtin__", "set"): set,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name in STORAGES:
            return _Storage(STORAGES[name])
        if (module == "__main__" or module.startswith("torch.nn.modules.")) and "." not in name:
            return type(name, (Inert,), {})
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, storage, key, _location, count = pid
        if kind != "storage" or not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("an unknown kind of external object")
        itemsize = torch.empty(0, dtype=storage.dtype).element_size()
        raw = self._read(f"data/{int(key)}", int(count) * itemsize)
        return torch.frombuffer(bytearray(raw), dtype=storage.dtype)


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: object) -> Tensor:
    if math.prod(size) > storage.numel():  # strides of zero could ask for any amount of memory
        raise pickle.UnpicklingError("a tensor is larger than its storage")
    return storage.as_strided(tuple(size), tuple(stride), offset).clone()  # bounds: torch's check


def _parameter(data: Tensor, *_: object) -> Tensor:
    return data
