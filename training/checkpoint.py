"""Reads the tensors of a directory one at a time, from safetensors or pickled files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open


class Checkpoint:
    """The tensors of a directory by name, read one at a time.

    Args:
        folder: a directory with `*.safetensors` or, in older repositories, `pytorch_model*.bin`.
        prefix: only names that start with it are known, and it is cut off from them.

    Attributes:
        names: the sorted names of the tensors, without the prefix.

    Raises:
        FileNotFoundError: a directory without weights, or that lacks some of the files that its
            index names.
    """

    def __init__(self, folder: str | Path, prefix: str = "") -> None:
        self.folder = Path(folder)
        self.prefix = prefix
        shards = sorted(self.folder.glob("*.safetensors"))
        self._is_pickle = not shards
        if self._is_pickle:
            shards = sorted(self.folder.glob("pytorch_model*.bin"))
        if not shards:
            raise FileNotFoundError(
                f"{self.folder} has no weights: expected *.safetensors or pytorch_model*.bin."
            )
        self._check_complete(shards)
        self._pickled: dict[Path, dict[str, torch.Tensor]] = {}
        self._shard_of_name: dict[str, Path] = {}
        for shard in shards:
            self._shard_of_name.update(dict.fromkeys(self._open(shard), shard))
        matching = [name for name in self._shard_of_name if name.startswith(prefix)]
        self.names = sorted(name.removeprefix(prefix) for name in matching)

    def _check_complete(self, shards: list[Path]) -> None:
        """Raise FileNotFoundError if a file that the directory's index names is not there."""
        missing = self._indexed_files() - {shard.name for shard in shards}
        if missing:
            raise FileNotFoundError(
                f"{self.folder} lacks {len(missing)} of the files its index names, such as "
                f"{min(missing)}: download it again."
            )

    def _indexed_files(self) -> set[str]:
        """The files that the indices of the format in use name."""
        files: set[str] = set()
        for path in self.folder.glob("*.index.json"):
            if path.name.startswith("pytorch_model") == self._is_pickle:
                files.update(json.loads(path.read_text())["weight_map"].values())
        return files

    def _open(self, shard: Path) -> list[str]:
        """The names in a shard; a pickled one is mapped into memory, not read."""
        if self._is_pickle:
            tensors = torch.load(shard, map_location="cpu", mmap=True, weights_only=True)
            self._pickled[shard] = tensors
            return list(tensors)
        with safe_open(shard, framework="pt") as file:
            return list(file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read."""
        name = self.prefix + name
        shard = self._shard_of_name[name]
        if self._is_pickle:
            return tuple(self._pickled[shard][name].shape)
        with safe_open(shard, framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())

    def read(self, name: str) -> torch.Tensor:
        """A tensor, in the dtype that it is stored in."""
        name = self.prefix + name
        shard = self._shard_of_name[name]
        if self._is_pickle:
            return self._pickled[shard][name]
        with safe_open(shard, framework="pt") as file:
            return file.get_tensor(name)

    def fingerprint(self) -> list[list[Any]]:
        """Path, size in bytes and time of change of each file: it changes with the weights."""
        fingerprint = []
        for file in sorted(set(self._shard_of_name.values())):
            status = file.stat()
            fingerprint.append([str(file.resolve()), status.st_size, status.st_mtime_ns])
        return fingerprint


def read_config(folder: str | Path, role: str) -> dict[str, Any]:
    """The config.json of a checkpoint's directory.

    Args:
        role: the command-line flag that named the directory, without its dashes.

    Raises:
        FileNotFoundError: no such file.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"--{role} {folder}: expected a checkpoint's directory, with a config.json."
        )
    return json.loads(path.read_text(encoding="utf-8"))
