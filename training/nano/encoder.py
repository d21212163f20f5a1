"""Trains the nano vision encoder alone, with heads that are thrown away afterwards.

    python -m training.nano.encoder runs/nano/encoder --steps 6000
    python -m training.nano.encoder runs/nano/encoder --score 120  # how well the second head reads

The encoder is an InternViT of 6.3 M parameters. Two linear heads on its output teach it to read:

- one says for every 7 × 7 pixels which glyph, shape or bar lies there (dense labels; the drawing
  code knows them);
- the other writes the tile's transcription, word by word into its 16 visual tokens, which are the
  same groups of 2 × 2 patches that pixel shuffle makes for the projector. This is scene-text
  recognition with a plain ViT and no decoder (ViTSTR, Atienza 2021); it needs the first task,
  without which it does not take off.

Hidden layers learn with Muon, the rest with AdamW.

The folder ends up as a vision encoder checkpoint: config.json and model.safetensors (bfloat16),
with log.jsonl.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import durable
from preprocessor.image_processing_skywork_chat import IMAGENET_MEAN, IMAGENET_STD
from remote_code import configuration_skywork_chat, modeling_intern_vit
from tasks import charts, coloured, draw, drawing, hard, samples
from tasks.words import WORDS
from training.nano.loop import (
    DEVICE,
    Log,
    attention,
    mixed_precision,
    num_workers,
    on_device,
    optimizers_for,
    schedule,
    step,
)

NUM_LABELS = len(drawing.LABELS) + 1  # with 0, nothing
CONFIG = {
    "model_type": "skywork_vision",
    "hidden_size": 256,
    "image_size": 112,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
    "num_hidden_layers": 8,
    "patch_size": 14,
    "qk_normalization": True,
    "norm_type": "rms_norm",
    "qkv_bias": False,
    # The defaults are those of a published encoder, which nobody initialises: weights of zero.
    "initializer_range": 0.02,
    "initializer_factor": 1.0,
    "torch_dtype": "bfloat16",
}
PATCHES_PER_SIDE = 8  # of a tile
TOKENS_PER_SIDE = 4  # of a tile; a token is 2 × 2 patches
# Where the training stands, so that it can go on after an interruption.
PROGRESS_FOLDER = "training"
SHARE_OF_CORES = 0.7  # that draw, beside a GPU

# How often each kind of picture is drawn: most often what is hardest to read.
DRAWN_SHARES = {
    draw.draw_calculation: 0.22,
    hard.draw_long_calculation: 0.12,
    draw.draw_shapes: 0.24,
    hard.draw_crowd: 0.12,
    coloured.draw_coloured: 0.16,
    charts.draw_chart: 0.14,
}
# Shares of a picture's tiles that are trained on. A thumbnail teaches most and is always taken,
# some of the other tiles will do, and most empty ones teach nothing.
SHARE_OF_TILES = 0.35
SHARE_OF_EMPTY_TILES = 0.05
BATCHES_IN_POOL = 4  # so that a batch has tiles of many pictures

# Weights of "nothing" in the losses, as most cells and words show nothing.
WEIGHT_OF_NOTHING_COVERING = 0.3
WEIGHT_OF_NOTHING_CENTRED = 0.1
WEIGHT_OF_EMPTY_WORD = 0.3


class TileBatch(NamedTuple):
    """Labelled tiles; see `samples.LabelledTiles`.

    Attributes:
        pixels: uint8 (tiles, side, side, 3).
        covering: int64 (tiles, cells, cells), the label of what covers each cell's middle.
        centred: int64 (tiles, cells, cells), the label of what has its middle in each cell.
        words: int64 (tiles, tokens).
        accepted: bool (tiles, tokens, words), all words that are right in a place.
    """

    pixels: torch.Tensor
    covering: torch.Tensor
    centred: torch.Tensor
    words: torch.Tensor
    accepted: torch.Tensor


class DrawnTiles(IterableDataset):
    """Batches of labelled tiles of random drawings, without end.

    Args:
        batch_size: tiles of a batch.
        seed: a list of numbers.
    """

    def __init__(self, batch_size: int, seed: list[int]) -> None:
        self.batch_size = batch_size
        self.seed = seed

    def __iter__(self) -> Iterator[TileBatch]:
        worker = torch.utils.data.get_worker_info()
        worker_id = 0
        if worker is not None:
            worker_id = worker.id
        rng = np.random.default_rng([*self.seed, worker_id])
        pool: list[tuple[np.ndarray, ...]] = []
        while True:
            pool += _tiles_to_learn(rng)
            if len(pool) >= BATCHES_IN_POOL * self.batch_size:
                pool = [pool[index] for index in rng.permutation(len(pool))]
                yield _collate(pool[: self.batch_size])
                pool = pool[self.batch_size :]


def _tiles_to_learn(rng: np.random.Generator) -> list[tuple[np.ndarray, ...]]:
    """Those tiles of a random drawing that are trained on, each with its labels."""
    kinds = list(DRAWN_SHARES)
    draw_kind = kinds[rng.choice(len(kinds), p=list(DRAWN_SHARES.values()))]
    tiles = list(zip(*samples.cut_tiles(draw_kind(rng))))
    thumbnail = tiles.pop()
    taken = []
    for tile in tiles:
        covering = tile[1]
        share = SHARE_OF_EMPTY_TILES
        if covering.any():
            share = SHARE_OF_TILES
        if rng.random() < share:
            taken.append(tile)
    taken.append(thumbnail)
    return taken


def _collate(tiles: list[tuple[np.ndarray, ...]]) -> TileBatch:
    stacked = [torch.from_numpy(np.stack(part)) for part in zip(*tiles)]
    return TileBatch(*stacked)


def normalize(tiles: torch.Tensor) -> torch.Tensor:
    """uint8 (tiles, side, side, 3) to normalised float32 (tiles, 3, side, side)."""
    mean = torch.tensor(IMAGENET_MEAN, device=tiles.device)
    std = torch.tensor(IMAGENET_STD, device=tiles.device)
    return ((tiles.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def group_patches(patches: torch.Tensor) -> torch.Tensor:
    """Pixel shuffle of square tiles: (tiles, 64, C) to (tiles, 16, 4 C), in the model's order."""
    # (tiles, rows, row in the group, columns, column in the group, C)
    groups = patches.view(len(patches), TOKENS_PER_SIDE, 2, TOKENS_PER_SIDE, 2, patches.shape[-1])
    return groups.transpose(2, 3).reshape(len(patches), TOKENS_PER_SIDE**2, -1)


