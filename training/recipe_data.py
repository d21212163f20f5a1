"""Opens the training data that a recipe names: JSONL files, or `datasets:NAME[:SPLIT]`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import torch
from accelerate import PartialState
from transformers.utils import logging

from training.line_index import IndexFiles
from training.mixture import MIXTURE_SUFFIXES, Mixture, is_mixture, read_mixture
from training.packing import make_packs
from training.recipe import RecipeArguments, TrainingConfig
from training.rows import json_lines
from training.sample_encoder import SampleEncoder
from training.sources import (
    ConversationFile,
    Conversations,
    ConversationTable,
    EncodedSample,
    StreamedConversations,
)

logger = logging.get_logger(__name__)

DATASETS_PREFIX = "datasets:"


def build_dataset(
    recipe: RecipeArguments, config: TrainingConfig, encoder: SampleEncoder
) -> tuple[datasets.Dataset | datasets.IterableDataset, Conversations | StreamedConversations]:
    """The training data of a recipe, read and encoded as they are needed.

    Returns:
        a `datasets.Dataset` or `IterableDataset` with one column: "sample" or, with `pack_samples`,
        "samples", a list of them; and the source behind it.

    Raises:
        FileNotFoundError: a data file that does not exist.
        ValueError: a recipe whose `data` contradicts itself.
        SampleError: too many broken samples.
    """
    _check_data(recipe, config)
    if recipe.streaming:
        stream = _open_stream(recipe, config, encoder)
        return stream.dataset, stream
    with_lengths = recipe.pack_samples or config.train_sampling_strategy == "group_by_length"
    conversations = _open_conversations(recipe, config, recipe.data, encoder, with_lengths)
    if recipe.eval_share:
        numbers, _ = _split(len(conversations), recipe.eval_share, config.seed)
        conversations = conversations.restricted(numbers)
    if isinstance(conversations, Mixture):
        drawn = conversations.weighted(conversations.numbers, config.seed)
        conversations = conversations.restricted(drawn)
    if recipe.pack_samples:
        return _as_packed_dataset(conversations, encoder.max_length), conversations
    return _as_dataset(conversations), conversations


def build_eval_dataset(
    recipe: RecipeArguments,
    config: TrainingConfig,
    encoder: SampleEncoder,
    source: Conversations | StreamedConversations,
) -> datasets.Dataset | None:
    """What a recipe evaluates on while it trains, as `build_dataset` gives it, or None.

    Args:
        source: of the training data, of which `eval_share` takes a part.

    Raises:
        FileNotFoundError: a data file that does not exist.
        SampleError: too many broken samples.
    """
    if recipe.eval_data:
        return _as_dataset(_open_conversations(recipe, config, recipe.eval_data, encoder))
    if recipe.eval_share and isinstance(source, Conversations):
        _, numbers = _split(len(source), recipe.eval_share, config.seed)
        return _as_dataset(source.restricted(numbers))
    return None


def _as_dataset(conversations: Conversations) -> datasets.Dataset:
    """The samples in use, encoded as they are asked for, in one column, "sample"."""
    lines = datasets.Dataset.from_dict({"line": np.asarray(conversations.numbers)})
    # A partial, because spawned workers get the data set as a pickle.
    return lines.with_transform(functools.partial(_encode_lines, conversations))


def _as_packed_dataset(conversations: Conversations, capacity: int) -> datasets.Dataset:
    """The samples in use, several to a row, in one column, "samples"."""
    numbers = conversations.numbers
    packs = make_packs([conversations.length(number) for number in numbers], capacity)
    lines = [[numbers[place] for place in pack] for pack in packs]
    rows = datasets.Dataset.from_dict({"lines": lines})
    logger.info(f"{len(numbers)} samples in {len(lines)} rows of up to {capacity} tokens.")
    return rows.with_transform(functools.partial(_encode_packs, conversations))


def _encode_packs(
    conversations: Conversations, batch: dict[str, list[list[int]]]
) -> dict[str, list[list[EncodedSample]]]:
    """The samples of each row in a batch."""
    return {"samples": [_encode_pack(conversations, lines) for lines in batch["lines"]]}


def _encode_pack(conversations: Conversations, lines: list[int]) -> list[EncodedSample]:
    """The samples of a row; without those that cannot be used, but at least one."""
    samples = []
    for line in lines:
        sample = conversations.encode_usable(line)
        if sample is not None:
            samples.append(sample)
    return samples or [conversations[lines[0]]]


def _split(count: int, eval_share: float, seed: int) -> tuple[list[int], list[int]]:
    """The numbers of samples to train on, and of those to evaluate on, each in order.

    Raises:
        ValueError: one of the two has no sample.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(count, generator=generator).tolist()
    evaluated = round(eval_share * count)
    if not 0 < evaluated < count:
        raise ValueError(
            f"eval_share={eval_share:g} of {count} samples leaves none to train on, or none to "
            "evaluate on."
        )
    return sorted(shuffled[evaluated:]), sorted(shuffled[:evaluated])


