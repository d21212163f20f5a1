"""Builds the tokenizer of the nano language models: DeepSeek-R1-Distill-Qwen's, with a vocabulary of 1,021.

    python -m training.nano.tokenizer runs/nano/tokenizer

Normaliser, splitting (each digit alone), byte-level BPE and the added tokens are those of DeepSeek-R1-Distill-Qwen;
only the merges are new, learned from the nano tasks and the model card's English. It knows no images: the three image
tokens come with the assembly, as they do at 38B.
"""

import json
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, trainers

from training.assemble import IMAGE_TOKENS
from tasks import samples

ROOT = Path(__file__).resolve().parents[2]
MAX_LENGTH = 4096  # tokens
VOCABULARY_SIZE = 1024  # rows of the embedding; the last three wait for the image tokens


def corpus(count=3000, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        sample = samples.text_sample(rng)
        yield sample.question
        yield samples.reasoned(sample)
    english = (ROOT / "docs" / "published_model_card.md").read_text(encoding="utf-8")
    yield "".join(character for character in english if ord(character) < 128)


def build():
    """The nano tokenizer's tokenizer.json as a dict."""
    serialized = json.loads((ROOT / "tokenizer.json").read_text(encoding="utf-8"))
    added = [token for token in serialized["added_tokens"] if token["content"] not in IMAGE_TOKENS]
    alphabet = sorted(token for token, index in serialized["model"]["vocab"].items() if index < 256)
    blank = dict(serialized, added_tokens=[], post_processor=None)
    blank["model"] = dict(serialized["model"], vocab={token: i for i, token in enumerate(alphabet)}, merges=[])
    tokenizer = Tokenizer.from_str(json.dumps(blank))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(IMAGE_TOKENS) - len(added), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    base = len(model["vocab"])
    ids = {token["content"]: base + position for position, token in enumerate(added)}
    # Merges as strings: versions of tokenizers before 0.20 cannot read pairs
    model["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    serialized["model"] = dict(serialized["model"], vocab=model["vocab"], merges=model["merges"])
    serialized["added_tokens"] = [dict(token, id=ids[token["content"]]) for token in added]
    for special in serialized["post_processor"]["special_tokens"].values():
        special["ids"] = [ids[token] for token in special["tokens"]]
    return serialized


def write(folder):
    """Write tokenizer.json, and the configuration that the root's has."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(build(), ensure_ascii=False, indent=1)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    config = json.loads((ROOT / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["model_max_length"] = MAX_LENGTH
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2), encoding="utf-8")


def main():
    write(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
