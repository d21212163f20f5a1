"""Trains the nano vision encoder alone, with a head that is thrown away afterwards.

    python -m training.nano.encoder runs/nano/encoder --steps 6000
    python -m training.nano.encoder runs/nano/encoder --score 120  # how well it reads, by the second head

The encoder is an InternViT of 6.3 M parameters. Two linear heads on its output teach it to read: one says for every 7
× 7 pixels which glyph, shape or bar lies there (dense labels; the drawing code knows them), the other writes the
tile's transcription, word by word into its 16 visual tokens, which are the same groups of 2 × 2 patches that pixel
shuffle makes for the projector. That second task is scene-text recognition with a plain ViT and no decoder (ViTSTR,
Atienza 2021); it needs the first, without which it does not take off. Hidden layers learn with Muon, the rest with
AdamW.

The folder ends up as a vision encoder checkpoint: config.json and model.safetensors (bfloat16), with log.jsonl.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from preprocessor.image_processing_skywork_chat import IMAGENET_MEAN, IMAGENET_STD
from remote_code import configuration_skywork_chat, modeling_intern_vit
from tasks import draw, drawing, samples
from training.nano.loop import Log, optimizers_for, schedule, step

ROOT = Path(__file__).resolve().parents[2]
LABELS = len(drawing.LABELS) + 1
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
    # The defaults are those of a published encoder, which nobody initialises: weights of zero
    "initializer_range": 0.02,
    "initializer_factor": 1.0,
    "torch_dtype": "bfloat16",
}


class DrawnTiles(IterableDataset):
    """Batches of labelled tiles: uint8 (tiles, side, side, 3), two labels (tiles, cells, cells), words (tiles, 16).

    Args:
        seed: a list of numbers.
    """

    def __init__(self, batch_size, seed):
        self.batch_size, self.seed = batch_size, seed

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([*self.seed, worker.id if worker else 0])
        pool = []
        while True:
            tiles = list(zip(*samples.cut_tiles(draw.draw(rng))))
            for index, labelled in enumerate(tiles):
                whole = index == len(tiles) - 1
                # A thumbnail teaches most, some of a picture's tiles will do, and most empty ones teach nothing
                if whole or rng.random() < (0.35 if labelled[1].any() else 0.05):
                    pool.append(labelled)
            if len(pool) >= 4 * self.batch_size:  # so that a batch holds tiles of many pictures
                order = rng.permutation(len(pool))
                pool = [pool[index] for index in order]
                batch, pool = pool[: self.batch_size], pool[self.batch_size :]
                yield tuple(torch.from_numpy(np.stack(part)) for part in zip(*batch))


def normalize(tiles):
    """uint8 (tiles, side, side, 3) to normalised float32 (tiles, 3, side, side)."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return ((tiles.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def group_patches(patches):
    """Pixel shuffle of square tiles: (tiles, 64, C) to (tiles, 16, 4 C), in the model's order."""
    groups = patches.view(len(patches), 4, 2, 4, 2, patches.shape[-1])  # rows, row in group, columns, column in group
    return groups.transpose(2, 3).reshape(len(patches), 16, -1)


class Heads(nn.Module):
    """Both throw-away heads, linear: dense labels of the 2 × 2 cells of every patch, and the word of every token."""

    def __init__(self, hidden_size):
        super().__init__()
        self.dense = nn.Linear(hidden_size, 4 * 2 * LABELS)
        self.norm = nn.LayerNorm(4 * hidden_size)
        self.words = nn.Linear(4 * hidden_size, len(samples.WORDS))
        dense_weights = torch.ones(2, LABELS)
        dense_weights[0, 0], dense_weights[1, 0] = 0.3, 0.1  # most cells show nothing
        word_weights = torch.ones(len(samples.WORDS))
        word_weights[0] = 0.3
        self.register_buffer("dense_weights", dense_weights, persistent=False)
        self.register_buffer("word_weights", word_weights, persistent=False)

    def read(self, patches):
        """Logits of the word of every token, (tiles, 16, words), from the encoder's features (tiles, patches, C)."""
        return self.words(self.norm(group_patches(patches))).float()

    def forward(self, patches, covering, centred, words):
        """Loss and figures of the encoder's features (tiles, patches, C)."""
        cells = self.dense(patches).float()
        # (tiles, rows, columns, cell row, cell column, kind, labels)
        cells = cells.view(len(patches), 8, 8, 2, 2, 2, LABELS)
        cells = cells.permute(5, 0, 1, 3, 2, 4, 6).reshape(2, len(patches), 16, 16, LABELS)
        dense_loss = sum(
            F.cross_entropy(cells[kind].flatten(0, 2), labels.flatten(), self.dense_weights[kind])
            for kind, labels in enumerate((covering, centred))
        )
        logits = self.read(patches)
        word_loss = F.cross_entropy(logits.flatten(0, 1), words.flatten(), self.word_weights)
        shown, right = words != 0, logits.argmax(-1) == words
        figures = {
            "centred": (cells[1].argmax(-1) == centred)[centred != 0].float().mean(),
            "words": right[shown].float().mean(),
            "tiles": right.all(dim=1)[shown.any(dim=1)].float().mean(),
            "dense_loss": dense_loss,
            "word_loss": word_loss,
        }
        return dense_loss + word_loss, figures