def _encode_lines(
    conversations: Conversations, batch: dict[str, list[int]]
) -> dict[str, list[EncodedSample]]:
    """The samples of the numbers in a batch."""
    return {"sample": [conversations[line] for line in batch["line"]]}


def _check_data(recipe: RecipeArguments, config: TrainingConfig) -> None:
    """Raise ValueError if a recipe names data that do not go together."""
    _check_sources("data", recipe.data)
    _check_sources("eval_data", recipe.eval_data or [])
    if recipe.streaming and is_mixture(recipe.data):
        raise ValueError("streaming: a mixture is read by number; leave streaming out.")
    if recipe.pack_samples and config.train_sampling_strategy == "group_by_length":
        raise ValueError("pack_samples: rows are all of about one length; do not group by length.")
    if recipe.streaming and config.max_steps <= 0:
        raise ValueError("streaming: the number of samples is not known, so max_steps is needed.")


def _open_conversations(
    recipe: RecipeArguments,
    config: TrainingConfig,
    data: Sequence[str],
    encoder: SampleEncoder,
    with_lengths: bool = False,
) -> Conversations:
    """The samples of a recipe's `data` or `eval_data` by number."""
    if is_mixture(data):
        return _open_mixture(recipe, config, data[0], encoder, with_lengths)
    name = data[0]
    if name.startswith(DATASETS_PREFIX):
        return ConversationTable(
            _load_table(name), name, encoder, recipe.image_root, recipe.max_broken_share
        )
    index_files = IndexFiles(
        Path(str(config.output_dir)) / "index",
        is_first=config.process_index == 0,
        wait=PartialState().wait_for_everyone,
    )
    return ConversationFile(
        data, encoder, recipe.image_root, recipe.max_broken_share, index_files, with_lengths
    )


def _open_mixture(
    recipe: RecipeArguments,
    config: TrainingConfig,
    path: str,
    encoder: SampleEncoder,
    with_lengths: bool,
) -> Mixture:
    """The samples of all data sets of a mixture's file.

    Raises:
        FileNotFoundError, ValueError: see `read_mixture`.
    """
    sources = []
    entries = read_mixture(path)
    for entry in entries:
        _check_sources("data", entry.data)
        own_recipe = dataclasses.replace(
            recipe, data=entry.data, image_root=entry.image_root or recipe.image_root
        )
        own_encoder = encoder.with_max_tiles(entry.max_tiles)
        sources.append(
            _open_conversations(own_recipe, config, entry.data, own_encoder, with_lengths)
        )
    names = [", ".join(entry.data) for entry in entries]
    return Mixture(sources, names, [entry.weight for entry in entries])


