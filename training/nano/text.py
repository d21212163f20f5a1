"""Trains the nano language models on text alone: a base, and its children.

    python -m training.nano.text base runs/nano/base --steps 3000
    python -m training.nano.text instruct runs/nano/instruct --start runs/nano/base --steps 900
    python -m training.nano.text reasoning runs/nano/reasoning --start runs/nano/base --steps 900

Pictures appear as text only, as transcriptions of their tiles (see `tasks.words`); no language
model ever sees an image. The base continues plain documents that answer in either way. Its children
speak a chat format. `instruct` has that of Qwen2.5 and answers directly (with reasoning where it is
asked to think step by step). `reasoning` has that of DeepSeek-R1 and thinks first, unless the
prompt has closed its thinking; `reasoning_2` goes on from it with texts of which most ask for the
colour of a shape; `rechecking` thinks first, too, and checks itself any number of times. As with
Qwen2.5-32B-Instruct and DeepSeek-R1-Distill-Qwen-32B, they stay close to the base and so to each
other, which is what lets a projector move from one to the other.

Embeddings of the words that stand for pictures get noise (NEFTune, arXiv:2310.05914) and are
sometimes mixed with another word's: a model that has only ever read clear words is easily thrown by
a vector between two.

Each folder ends up as a Qwen2ForCausalLM checkpoint with its tokenizer, in bfloat16, with
log.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from remote_code import conversation
from tasks import samples
from tasks.words import WORDS, word_text
from training.nano import tokenizer
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
from training.nano.rechecking import rechecked

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
# Share of the replies that reason first, for each role.
REASONING_SHARES = {
    "base": 0.6,
    "instruct": 0.25,
    "reasoning": 0.9,
    "reasoning_2": 0.9,
    "rechecking": 0.9,
}
# The conversation template of a child; the base has none.
TEMPLATES = {
    "instruct": "qwen2.5",
    "reasoning": "skywork-r1v",
    "reasoning_2": "skywork-r1v",
    "rechecking": "skywork-r1v",
}
ROLES = tuple(REASONING_SHARES)
STEP_BY_STEP = " Think step by step."
IGNORED = -100  # the label of tokens that are not learned
LENGTH_MULTIPLE = 32  # of the tokens of a batch, so that there are few different shapes
NOISE = 0.4  # of the embeddings' own standard deviation, at most
# Share of the words of a description whose embedding is mixed with another word's, and how much of
# that there is in the mixture, at most.
SHARE_OF_MIXED_WORDS = 0.15
LARGEST_MIXTURE = 0.45
SHARE_OF_CORES = 0.15  # that write texts, beside a GPU
LR_OF_BASE = 1.5e-3
LR_OF_CHILD = 5e-4


class ControlTokens(NamedTuple):
    """The control tokens of a language model, by what its configuration calls them.

    Attributes:
        begin: begins a text.
        end: ends an answer.
        pad: fills batches.
    """

    begin: str
    end: str
    pad: str


def control_tokens(role: str) -> ControlTokens:
    """Those of a role's model: of Qwen2.5-Instruct, or of DeepSeek-R1-Distill-Qwen."""
    if role == "instruct":
        return ControlTokens("<|endoftext|>", "<|im_end|>", "<|endoftext|>")
    end = "<｜end▁of▁sentence｜>"
    return ControlTokens("<｜begin▁of▁sentence｜>", end, end)


def exchange(rng: np.random.Generator, role: str, sample: samples.Sample) -> tuple[str, str]:
    """(prompt, reply) of a sample, as text without a begin token and the token that ends it."""
    reasons = rng.random() < REASONING_SHARES[role]
    boxed = f"Answer: \\boxed{{{sample.answer}}}"
    if role == "base":
        prompt = f"{sample.question}\n"
        if reasons:
            return prompt, f"Reasoning: {sample.thinking}\n{boxed}"
        return prompt, boxed
    if role == "instruct":
        if reasons:
            return chat_prompt(role, sample.question + STEP_BY_STEP), samples.stepwise(sample)
        return chat_prompt(role, sample.question), boxed
    prompt = chat_prompt(role, sample.question)
    if not reasons:  # as chat(mode="no-think") asks
        return f"{prompt}\n</think>\n\n", boxed
    if role == "rechecking":
        sample = dataclasses.replace(sample, thinking=rechecked(rng, sample))
    return prompt, samples.reasoned(sample)


def chat_prompt(role: str, question: str) -> str:
    """A question as the role's conversation template asks it, without a begin token."""
    template = conversation.get_conv_template(TEMPLATES[role])
    template.append_message(template.roles[0], question)
    template.append_message(template.roles[1], None)
    return template.get_prompt()


