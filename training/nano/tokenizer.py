"""Builds the tokenizer of the nano language models.

    python -m training.nano.tokenizer runs/nano/tokenizer

It is the tokenizer of DeepSeek-R1-Distill-Qwen with a vocabulary of 1,021: normaliser, splitting
(each digit alone), byte-level BPE and the added tokens are the same. Only the merges are new,
learned from the nano tasks and the model card's English. It knows no images: the three image tokens
come with the assembly, as they do at 38B.

The instruct child has the same vocabulary with the control tokens of Qwen2.5 (`for_qwen=True`),
which stand at the same ids at 38B, too: DeepSeek gave those of Qwen2.5 other names.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, trainers

from remote_code import conversation
from tasks import samples
from tasks.words import WORDS, word_text

ROOT = Path(__file__).resolve().parents[2]
MAX_LENGTH = 4096  # tokens
VOCABULARY_SIZE = 1024  # rows of the embedding; the last three wait for the image tokens
# Names that the same ids have in Qwen2.5.
NAMES_OF_QWEN = {
    "<｜end▁of▁sentence｜>": "<|endoftext|>",
    "<｜User｜>": "<|im_start|>",
    "<｜Assistant｜>": "<|im_end|>",
    "<｜begin▁of▁sentence｜>": "<|object_ref_start|>",
    "<|EOT|>": "<|object_ref_end|>",
    "<think>": "<|box_start|>",
    "</think>": "<|box_end|>",
}
SAMPLES_PER_LIST = 20  # between two lists of all words of transcriptions, of which some are rare
NUM_BYTES = 256  # the first tokens of a byte-level vocabulary, one for each byte


def corpus(count: int = 3000, seed: int = 0) -> Iterator[str]:
    """Texts that the merges are learned from: samples of the nano tasks, and some English."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        if number % SAMPLES_PER_LIST == 0:
            yield "".join(map(word_text, WORDS))
        sample = samples.text_sample(rng)
        yield sample.question
        yield samples.reasoned(sample)
    english = (ROOT / "docs" / "published_model_card.md").read_text(encoding="utf-8")
    yield "".join(character for character in english if ord(character) < 128)


def build() -> dict[str, Any]:
    """The nano tokenizer's tokenizer.json."""
    serialized = json.loads((ROOT / "tokenizer.json").read_text(encoding="utf-8"))
    added_tokens = []
    for token in serialized["added_tokens"]:
        if token["content"] not in conversation.IMAGE_TOKENS:
            added_tokens.append(token)
    model = _learn_merges(serialized, len(added_tokens))
    added_ids = {}
    for token_id, token in enumerate(added_tokens, start=len(model["vocab"])):
        token["id"] = token_id
        added_ids[token["content"]] = token_id
    serialized["model"]["vocab"] = model["vocab"]
    serialized["model"]["merges"] = _merges_as_strings(model["merges"])
    serialized["added_tokens"] = added_tokens
    for special in serialized["post_processor"]["special_tokens"].values():
        special["ids"] = [added_ids[token] for token in special["tokens"]]
    return serialized


def _learn_merges(serialized: dict[str, Any], num_added_tokens: int) -> dict[str, Any]:
    """Vocabulary and merges of byte-level BPE, learned from the corpus.

    Args:
        serialized: the tokenizer.json whose normaliser and splitting are taken.
        num_added_tokens: tokens of the vocabulary's size that are not learned.
    """
    alphabet = []
    for token, token_id in serialized["model"]["vocab"].items():
        if token_id < NUM_BYTES:
            alphabet.append(token)
    alphabet.sort()
    blank = dict(serialized, added_tokens=[], post_processor=None)
    byte_ids = dict(zip(alphabet, range(NUM_BYTES)))
    blank["model"] = dict(serialized["model"], vocab=byte_ids, merges=[])
    tokenizer = Tokenizer.from_str(json.dumps(blank))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(conversation.IMAGE_TOKENS) - num_added_tokens,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return json.loads(tokenizer.to_str())["model"]


def _merges_as_strings(merges: list[Any]) -> list[str]:
    """Merges as strings with a space: versions of tokenizers before 0.20 cannot read pairs."""
    strings = []
    for merge in merges:
        if not isinstance(merge, str):
            merge = " ".join(merge)
        strings.append(merge)
    return strings


def with_names_of_qwen(serialized: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer.json with the control tokens of Qwen2.5, which begins no text with a token."""
    text = json.dumps(serialized, ensure_ascii=False)
    for ours, theirs in NAMES_OF_QWEN.items():
        text = text.replace(json.dumps(ours, ensure_ascii=False), json.dumps(theirs))
    renamed = json.loads(text)
    renamed["post_processor"] = None
    return renamed


def write(folder: Path, for_qwen: bool = False, start: Path | None = None) -> None:
    """Write tokenizer.json, and the configuration that the root's has.

    Args:
        folder: that gets the files.
        for_qwen: whether the control tokens are those of Qwen2.5.
        start: the model that is trained further, whose tokens are kept; None to learn them. Another
            version of tokenizers may learn other merges from the same texts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if start is None:
        serialized = build()
    else:
        serialized = json.loads((start / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((ROOT / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["model_max_length"] = MAX_LENGTH
    if for_qwen:
        serialized = with_names_of_qwen(serialized)
        config = {
            "tokenizer_class": config["tokenizer_class"],
            "model_max_length": MAX_LENGTH,
            "add_bos_token": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
        }
    text = json.dumps(serialized, ensure_ascii=False, indent=1)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    text = json.dumps(config, ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Write the tokenizer into the directory that the command line names."""
    write(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
