"""Trains the nano language models on text alone: a base, and its two children.

    python -m training.nano.text base runs/nano/base --steps 3000
    python -m training.nano.text instruct runs/nano/instruct --start runs/nano/base --steps 900
    python -m training.nano.text reasoning runs/nano/reasoning --start runs/nano/base --steps 900

Pictures appear as text only, as transcriptions of their tiles (see `training.nano.samples`); no language model ever
sees an image. The base continues plain documents that answer in either way. Its children speak the chat format:
`instruct` answers directly (with reasoning where it is asked to think step by step), `reasoning` thinks first, unless
the prompt has closed its thinking. As with Qwen2.5-32B-Instruct and DeepSeek-R1-Distill-Qwen-32B, they stay close to
the base and so to each other, which is what lets a projector move from one to the other.

Embeddings of the words that stand for pictures get noise (NEFTune, arXiv:2310.05914) and are sometimes mixed with
another word's: a model that has only ever read clear words is easily thrown by a vector between two.

Each folder ends up as a Qwen2ForCausalLM checkpoint with its tokenizer, in bfloat16, with log.jsonl.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, IterableDataset
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from tasks import samples
from training.nano import tokenizer
from training.nano.loop import Log, optimizers_for, schedule, step

ROLES = ("base", "instruct", "reasoning")
CONFIG = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "max_position_embeddings": tokenizer.MAX_LENGTH,
    "max_window_layers": 5,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": tokenizer.MAX_LENGTH,
    "tie_word_embeddings": False,
    "vocab_size": tokenizer.VOCABULARY_SIZE,
}
STEP_BY_STEP = " Think step by step."
NOISE = 0.4  # of the embeddings' own standard deviation, at most
MIXED = 0.15  # share of the words of a description whose embedding is mixed with another word's


def exchange(rng, role, sample):
    """(prompt, reply) of a sample, as text without begin and end tokens."""
    reasons = rng.random() < {"base": 0.6, "instruct": 0.25, "reasoning": 0.9}[role]
    if role == "base":
        thinking = f"Reasoning: {sample.thinking}\n" if reasons else ""
        return f"{sample.question}\n", f"{thinking}Answer: \\boxed{{{sample.answer}}}"
    asked = STEP_BY_STEP if role == "instruct" and reasons else ""
    prompt = f"<｜User｜>\n{sample.question}{asked}<｜Assistant｜><think>\n"
    if role == "reasoning" and not reasons:  # as chat(mode="no-think") asks
        return f"{prompt}\n</think>\n\n", f"Answer: \\boxed{{{sample.answer}}}"
    return prompt, (samples.reasoned if reasons else samples.direct)(sample)


class Texts(IterableDataset):
    """Batches of int64 ids, labels (-100 on prompts) and bool `is_word` (rows, length), of rows of about one length."""

    GROUP = 8  # batches that are made together and sorted by length

    def __init__(self, role, path, batch_size, seed):
        self.role, self.batch_size, self.seed = role, batch_size, seed
        self.tokenizer = Tokenizer.from_file(str(path))
        self.end = self.tokenizer.token_to_id("<｜end▁of▁sentence｜>")
        self.words = torch.tensor(sorted({self.tokenizer.token_to_id(self._token(word)) for word in samples.WORDS}))

    def _token(self, word):
        return self.tokenizer.encode(samples.word_text(word), add_special_tokens=False).tokens[0]

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            rows = [self._row(rng) for _ in range(self.GROUP * self.batch_size)]
            rows.sort(key=lambda row: len(row[0]) + len(row[1]))
            for number in rng.permutation(self.GROUP):
                yield self.collate(rows[number * self.batch_size : (number + 1) * self.batch_size])

    def _row(self, rng):
        prompt, reply = exchange(rng, self.role, samples.text_sample(rng))
        prompt_ids = self.tokenizer.encode(prompt).ids
        return prompt_ids, self.tokenizer.encode(reply, add_special_tokens=False).ids + [self.end]

    def collate(self, rows, multiple=32):
        length = max(len(prompt) + len(reply) for prompt, reply in rows)
        length += -length % multiple
        ids = torch.full((len(rows), length), self.end)
        labels = torch.full((len(rows), length), -100)
        is_prompt = torch.zeros(len(rows), length, dtype=torch.bool)
        for row, (prompt, reply) in enumerate(rows):
            ids[row, : len(prompt) + len(reply)] = torch.tensor(prompt + reply)
            labels[row, len(prompt) : len(prompt) + len(reply)] = torch.tensor(reply)
            is_prompt[row, : len(prompt)] = True
        return ids, labels, is_prompt & torch.isin(ids, self.words)


def disturb(embeddings, ids, is_word, words, embed, generator):
    """Noise on the words of descriptions, and some of them mixed with another word's embedding."""
    others = embed(words[torch.randint(len(words), ids.shape, generator=generator)])
    share = 0.45 * torch.rand(ids.shape, generator=generator)
    share = share * (is_word & (torch.rand(ids.shape, generator=generator) < MIXED))
    mixed = embeddings + share.unsqueeze(-1) * (others - embeddings)
    noise = (2 * torch.rand(embeddings.shape, generator=generator) - 1) * NOISE * embeddings.detach().std()
    return mixed + noise * is_word.unsqueeze(-1)


