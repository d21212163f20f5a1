"""A model in this process as EvalScope asks it: `batch_chat`, or a language model alone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
)

from evaluation.adapter import AskedModel, messages_of
from evaluation.items import Item
from evaluation.judging import Judging
from evaluation.quantization import QUANTIZATIONS
from evaluation.scope import ChatMessage
from remote_code import generation
from serving.client import Reply, RequestFailed

OPTIONS = {"max_new_tokens": 160, "do_sample": False}  # an answer to a nano task is short


def load(
    path: str, dtype: str, quantization: str = "none", in_words: bool = False
) -> tuple[Any, Any]:
    """(model, tokenizer) of a repository of this code or, for words alone, of a language model.

    The model is on a GPU where there is one. Quantized weights are on the CPU.

    Args:
        path: a directory, or a Hub id.
        dtype: of the weights that are not quantized, such as "float32".
        quantization: one of QUANTIZATIONS.
        in_words: whether only the language model will be asked.
    """
    auto_class = AutoModel
    if in_words:
        config = AutoConfig.from_pretrained(path, trust_remote_code=True)
        auto_class = AutoModelForCausalLM
        if hasattr(config, "vision_config"):
            auto_class = AutoModelForImageTextToText
    model = auto_class.from_pretrained(
        path,
        torch_dtype=getattr(torch, dtype),
        trust_remote_code=True,
        **QUANTIZATIONS[quantization](),
    )
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    if quantization == "none" and torch.cuda.is_available():
        nn.Module.to(model, "cuda")
    return model.eval(), tokenizer


class LocalModel(AskedModel):
    """Answers the questions of a run in batches of their order, by default greedily.

    A batch is always the same questions, whichever thread asks for one of them first: other
    batches round sums in other ways, and a few answers would change from run to run. Where answers
    are drawn at a temperature, the number of the batch is the seed, for the same reason.

    Args:
        name: of the model.
        model, tokenizer: from `load`.
        batch_size: questions that are asked at a time.
        folder, items, judging: see `AskedModel`.
        options: of transformers' `generate`; by default OPTIONS.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        batch_size: int,
        folder: Path,
        items: list[Item],
        judging: Judging,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(name, folder, items, judging)
        self.options = dict(options or OPTIONS)
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self._numbers = {_key(messages_of(item, folder)): n for n, item in enumerate(items)}
        self._replies: dict[int, list[Reply]] = {}  # by the number of the batch
        self._computing = threading.Lock()

    def ask(self, messages: list[ChatMessage]) -> Reply:
        """The reply to a question of the run, computed with the others of its batch."""
        number = self._numbers[_key(messages)]
        batch, place = divmod(number, self.batch_size)
        with self._computing:
            if batch not in self._replies:
                start = batch * self.batch_size
                asked = self.items[start : start + self.batch_size]
                with torch.random.fork_rng(enabled=bool(self.options.get("do_sample"))):
                    self._seed(batch)
                    self._replies[batch] = self._answer(asked)
        return self._replies[batch][place]

    def _seed(self, batch: int) -> None:
        """Have the answers of a batch drawn from its number, if they are drawn."""
        if self.options.get("do_sample"):
            torch.manual_seed(batch)

    def _answer(self, items: Sequence[Item]) -> list[Reply]:
        begun = time.monotonic()
        ask = self._ask_pictures if any(item.images for item in items) else self._ask_words
        try:
            written = ask(items)
        except (ValueError, OSError) as error:
            raise RequestFailed(str(error)) from error
        seconds = (time.monotonic() - begun) / len(items)
        replies = []
        for text, ids in written:
            tokens, finish_reason = self._length(ids)
            replies.append(Reply(text, "", finish_reason, None, tokens, seconds))
        return replies

    def _ask_pictures(self, items: Sequence[Item]) -> list[tuple[str, list[int]]]:
        """(text, token ids) of each answer, by `batch_chat`."""
        images = [[str(self.folder / image) for image in item.images] for item in items]
        questions = [item.text for item in items]
        monitor = generation.GenerationMonitor()
        options = {**self.options, "stopping_criteria": [monitor]}
        texts = self.model.batch_chat(self.tokenizer, images, questions, options)
        return list(zip(texts, monitor.generated_rows(len(items))))

    def _ask_words(self, items: Sequence[Item]) -> list[tuple[str, list[int]]]:
        """(text, token ids) of each answer, by the language model alone."""
        prompts = [f"<｜User｜>\n{item.text}<｜Assistant｜><think>\n" for item in items]
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True).to(self.model.device)
        output = self.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            pad_token_id=self.tokenizer.pad_token_id,
            **self.options,
        )
        rows = output[:, inputs["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return list(zip(texts, rows.tolist()))

    def _length(self, ids: Sequence[int]) -> tuple[int, str]:
        """(tokens of an answer, why it ends); padding follows the end of the answer."""
        end = self.tokenizer.eos_token_id
        if end in ids:
            return list(ids).index(end) + 1, "stop"
        return len(ids), "length"


def _key(messages: Sequence[ChatMessage]) -> str:
    """What tells the prompt of a question from others."""
    return json.dumps([message.model_dump(include={"content"}) for message in messages])
