"""Reads the tensors of a checkpoint's directory one at a time, whatever its format."""

import json
from pathlib import Path

import torch
from safetensors import safe_open


class Checkpoint:
    """Tensors of a directory by name, read one at a time.

    Args:
        folder: with `*.safetensors` (or, in older repositories, `pytorch_model*.bin`).
        prefix: only names that start with it, which it is cut off from.

    Raises:
        FileNotFoundError: no such directory, config.json, or weights.
    """

    def __init__(self, folder, prefix=""):
        self.folder, self.prefix = Path(folder), prefix
        self._files = {}
        shards = sorted(self.folder.glob("*.safetensors"))
        self._is_pickle = not shards
        shards = shards or sorted(self.folder.glob("pytorch_model*.bin"))
        if not shards:
            raise FileNotFoundError(
                f"{self.folder} has no weights: expected *.safetensors or pytorch_model*.bin."
            )
        self._missing_shards = self._indexed_files() - {shard.name for shard in shards}
        if self._missing_shards:
            raise FileNotFoundError(
                f"{self.folder} lacks {len(self._missing_shards)} of the files its index names, such as "
                f"{min(self._missing_shards)}: download it again."
            )
        self._home = {name: shard for shard in shards for name in self._open(shard)}
        self.names = sorted(name[len(prefix) :] for name in self._home if name.startswith(prefix))

    def _indexed_files(self):
        indices = list(self.folder.glob("*.index.json"))
        chosen = [
            path for path in indices if path.name.startswith("pytorch_model") == self._is_pickle
        ]
        return {
            name for path in chosen for name in json.loads(path.read_text())["weight_map"].values()
        }

    def _open(self, shard):
        """The names in a shard; a pickled one is mapped into memory, not read."""
        if self._is_pickle:
            self._files[shard] = torch.load(shard, map_location="cpu", mmap=True, weights_only=True)
            return list(self._files[shard])
        with safe_open(shard, framework="pt") as file:
            return list(file.keys())

    def shape(self, name):
        name = self.prefix + name
        if self._is_pickle:
            return tuple(self._files[self._home[name]][name].shape)
        with safe_open(self._home[name], framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())

    def read(self, name):
        name = self.prefix + name
        if self._is_pickle:
            return self._files[self._home[name]][name]
        with safe_open(self._home[name], framework="pt") as file:
            return file.get_tensor(name)

    def fingerprint(self):
        files = sorted(set(self._home.values()))
        return [
            [str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files
        ]


def read_config(folder, role):
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"--{role} {folder}: expected a checkpoint's directory, with a config.json."
        )
    return json.loads(path.read_text(encoding="utf-8"))