def _check_sources(key: str, data: Sequence[str]) -> None:
    """Raise ValueError for sources that do not go together without a mixture's file."""
    is_table = any(source.startswith(DATASETS_PREFIX) for source in data)
    has_mixture = any(source.endswith(MIXTURE_SUFFIXES) for source in data)
    if (is_table or has_mixture) and len(data) > 1:
        raise ValueError(
            f"{key}: one `datasets:` source, or any number of JSONL files; or all of them in one "
            "mixture, a YAML file."
        )


def _open_stream(
    recipe: RecipeArguments, config: TrainingConfig, encoder: SampleEncoder
) -> StreamedConversations:
    """The samples of a recipe as a shuffled stream."""
    name = recipe.data[0]
    if name.startswith(DATASETS_PREFIX):
        fingerprint = name
        rows = _load_stream(name)
    else:
        fingerprint = _check_files(recipe.data)
        # Each file is a shard, which one worker reads
        rows = datasets.IterableDataset.from_generator(
            json_lines, gen_kwargs={"paths": list(recipe.data)}
        )
    return StreamedConversations(
        rows.shuffle(seed=config.seed, buffer_size=recipe.shuffle_buffer),
        name,
        encoder,
        recipe.image_root,
        recipe.max_broken_share,
        fingerprint,
    )


def workers_of_stream(source: StreamedConversations, config: TrainingConfig) -> int:
    """How many dataloader workers of each process can share a stream: each needs a shard.

    Warns if even the processes have no shard each.
    """
    num_shards = source.dataset.num_shards
    if num_shards < config.world_size:
        logger.warning(
            f"streaming: {config.world_size} processes share {num_shards} files, so every process "
            "reads and tiles all samples and discards those of the others. Split the data into at "
            "least as many files as processes."
        )
    return min(config.dataloader_num_workers, num_shards)


def _check_files(paths: Sequence[str]) -> str:
    """A fingerprint of files by their sizes, since streamed files are too large to be hashed.

    Raises:
        FileNotFoundError: one does not exist.
    """
    sizes = []
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"data file {path} does not exist.")
        sizes.append(f"{Path(path).stat().st_size} bytes")
    return ", ".join(sizes)


class _DatasetsName(NamedTuple):
    """What `datasets:NAME[:SPLIT]` says; a split of None was not named."""

    name: str
    split: str | None

    @property
    def is_saved(self) -> bool:
        """Whether it is a directory that `save_to_disk` has written."""
        folder = Path(self.name)
        return any((folder / file).is_file() for file in ("state.json", "dataset_dict.json"))


def _parse_datasets_name(source: str) -> _DatasetsName:
    name, _, split = source.removeprefix(DATASETS_PREFIX).partition(":")
    return _DatasetsName(name, split or None)


def _load_table(source: str) -> datasets.Dataset:
    """The rows of `datasets:NAME[:SPLIT]`: a Hub id, a data set of files or a saved one.

    Raises:
        ValueError: a saved data set that has no such split.
    """
    named = _parse_datasets_name(source)
    if named.is_saved:
        return _load_saved(named)
    return datasets.load_dataset(named.name, split=named.split or "train")


def _load_stream(source: str) -> datasets.IterableDataset:
    """As `_load_table`, as a stream."""
    named = _parse_datasets_name(source)
    if named.is_saved:
        return _load_saved(named).to_iterable_dataset()
    return datasets.load_dataset(named.name, split=named.split or "train", streaming=True)


def _load_saved(named: _DatasetsName) -> datasets.Dataset:
    """A data set that `save_to_disk` has written.

    Raises:
        ValueError: it has no such split.
    """
    rows = datasets.load_from_disk(named.name)
    if isinstance(rows, datasets.DatasetDict):
        split = named.split or "train"
        if split not in rows:
            raise ValueError(
                f"data: {named.name} has no split {split!r}, but {', '.join(map(str, rows))}."
            )
        return rows[split]
    if named.split:
        raise ValueError(
            f"data: {named.name} was saved as one data set without splits; leave out "
            f":{named.split}."
        )
    return rows
