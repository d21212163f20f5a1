"""Trains the nano checkpoint from nothing, end to end, on a CPU with two cores.

    python -m training.nano.train runs/nano --encoder-minutes 55 --text-minutes 6 --reading-minutes 40

Four stages, each of which starts from the files of the one before and can be run alone with `--stage`:

1. `encoder`: the vision tower alone learns to say for every 7 × 7 pixels which glyph or shape lies there (dense labels;
   the drawing code knows them). Without this the next-token loss alone learns to count and not to read.
2. `text`: the language model alone learns the two tasks' reasoning without pictures.
3. `reading`: the projector and the language model learn to answer about pictures, from the frozen encoder's features.
4. `joint`: everything trains, on the answers and on the dense labels.

The learning rate rises, stays, and falls to zero over the last part of each stage's minutes. `runs/nano` ends up with
`model.safetensors` (bf16) and a log; copy the weights to `nano/` and score them with `python -m evaluation.nano`.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from training.nano import draw, samples
from training.nano.package import load_package

ROOT = Path(__file__).resolve().parents[2]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LABELS = len(draw.LABELS) + 1


class DrawnTiles(IterableDataset):
    """Batches of labelled tiles: uint8 (tiles, side, side, 3), covering and centred labels (tiles, cells, cells)."""

    def __init__(self, batch_size, seed):
        self.batch_size, self.seed = batch_size, seed

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        pool = []
        while True:
            for tile, covering, centred in zip(*samples.cut_tiles(draw.draw(rng))):
                if covering.any() or rng.random() < 0.1:  # most empty tiles teach nothing
                    pool.append((tile, covering, centred))
            if len(pool) >= 4 * self.batch_size:  # so that a batch holds tiles of many pictures
                order = rng.permutation(len(pool))
                pool = [pool[index] for index in order]
                batch, pool = pool[: self.batch_size], pool[self.batch_size :]
                yield tuple(torch.from_numpy(np.stack(part)) for part in zip(*batch))


def normalize(tiles):
    """uint8 (tiles, side, side, 3) to normalised float32 (tiles, 3, side, side)."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return ((tiles.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def schedule(progress, warmup, decay=0.35):
    """Factor of the learning rate at `progress` in [0, 1]: linear up, flat, linear down to zero."""
    return max(0.0, min(1.0, progress / warmup, (1 - progress) / decay))