def train(role, folder, steps, seed=0, start=None, lr=None, batch_size=64, compile_layers=True, config=None):
    """Train one of ROLES; `start` is the checkpoint to begin with, needed by all but the base."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    if start is None:
        tokenizer.write(folder)
        model = Qwen2ForCausalLM(Qwen2Config(**(config or CONFIG), attn_implementation="eager"))
    else:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(start / name, folder)
        model = Qwen2ForCausalLM.from_pretrained(start, dtype=torch.float32, attn_implementation="eager")
    lr = lr or (1.5e-3 if start is None else 5e-4)
    data = Texts(role, folder / "tokenizer.json", batch_size, seed)
    embed = model.get_input_embeddings()
    if compile_layers:
        for layer in model.model.layers:
            layer.compile(dynamic=True)
    optimizers = optimizers_for([model], lr)
    log = Log(folder / "log.jsonl", role, steps)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for number, (ids, labels, is_word) in enumerate(DataLoader(data, batch_size=None, num_workers=1), start=1):
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = disturb(embed(ids), ids, is_word, data.words, embed, generator)
            hidden = model.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state[:, :-1]
            targets = labels[:, 1:]
            answered = targets != -100
            logits = model.lm_head(hidden[answered]).float()
        loss = F.cross_entropy(logits, targets[answered])
        loss.backward()
        step(optimizers, list(model.parameters()), lr * schedule(number / steps))
        wrong = torch.zeros_like(targets, dtype=torch.bool)
        wrong[answered] = logits.argmax(-1) != targets[answered]
        log.update(loss=loss, answers=1 - wrong.any(dim=1).float().mean())
        if number == steps:
            break
    model.config.bos_token_id = data.tokenizer.token_to_id("<｜begin▁of▁sentence｜>")
    model.config.eos_token_id = model.config.pad_token_id = data.end
    ends = {"bos_token_id": model.config.bos_token_id, "eos_token_id": data.end, "pad_token_id": data.end}
    model.generation_config = GenerationConfig(**ends, do_sample=False)
    model.to(torch.bfloat16).save_pretrained(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--start", type=Path, help="checkpoint to begin with: the base, for its children")
    parser.add_argument("--steps", type=int, default=3000, help="of 64 exchanges")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if (arguments.role == "base") != (arguments.start is None):
        parser.error("a child starts from the base (--start), the base from nothing")
    train(arguments.role, arguments.folder, arguments.steps, arguments.seed, arguments.start, arguments.lr)


if __name__ == "__main__":
    main()