class Heads(nn.Module):
    """Both linear heads that are thrown away: labels of cells, and words of tokens.

    The first gives two labels to each of the 2 × 2 cells of every patch, the second a word to every
    token.

    Args:
        hidden_size: width C of the encoder.
    """

    dense_weights: torch.Tensor
    word_weights: torch.Tensor

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, 4 * 2 * NUM_LABELS)
        self.norm = nn.LayerNorm(4 * hidden_size)
        self.words = nn.Linear(4 * hidden_size, len(WORDS))
        dense_weights = torch.ones(2, NUM_LABELS)
        dense_weights[0, 0] = WEIGHT_OF_NOTHING_COVERING
        dense_weights[1, 0] = WEIGHT_OF_NOTHING_CENTRED
        word_weights = torch.ones(len(WORDS))
        word_weights[0] = WEIGHT_OF_EMPTY_WORD
        self.register_buffer("dense_weights", dense_weights, persistent=False)
        self.register_buffer("word_weights", word_weights, persistent=False)

    def read(self, patches: torch.Tensor) -> torch.Tensor:
        """Logits (tiles, tokens, words) of the words, from features (tiles, patches, C)."""
        return self.words(self.norm(group_patches(patches))).float()

    def label(self, patches: torch.Tensor) -> torch.Tensor:
        """Logits of both labels of the cells, from features (tiles, patches, C).

        Returns:
            (2, tiles, cells, cells, labels): of what covers a cell, and of what is centred in it.
        """
        side = PATCHES_PER_SIDE
        cells = self.dense(patches).float()
        # (tiles, rows, columns, cell row, cell column, kind, labels)
        cells = cells.view(len(patches), side, side, 2, 2, 2, NUM_LABELS)
        cells = cells.permute(5, 0, 1, 3, 2, 4, 6)
        return cells.reshape(2, len(patches), 2 * side, 2 * side, NUM_LABELS)

    def forward(
        self, patches: torch.Tensor, batch: TileBatch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss and figures of the features (tiles, patches, C) of a batch."""
        cells = self.label(patches)
        covering_loss = self._dense_loss(cells[0], batch.covering, self.dense_weights[0])
        centred_loss = self._dense_loss(cells[1], batch.centred, self.dense_weights[1])
        dense_loss = covering_loss + centred_loss
        logits = self.read(patches)
        loss_of_words = word_loss(logits, batch, self.word_weights)
        is_centred_right = cells[1].argmax(-1) == batch.centred
        figures = {
            "centred": is_centred_right[batch.centred != 0].float().mean(),
            **shares_read(logits, batch),
            "dense_loss": dense_loss,
            "word_loss": loss_of_words,
        }
        return dense_loss + loss_of_words, figures

    def _dense_loss(
        self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        return F.cross_entropy(logits.flatten(0, 2), labels.flatten(), weights)


def word_loss(logits: torch.Tensor, batch: TileBatch, word_weights: torch.Tensor) -> torch.Tensor:
    """Cross entropy in which the probabilities of all accepted words count together.

    Args:
        logits: (tiles, tokens, words).
        word_weights: how much each word counts.
    """
    of_all = logits.logsumexp(dim=-1)
    of_accepted = logits.masked_fill(~batch.accepted, -torch.inf).logsumexp(dim=-1)
    weights = word_weights[batch.words]
    return (weights * (of_all - of_accepted)).sum() / weights.sum()


def is_accepted(logits: torch.Tensor, accepted: torch.Tensor) -> torch.Tensor:
    """Which tokens are read right, by the words accepted in their places: bool (tiles, tokens)."""
    likeliest = logits.argmax(-1, keepdim=True)
    return accepted.gather(-1, likeliest).squeeze(-1)


def shares_read(logits: torch.Tensor, batch: TileBatch) -> dict[str, torch.Tensor]:
    """Shares of the words, and of the tiles that show something, that are read right."""
    is_shown = batch.words != 0
    is_right = is_accepted(logits, batch.accepted)
    return {
        "words": is_right[is_shown].float().mean(),
        "tiles": is_right.all(dim=1)[is_shown.any(dim=1)].float().mean(),
    }


def write_weights(module: nn.Module, path: Path, dtype: torch.dtype) -> None:
    """Write a module's weights as safetensors; the file appears when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {}
    for name, tensor in module.state_dict().items():
        weights[name] = tensor.detach().to(dtype).contiguous()
    temporary = path.with_suffix(durable.TEMPORARY)
    save_file(weights, temporary, metadata={"format": "pt"})
    durable.flush(temporary)
    temporary.replace(path)


def save_progress(vision: nn.Module, heads: Heads, folder: Path, step: int) -> None:
    """What an interrupted training goes on from (the optimizers' momenta start anew)."""
    progress = folder / PROGRESS_FOLDER
    write_weights(vision, progress / "model.safetensors", torch.float32)
    write_weights(heads, progress / "heads.safetensors", torch.float32)
    durable.write_json(progress / "step.json", step)


def save(vision: nn.Module, folder: Path) -> None:
    """The encoder as a checkpoint of its own."""
    config = {**CONFIG, "architectures": ["InternVisionModel"]}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_weights(vision, folder / "model.safetensors", torch.bfloat16)


def build(folder: Path) -> tuple[modeling_intern_vit.SkyworkVisionModel, Heads, int]:
    """The encoder, the heads and the number of steps that they have trained.

    They are those of the folder, if there is a training to go on with.
    """
    config = configuration_skywork_chat.SkyworkVisionConfig(**CONFIG)
    config._attn_implementation = attention()
    vision = modeling_intern_vit.SkyworkVisionModel(config).float().train()
    nn.Module.to(vision, DEVICE)
    heads = Heads(config.hidden_size).to(DEVICE)
    progress = folder / PROGRESS_FOLDER
    if not (progress / "step.json").exists():
        return vision, heads, 0
    vision.load_state_dict(load_file(progress / "model.safetensors"))
    heads.load_state_dict(load_file(progress / "heads.safetensors"))
    return vision, heads, json.loads((progress / "step.json").read_text())


def train(
    folder: Path,
    steps: int,
    seed: int,
    lr: float = 1e-3,
    batch_size: int = 256,
    save_every: int = 250,
    compile_encoder: bool = DEVICE.type == "cpu",
) -> None:
    """Train up to `steps`, from where the folder's training stands, and write the checkpoint.

    Args:
        folder: of the checkpoint.
        steps: of the whole training, with those that are done already.
        seed: of weights and drawings.
        lr: the largest learning rate.
        batch_size: tiles of a step.
        save_every: steps between two savings of the progress.
        compile_encoder: whether torch.compile makes the encoder faster; by default on a CPU alone,
            since on a GPU so small a network waits for its samples.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    vision, heads, done = build(folder)
    encode = vision.encoder
    if compile_encoder:
        encode = torch.compile(vision.encoder)
    parameters = [*vision.parameters(), *heads.parameters()]
    optimizers = optimizers_for([vision, heads], lr)
    log = Log(folder / "log.jsonl", "encoder", steps, done)
    tiles = DrawnTiles(batch_size, [seed, done])
    workers = num_workers(SHARE_OF_CORES)
    loader = DataLoader(tiles, batch_size=None, num_workers=workers, prefetch_factor=8)
    for number, batch in zip(range(done + 1, steps + 1), map(on_device, loader)):
        with mixed_precision():
            hidden = encode(vision.embeddings(normalize(batch.pixels))).last_hidden_state
            patches = hidden[:, 1:]  # without the class token
            loss, figures = heads(patches, batch)
        loss.backward()
        step(optimizers, parameters, lr * schedule(number / steps))
        log.update(**figures)
        if number % save_every == 0 or number == steps:
            save_progress(vision, heads, folder, number)
    save(vision, folder)


@torch.no_grad()
def score(folder: Path, count: int, seed: int = 12345) -> dict[str, dict[str, float]]:
    """How well the thumbnails of fresh drawings are read, by the head that is thrown away.

    Args:
        count: drawings of each kind.

    Returns:
        {kind: {"words": share of the words that are right,
        "exact": share of the thumbnails whose every word is right,
        "as many words": share of those with the right number of words}}.

    Raises:
        FileNotFoundError: nothing has been trained in the folder, or its heads are gone.
    """
    vision, heads, steps = build(folder)
    if not steps:
        progress = folder / PROGRESS_FOLDER
        raise FileNotFoundError(
            f"{progress}: no encoder with its heads; train one in {folder} first."
        )
    vision.eval()
    shares = {}
    for kind, draw_kind in enumerate(DRAWN_SHARES):
        rng = np.random.default_rng([seed, kind])
        thumbnails = on_device(_collate([_thumbnail(draw_kind(rng)) for _ in range(count)]))
        logits = _read_thumbnails(vision, heads, thumbnails)
        is_right = is_accepted(logits, thumbnails.accepted)
        is_shown = thumbnails.words != 0
        is_as_many = (logits.argmax(-1) != 0).sum(1) == is_shown.sum(1)
        shares[draw_kind.__name__.removeprefix("draw_")] = {
            "words": is_right[is_shown].float().mean().item(),
            "exact": is_right.all(dim=1).float().mean().item(),
            "as many words": is_as_many.float().mean().item(),
        }
    return shares


def _thumbnail(picture: drawing.Drawing) -> tuple[np.ndarray, ...]:
    """The last tile of a drawing, with its labels."""
    return list(zip(*samples.cut_tiles(picture)))[-1]


def _read_thumbnails(vision: nn.Module, heads: Heads, batch: TileBatch) -> torch.Tensor:
    """Logits (tiles, tokens, words) of the second head, 64 tiles at a time."""
    features = [vision(normalize(part)).last_hidden_state[:, 1:] for part in batch.pixels.split(64)]
    return heads.read(torch.cat(features))


def main() -> None:
    """Train the encoder, or score it, as the command line asks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="the directory of the checkpoint")
    parser.add_argument("--steps", type=int, default=6000, help="the number of steps of 256 tiles")
    parser.add_argument("--lr", type=float, default=1e-3, help="the largest learning rate")
    parser.add_argument("--seed", type=int, default=0, help="the seed of weights and drawings")
    parser.add_argument(
        "--score",
        type=int,
        metavar="COUNT",
        help="train nothing, but read so many drawings of each kind and print how well it went",
    )
    arguments = parser.parse_args()
    if arguments.score:
        print(json.dumps(score(arguments.folder, arguments.score)))
        return
    train(arguments.folder, arguments.steps, arguments.seed, arguments.lr)


if __name__ == "__main__":
    main()