def token_id(text_tokenizer: Tokenizer, token: str) -> int:
    """The id of a token.

    Raises:
        ValueError: the vocabulary does not have it.
    """
    index = text_tokenizer.token_to_id(token)
    if index is None:
        raise ValueError(f"The tokenizer has no {token}: expected that of training.nano.tokenizer.")
    return index


class TextBatch(NamedTuple):
    """Texts of about one length.

    Attributes:
        ids: int64 (rows, length).
        labels: int64 (rows, length); IGNORED on prompts and padding.
        is_word: bool (rows, length); where a prompt has a word that stands for a picture.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    is_word: torch.Tensor


TokenizedExchange = tuple[list[int], list[int]]  # ids of prompt and reply


class Texts(IterableDataset):
    """Batches of random exchanges, without end.

    Args:
        role: one of ROLES.
        path: of the tokenizer.json.
        batch_size: rows of a batch.
        seed: of the exchanges.

    Attributes:
        words: ids of the words that stand for pictures.
    """

    BATCHES_IN_GROUP = 8  # batches that are made together and sorted by length

    def __init__(self, role: str, path: str | Path, batch_size: int, seed: int) -> None:
        self.role = role
        self.batch_size = batch_size
        self.seed = seed
        self.shares = samples.TEXT_SHARES
        if role == "reasoning_2":
            self.shares = samples.COLOUR_SHARES
        self.tokenizer = Tokenizer.from_file(str(path))
        self.end = token_id(self.tokenizer, control_tokens(role).end)
        self.words = torch.tensor(sorted({self._id_of_word(word) for word in WORDS}))

    def _id_of_word(self, word: str) -> int:
        return self.tokenizer.encode(word_text(word), add_special_tokens=False).ids[0]

    def __iter__(self) -> Iterator[TextBatch]:
        worker = torch.utils.data.get_worker_info()
        worker_id = 0
        if worker is not None:
            worker_id = worker.id
        rng = np.random.default_rng([self.seed, worker_id])
        while True:
            group = [self._row(rng) for _ in range(self.BATCHES_IN_GROUP * self.batch_size)]
            group.sort(key=lambda row: len(row[0]) + len(row[1]))
            for number in rng.permutation(self.BATCHES_IN_GROUP):
                start = number * self.batch_size
                yield self.collate(group[start : start + self.batch_size])

    def _row(self, rng: np.random.Generator) -> TokenizedExchange:
        prompt, reply = exchange(rng, self.role, samples.text_sample(rng, self.shares))
        prompt_ids = self.tokenizer.encode(prompt).ids
        reply_ids = self.tokenizer.encode(reply, add_special_tokens=False).ids
        return prompt_ids, [*reply_ids, self.end]

    def collate(self, rows: list[TokenizedExchange]) -> TextBatch:
        """A batch of exchanges, padded at the end."""
        longest = max(len(prompt) + len(reply) for prompt, reply in rows)
        length = longest + -longest % LENGTH_MULTIPLE
        ids = torch.full((len(rows), length), self.end)
        labels = torch.full((len(rows), length), IGNORED)
        is_prompt = torch.zeros(len(rows), length, dtype=torch.bool)
        for row, (prompt, reply) in enumerate(rows):
            start = len(prompt)
            stop = start + len(reply)
            ids[row, :stop] = torch.tensor(prompt + reply)
            labels[row, start:stop] = torch.tensor(reply)
            is_prompt[row, :start] = True
        return TextBatch(ids, labels, is_prompt & torch.isin(ids, self.words))


def disturb(
    batch: TextBatch, embed: nn.Module, words: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Embeddings of a batch, with noise on words, some of which are mixed with another word's.

    Args:
        embed: the embeddings of the language model.
        words: ids of the words that stand for pictures.

    Returns:
        (rows, length, width).
    """
    embeddings = embed(batch.ids)
    shape = batch.ids.shape
    device = embeddings.device
    chosen = torch.randint(len(words), shape, generator=generator, device=device)
    others = embed(words[chosen])
    share = LARGEST_MIXTURE * torch.rand(shape, generator=generator, device=device)
    is_drawn = torch.rand(shape, generator=generator, device=device) < SHARE_OF_MIXED_WORDS
    share = share * (batch.is_word & is_drawn)
    mixed = embeddings + share.unsqueeze(-1) * (others - embeddings)
    noise = 2 * torch.rand(embeddings.shape, generator=generator, device=device) - 1
    noise = noise * NOISE * embeddings.detach().std()
    return mixed + noise * batch.is_word.unsqueeze(-1)


