"""Teaches the nano projector the words of visual tokens, before the stages of the report.

    python -m training.nano.projector runs/nano/words --model runs/nano/substitute --steps 300

Each visual token of a drawn tile has a word in the tile's transcription (`tasks.words`), and the
projector learns to give the embedding that the language model has of it. The language model itself
does not run, so that a step costs a fraction of one of SFT, and the words of rare colours are seen
often. At 38B, where tokens have no words, this is left to the report's first stage, on all data.

`mark_images` completes it: the tokens around an image get the embeddings of the brackets that stand
around a transcription in text.

The folder ends up as a checkpoint of a projector, for `training.assemble --mlp1`: config.json and
model.safetensors (bfloat16), with log.jsonl.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer

import durable
from tasks.words import WORDS, word_text
from training.nano.encoder import (
    SHARE_OF_CORES,
    DrawnTiles,
    TileBatch,
    normalize,
    shares_read,
    word_loss,
    write_weights,
)
from training.nano.loop import (
    DEVICE,
    WEIGHT_DECAY,
    Log,
    mixed_precision,
    num_workers,
    on_device,
    schedule,
    step,
)

EMBEDDINGS = "language_model.model.embed_tokens.weight"
# The tokens around an image, and how transcriptions are bracketed (`tasks.samples.described`).
MARKS = {"<img>": "[", "</img>": "]\n"}
STREAM = 0x3170  # keeps these drawings apart from those of the encoder's training
SHARPNESS = 10.0  # of the choice between words: the logit of a mean distance between two of them


class Projector(nn.Module):
    """A `mlp1.` in front of its names, as a whole model's weights have it."""

    def __init__(self, mlp1: nn.Module) -> None:
        super().__init__()
        self.mlp1 = mlp1


def embeddings_of_words(model: Any, tokenizer: Any) -> torch.Tensor:
    """The language model's embeddings of WORDS: (words, width).

    Raises:
        ValueError: a word is not one token.
    """
    ids = []
    for word in WORDS:
        tokens = tokenizer.encode(word_text(word), add_special_tokens=False)
        if len(tokens) != 1:
            raise ValueError(
                f"word {word!r} is {len(tokens)} tokens; expected one, as in the tokenizer of "
                "training.nano.tokenizer."
            )
        ids += tokens
    return model.language_model.get_input_embeddings().weight[ids].detach()


def loss_of(
    tokens: torch.Tensor, embeddings: torch.Tensor, batch: TileBatch
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and figures of what the projector gives for a batch.

    The nearest embedding has to be one of an accepted word, and the word's own has to be near.

    Args:
        tokens: (tiles, tokens, width).
        embeddings: of the words, (words, width).
    """
    spread = 2 * embeddings.var(dim=0).sum()  # the mean squared distance of two words
    lengths = embeddings.square().sum(dim=1)
    logits = (2 * tokens @ embeddings.T - lengths) * (SHARPNESS / spread)
    choice = word_loss(logits, batch, torch.ones(len(WORDS), device=tokens.device))
    nearest = logits.masked_fill(~batch.accepted, -torch.inf).argmax(dim=-1)
    distance = F.mse_loss(tokens, embeddings[nearest]) * tokens.shape[-1] / spread
    figures = {**shares_read(logits, batch), "choice": choice, "distance": distance}
    return choice + distance, figures


def train(
    folder: Path,
    model_folder: Path,
    steps: int,
    seed: int = 0,
    lr: float = 1e-3,
    batch_size: int = 128,
) -> None:
    """Train the projector of a model, and write it.

    Args:
        folder: of the projector.
        model_folder: a repository, whose encoder and language model stay as they are.
        steps: of the training.
        seed: of the drawings.
        lr: the largest learning rate.
        batch_size: tiles of a step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model: Any = AutoModel.from_pretrained(
        model_folder, torch_dtype=torch.float32, trust_remote_code=True
    )
    tokenizer = AutoTokenizer.from_pretrained(model_folder, trust_remote_code=True)
    nn.Module.to(model, DEVICE).eval()
    model.requires_grad_(False)
    model.mlp1.requires_grad_(True)
    embeddings = embeddings_of_words(model, tokenizer)
    parameters = list(model.mlp1.parameters())
    optimizer = torch.optim.AdamW(parameters, lr, (0.9, 0.98), weight_decay=WEIGHT_DECAY)
    log = Log(folder / "log.jsonl", "words", steps)
    tiles = DrawnTiles(batch_size, [seed, STREAM])
    workers = num_workers(SHARE_OF_CORES)
    loader = DataLoader(tiles, batch_size=None, num_workers=workers, prefetch_factor=8)
    for number, batch in zip(range(1, steps + 1), map(on_device, loader)):
        with mixed_precision():
            tokens = model.extract_feature(normalize(batch.pixels))
        loss, figures = loss_of(tokens.float(), embeddings, batch)
        loss.backward()
        step([optimizer], parameters, lr * schedule(number / steps))
        log.update(**figures)
    shutil.copyfile(model_folder / "config.json", folder / "config.json")
    write_weights(Projector(model.mlp1), folder / "model.safetensors", torch.bfloat16)


def mark_images(folder: Path) -> None:
    """Give the tokens around an image the embeddings of the brackets around a transcription.

    The language model has never read these tokens; in text it has learned where pictures begin and
    end. Nothing else changes.

    Args:
        folder: of a repository in one file, which is replaced.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    path = folder / "model.safetensors"
    weights = load_file(path)
    embeddings = weights[EMBEDDINGS].clone()
    for token, bracket in MARKS.items():
        (of_bracket,) = tokenizer.encode(bracket, add_special_tokens=False)
        embeddings[tokenizer.convert_tokens_to_ids(token)] = embeddings[of_bracket]
    if torch.equal(embeddings, weights[EMBEDDINGS]):
        return
    weights[EMBEDDINGS] = embeddings
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    with durable.replacing(path) as temporary:
        save_file(weights, temporary, metadata=metadata)
        durable.flush(temporary)


def main() -> None:
    """Train the projector that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="the directory of the projector")
    parser.add_argument("--model", type=Path, required=True, help="the repository that it is of")
    parser.add_argument("--steps", type=int, default=300, help="the number of steps of 128 tiles")
    parser.add_argument("--lr", type=float, default=1e-3, help="the largest learning rate")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the drawings")
    arguments = parser.parse_args()
    train(arguments.folder, arguments.model, arguments.steps, arguments.seed, arguments.lr)


if __name__ == "__main__":
    main()