def write_weights(module, path, dtype):
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().to(dtype).contiguous() for name, tensor in module.state_dict().items()}
    save_file(weights, path.with_suffix(".tmp"), metadata={"format": "pt"})
    path.with_suffix(".tmp").replace(path)


def save_progress(vision, heads, folder, step):
    """What an interrupted training goes on from (the optimizers' momenta start anew)."""
    write_weights(vision, folder / "training" / "model.safetensors", torch.float32)
    write_weights(heads, folder / "training" / "heads.safetensors", torch.float32)
    (folder / "training" / "step.json").write_text(json.dumps(step))


def save(vision, folder):
    """The encoder as a checkpoint of its own."""
    (folder / "config.json").write_text(json.dumps({**CONFIG, "architectures": ["SkyworkVisionModel"]}, indent=2))
    write_weights(vision, folder / "model.safetensors", torch.bfloat16)


def build(folder):
    """The encoder, the heads and the steps they have trained; from the folder, if it has a training to go on with."""
    config = configuration_skywork_chat.SkyworkVisionConfig(**CONFIG)
    config._attn_implementation = "eager"  # the faster one to train on a CPU at 65 patches
    vision = modeling_intern_vit.SkyworkVisionModel(config).float().train()
    heads, training, step = Heads(CONFIG["hidden_size"]), folder / "training", 0
    if (training / "step.json").exists():
        vision.load_state_dict(load_file(training / "model.safetensors"))
        heads.load_state_dict(load_file(training / "heads.safetensors"))
        step = json.loads((training / "step.json").read_text())
    return vision, heads, step


def train(folder, steps, seed, lr=1e-3, batch_size=128, save_every=250, compile_encoder=True):
    """Train up to `steps`, from where the folder's training stands, and write the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    vision, heads, done = build(folder)
    encode = torch.compile(vision.encoder) if compile_encoder else vision.encoder
    modules = [vision, heads]
    parameters = [p for module in modules for p in module.parameters()]
    optimizers = optimizers_for(modules, lr)
    log = Log(folder / "log.jsonl", "encoder", steps, done)
    loader = DataLoader(DrawnTiles(batch_size, [seed, done]), batch_size=None, num_workers=1, prefetch_factor=8)
    for number, (tiles, covering, centred, words) in zip(range(done + 1, steps + 1), loader):
        with torch.autocast("cpu", torch.bfloat16):
            patches = encode(vision.embeddings(normalize(tiles))).last_hidden_state[:, 1:]
            loss, figures = heads(patches, covering, centred, words)
        loss.backward()
        step(optimizers, parameters, lr * schedule(number / steps))
        log.update(**figures)
        if number % save_every == 0 or number == steps:
            save_progress(vision, heads, folder, number)
    save(vision, folder)


@torch.no_grad()
def score(folder, count, seed=12345):
    """How well the thumbnails of `count` fresh drawings of each kind are read, by the head that is thrown away.

    Returns:
        {kind: {"exact": share whose every word is right, "as many words": share with the right number of words}}.

    Raises:
        FileNotFoundError: nothing has been trained in the folder, or its heads are gone.
    """
    vision, heads, steps = build(folder)
    if not steps:
        raise FileNotFoundError(f"{folder / 'training'}: no encoder with its heads; train one in {folder} first.")
    vision.eval()
    shares = {}
    for kind, draw_one in enumerate(draw.KINDS):
        rng = np.random.default_rng([seed, kind])
        cut = [samples.cut_tiles(draw_one(rng)) for _ in range(count)]
        tiles = torch.from_numpy(np.stack([tiles[-1] for tiles, *_ in cut]))
        words = torch.from_numpy(np.stack([words[-1] for *_, words in cut]))
        patches = torch.cat([vision(normalize(part)).last_hidden_state[:, 1:] for part in tiles.split(64)])
        read = heads.read(patches).argmax(-1)
        shares[draw_one.__name__.removeprefix("draw_")] = {
            "exact": (read == words).all(dim=1).float().mean().item(),
            "as many words": ((read != 0).sum(1) == (words != 0).sum(1)).float().mean().item(),
        }
    return shares


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=6000, help="of 128 tiles")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--score", type=int, metavar="COUNT", help="train nothing; read so many drawings of each kind")
    arguments = parser.parse_args()
    if arguments.score:
        print(json.dumps(score(arguments.folder, arguments.score)))
        return
    train(arguments.folder, arguments.steps, arguments.seed, arguments.lr)


if __name__ == "__main__":
    main()