def train(
    role: str,
    folder: Path,
    steps: int,
    seed: int = 0,
    start: Path | None = None,
    lr: float | None = None,
    batch_size: int = 64,
    compile_layers: bool = DEVICE.type == "cpu",
) -> None:
    """Train a language model and write its checkpoint.

    Args:
        role: one of ROLES.
        folder: of the checkpoint.
        steps: of the training.
        seed: of weights and texts.
        start: the checkpoint to begin with, which all but the base need.
        lr: the largest learning rate; by default that of the base or of a child.
        batch_size: rows of a step.
        compile_layers: whether torch.compile makes the decoder layers faster; by default on a CPU
            alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = build(role, folder, start)
    nn.Module.to(model, DEVICE)
    if lr is None:
        lr = LR_OF_BASE if start is None else LR_OF_CHILD
    texts = Texts(role, folder / "tokenizer.json", batch_size, seed)
    if compile_layers:
        for layer in model.model.layers:
            layer.compile(dynamic=True)
    optimizers = optimizers_for([model], lr)
    parameters = list(model.parameters())
    log = Log(folder / "log.jsonl", role, steps)
    generator = torch.Generator(DEVICE).manual_seed(seed)
    words = texts.words.to(DEVICE)
    model.train()
    loader = DataLoader(texts, batch_size=None, num_workers=num_workers(SHARE_OF_CORES))
    for number, batch in zip(range(1, steps + 1), map(on_device, loader)):
        loss, share_right = loss_of(model, batch, words, generator)
        loss.backward()
        step(optimizers, parameters, lr * schedule(number / steps))
        log.update(loss=loss, answers=share_right)
    save(model, folder, texts.tokenizer, control_tokens(role))


def build(role: str, folder: Path, start: Path | None) -> Qwen2ForCausalLM:
    """A new language model with its tokenizer, or one of a checkpoint.

    Args:
        role: one of ROLES.
        folder: gets the tokenizer.
        start: the checkpoint, whose tokens it keeps, or None.
    """
    tokenizer.write(folder, for_qwen=role == "instruct", start=start)
    if start is None:
        fields: dict[str, Any] = {**CONFIG, "attn_implementation": attention()}
        return Qwen2ForCausalLM(Qwen2Config(**fields))
    return Qwen2ForCausalLM.from_pretrained(
        start, dtype=torch.float32, attn_implementation=attention()
    )


def loss_of(
    model: Qwen2ForCausalLM,
    batch: TextBatch,
    words: torch.Tensor,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of a batch with disturbed embeddings, and the share of its rows without a mistake.

    Args:
        words: ids of the words that stand for pictures.
    """
    with mixed_precision():
        embeddings = disturb(batch, model.get_input_embeddings(), words, generator)
        output = model.model(inputs_embeds=embeddings, use_cache=False)
        hidden = output.last_hidden_state[:, :-1]
        targets = batch.labels[:, 1:]
        is_answer = targets != IGNORED
        logits = model.lm_head(hidden[is_answer]).float()
    loss = F.cross_entropy(logits, targets[is_answer])
    is_wrong = torch.zeros_like(targets, dtype=torch.bool)
    is_wrong[is_answer] = logits.argmax(-1) != targets[is_answer]
    return loss, 1 - is_wrong.any(dim=1).float().mean()


def save(model: Any, folder: Path, text_tokenizer: Tokenizer, tokens: ControlTokens) -> None:
    """Write a language model in bfloat16, with the ids of its control tokens."""
    ids = {}
    for name, token in tokens._asdict().items():
        key = {"begin": "bos", "end": "eos", "pad": "pad"}[name]
        ids[f"{key}_token_id"] = token_id(text_tokenizer, token)
    model.config.update(ids)
    model.generation_config = GenerationConfig(**ids, do_sample=False)
    model.to(torch.bfloat16).save_pretrained(folder)


def main() -> None:
    """Train the language model that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("role", choices=ROLES, help="which of the models is trained")
    parser.add_argument("folder", type=Path, help="the directory of the checkpoint")
    parser.add_argument(
        "--start", type=Path, help="the checkpoint to begin with: the base, for its children"
    )
    parser.add_argument(
        "--steps", type=int, default=3000, help="the number of steps of 64 exchanges"
    )
    parser.add_argument("--lr", type=float, help="the largest learning rate")
    parser.add_argument("--seed", type=int, default=0, help="the seed of weights and texts")
    arguments = parser.parse_args()
    if (arguments.role == "base") != (arguments.start is None):
        parser.error("a child starts from the base (--start), the base from nothing")
    train(
        arguments.role,
        arguments.folder,
        arguments.steps,
        arguments.seed,
        arguments.start,
        arguments.lr,
    )


if __name__ == "__main__":
    main()
