"""What the nano trainings that are not on TRL share: schedule, optimizers, log.

They teach a network of a few million parameters from nothing on a CPU, where Muon learns in half the steps of AdamW;
the stages of the report are on TRL (`training.sft`).
"""

import json
import time

import torch
from torch import nn
from tqdm import tqdm


def schedule(progress, warmup=0.03, decay=0.6):
    """Factor of the learning rate at `progress` in [0, 1]: linear up, flat, linear down to zero."""
    return max(0.0, min(1.0, progress / warmup, (1 - progress) / decay))


def optimizers_for(modules, lr, betas=(0.9, 0.98)):
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
    adamw = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    return [adamw, torch.optim.Muon(hidden, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")]


def step(optimizers, parameters, lr):
    nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()


class Log:
    """Means of what was measured since the last line, in log.jsonl and beside the progress bar."""

    def __init__(self, path, stage, steps, done=0, every=50):
        self.path, self.stage, self.every = path, stage, every
        self.bar = tqdm(total=steps, initial=done, desc=stage, unit="step", mininterval=5)
        self.start, self.sums, self.count = time.time(), {}, done

    def update(self, **figures):
        self.count += 1
        self.bar.update()
        for name, value in figures.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = total + float(value.detach() if torch.is_tensor(value) else value), count + 1
        if self.count % self.every == 0 or self.count == self.bar.total:
            record = {"stage": self.stage, "step": self.count, "seconds": round(time.time() - self.start)}
            record.update({name: round(total / count, 4) for name, (total, count) in self.sums.items()})
            self.sums = {}
            self.bar.set_postfix({key: value for key, value in record.items() if key not in ("stage", "step")})
            with open(self.path, "a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