def optimizers_for(modules, lr):
    """Muon for the matrices of the hidden layers, AdamW for everything else (embeddings, heads, biases, gains).

    Muon's step is scaled to the size of AdamW's, so that one learning rate serves both.
    """
    named = [(name, p) for module in modules for name, p in module.named_parameters() if p.requires_grad]
    hidden = [p for name, p in named if p.dim() == 2 and "layers." in name]
    others = [p for name, p in named if not (p.dim() == 2 and "layers." in name)]
    groups = [
        {"params": [p for p in others if p.dim() > 1], "weight_decay": 0.05},
        {"params": [p for p in others if p.dim() <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
    if not hidden:
        return [adamw]
    return [adamw, torch.optim.Muon(hidden, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")]


class Run:
    """One stage's loop: time budget, schedule, log, and the weights written every few minutes."""

    def __init__(self, name, minutes, model, modules, lr, folder, warmup=0.03):
        self.name, self.seconds, self.model, self.lr, self.folder = name, 60 * minutes, model, lr, folder
        self.warmup = warmup
        self.parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.optimizers = optimizers_for(modules, lr)
        self.start = self.saved = time.time()
        self.step, self.seen = 0, 0
        self.sums = {}

    def progress(self):
        return (time.time() - self.start) / self.seconds

    def update(self, loss, count, **figures):
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * schedule(self.progress(), self.warmup)
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.seen += count
        for name, value in {**figures, "loss": loss}.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = total + float(value.detach() if torch.is_tensor(value) else value), count + 1
        if self.step % 100 == 0:
            self.report()
        if time.time() - self.saved > 180:
            self.save()

    def report(self):
        record = {"stage": self.name, "step": self.step, "seen": self.seen, "seconds": round(time.time() - self.start)}
        record.update({name: round(total / count, 4) for name, (total, count) in self.sums.items()})
        self.sums = {}
        with open(self.folder / "log.jsonl", "a") as log:
            log.write(json.dumps(record) + "\n")

    def save(self):
        save_weights(self.model, self.folder / "model.safetensors")
        self.saved = time.time()


def save_weights(model, path, dtype=torch.float32):
    temporary = path.with_suffix(".tmp")
    weights = {name: tensor.detach().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, temporary, metadata={"format": "pt"})  # transformers 4 insists on it
    temporary.replace(path)


def masked_accuracy(logits, labels):
    """Share of the cells that show something whose label is predicted."""
    shown = labels != 0
    return (logits.argmax(-1)[shown] == labels[shown]).float().mean()


class DenseHead(nn.Module):
    """Predicts both labels of the 2 × 2 cells of every patch, linearly, from the encoder's output."""

    def __init__(self, hidden_size, folder):
        super().__init__()
        self.linear = nn.Linear(hidden_size, 4 * 2 * LABELS)
        weights = torch.ones(2, LABELS)
        weights[0, 0], weights[1, 0] = 0.3, 0.1  # most cells show nothing
        self.register_buffer("weights", weights, persistent=False)
        self.path = folder / "head.safetensors"
        if self.path.exists():
            self.load_state_dict(load_file(self.path))

    def forward(self, features, covering, centred):
        """(loss, accuracy on covered cells, accuracy on cells with a middle) of features (tiles, patches, C)."""
        cells = self.linear(features).float()
        # (tiles, rows, columns, cell row, cell column, kind, labels)
        cells = cells.view(len(features), 8, 8, 2, 2, 2, LABELS)
        cells = cells.permute(5, 0, 1, 3, 2, 4, 6).reshape(2, len(features), 16, 16, LABELS)
        loss = sum(
            F.cross_entropy(cells[kind].flatten(0, 2), labels.flatten(), self.weights[kind])
            for kind, labels in enumerate((covering, centred))
        )
        return loss, masked_accuracy(cells[0], covering), masked_accuracy(cells[1], centred)

    def save(self):
        save_file(self.state_dict(), self.path)


def train_encoder(model, folder, minutes, seed, batch_size=128):
    """Stage 1: the dense labels alone."""
    vision = model.vision_model
    head = DenseHead(vision.config.hidden_size, folder)
    encode = torch.compile(vision.encoder)
    run = Run("encoder", minutes, model, [vision, head], 1e-3, folder)
    loader = DataLoader(DrawnTiles(batch_size, seed), batch_size=None, num_workers=1, prefetch_factor=8)
    for tiles, covering, centred in loader:
        with torch.autocast("cpu", torch.bfloat16):
            features = encode(vision.embeddings(normalize(tiles))).last_hidden_state[:, 1:]
            loss, covered, middle = head(features, covering, centred)
        run.update(loss, len(tiles), covering=covered, centred=middle)
        if run.progress() >= 1:
            break
    run.save()
    head.save()


class Encoder:
    """Token ids of prompts and answers as `chat()` builds them."""

    def __init__(self):
        self.tokenizer = Tokenizer.from_file(str(ROOT / "nano" / "tokenizer.json"))
        self.pad = self.tokenizer.token_to_id("<｜end▁of▁sentence｜>")

    def __call__(self, question, answer, tiles):
        """Ids and labels (-100 on the prompt) of one exchange; `tiles` is 0 for text only."""
        image = f"<img>{'<IMG_CONTEXT>' * (samples.TOKENS_PER_TILE * tiles)}</img>\n" if tiles else ""
        prompt = self.tokenizer.encode(f"<｜User｜>\n{image}{question}<｜Assistant｜><think>\n").ids
        reply = self.tokenizer.encode(answer, add_special_tokens=False).ids + [self.pad]
        return prompt + reply, [-100] * len(prompt) + reply

    def collate(self, exchanges, multiple=32):
        length = max(len(ids) for ids, _ in exchanges)
        length += -length % multiple
        input_ids = torch.full((len(exchanges), length), self.pad)
        labels = torch.full((len(exchanges), length), -100)
        for row, (ids, targets) in enumerate(exchanges):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            labels[row, : len(ids)] = torch.tensor(targets)
        return input_ids, labels


class DrawnExchanges(IterableDataset):
    """Batches of questions, about pictures or (a share of the batches) about text: (pictures or None, ids, labels).

    Pictures are the tiles of all questions with their two kinds of labels. Questions of about one length share a batch.
    Text is cheap: its batches are four times as large.
    """

    GROUP = 6  # batches that are drawn together and sorted by length

    def __init__(self, batch_size, seed, text_share):
        self.batch_size, self.seed, self.text_share = batch_size, seed, text_share

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        encoder, waiting = Encoder(), []
        while True:
            if rng.random() < self.text_share:
                exchanges = [encoder(*samples.text_sample(rng), 0) for _ in range(4 * self.batch_size)]
                yield None, *encoder.collate(exchanges)
                continue
            if not waiting:
                drawn = [self._draw(rng, encoder) for _ in range(self.GROUP * self.batch_size)]
                drawn.sort(key=lambda pair: len(pair[1][0]))
                waiting = [drawn[i : i + self.batch_size] for i in range(0, len(drawn), self.batch_size)]
                waiting = [waiting[index] for index in rng.permutation(self.GROUP)]
            batch = waiting.pop()
            pictures = tuple(torch.from_numpy(np.concatenate(part)) for part in zip(*(cut for cut, _ in batch)))
            yield pictures, *encoder.collate([exchange for _, exchange in batch])

    def _draw(self, rng, encoder):
        drawing = draw.draw(rng)
        cut = samples.cut_tiles(drawing)
        answer = samples.answer_text(drawing.thinking, drawing.answer)
        return cut, encoder(samples.phrase(rng, drawing.question), answer, len(cut[0]))


def answer_accuracy(logits, labels):
    """Share of the answers of which every token is predicted (teacher forced)."""
    right = (logits[:, :-1].argmax(-1) == labels[:, 1:]) | (labels[:, 1:] == -100)
    return right.all(dim=1).float().mean()


def train_answers(name, model, folder, minutes, seed, batch_size, text_share, lr, with_encoder=False):
    """Stages 2 to 4: next-token loss on the answers; where the encoder trains too, with its dense labels besides."""
    vision = model.vision_model
    vision.requires_grad_(with_encoder)
    head = DenseHead(vision.config.hidden_size, folder)
    modules = [model.mlp1, model.language_model] + ([vision, head] if with_encoder else [])
    encode = torch.compile(vision.encoder, dynamic=True)
    for layer in model.language_model.model.layers:
        layer.compile(dynamic=True)
    run = Run(name, minutes, model, modules, lr, folder)
    data = DrawnExchanges(batch_size, seed, text_share)
    for pictures, input_ids, labels in DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=8):
        figures, dense_loss, image_features = {}, 0, None
        with torch.autocast("cpu", torch.bfloat16):
            if pictures is not None:
                tiles, covering, centred = pictures
                with torch.set_grad_enabled(with_encoder):
                    patches = encode(vision.embeddings(normalize(tiles))).last_hidden_state[:, 1:]
                if with_encoder:
                    dense_loss, _, figures["centred"] = head(patches, covering, centred)
                image_features = model.mlp1(model.pixel_shuffle(patches.unflatten(1, (8, 8))).flatten(1, 2))
            output = model(input_ids=input_ids, image_features=image_features, labels=labels, use_cache=False)
        figures["text" if pictures is None else "answers"] = answer_accuracy(output.logits, labels)
        run.update(output.loss + 0.3 * dense_loss, len(input_ids), **figures)
        if run.progress() >= 1:
            break
    run.save()
    head.save()


def build_model(folder):
    package = load_package()
    config = package.SkyworkChatConfig.from_pretrained(ROOT / "nano")
    # Materialised attention is the faster one to train on a CPU at these lengths
    config._attn_implementation = "eager"
    model = package.SkyworkChatModel(config).float().train()
    if (folder / "model.safetensors").exists():
        model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stage", choices=["encoder", "text", "reading", "joint"], help="only this stage")
    parser.add_argument("--encoder-minutes", type=float, default=55)
    parser.add_argument("--text-minutes", type=float, default=6)
    parser.add_argument("--reading-minutes", type=float, default=40)
    parser.add_argument("--joint-minutes", type=float, default=0)
    parser.add_argument("--lr", type=float, help="peak learning rate of the stage, if not its default")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    model = build_model(arguments.folder)
    stages = [arguments.stage] if arguments.stage else ["encoder", "text", "reading", "joint"]
    for number, stage in enumerate(stages):
        minutes = getattr(arguments, f"{stage}_minutes")
        seed = 1000 * arguments.seed + number
        if minutes <= 0:
            continue
        if stage == "encoder":
            train_encoder(model, arguments.folder, minutes, seed)
        elif stage == "text":
            train_answers("text", model, arguments.folder, minutes, seed, 32, 1.0, arguments.lr or 1e-3)
        elif stage == "reading":
            train_answers("reading", model, arguments.folder, minutes, seed, 32, 0.4, arguments.lr or 7e-4)
        else:
            train_answers("joint", model, arguments.folder, minutes, seed, 32, 0.15, arguments.lr or 4e-4, True)
    save_weights(model, arguments.folder / "model-bf16.safetensors", torch.bfloat16)


if __name__ == "__main__":
    main()
