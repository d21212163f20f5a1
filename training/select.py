"""Keeps the samples of a data set that a judge model finds best.

    python -m training.select pool.jsonl selected.jsonl --judge runs/nano/init_1/model --keep 0.5

The report selects the second set of its MLP initialisation with a judge model that it does not name (section 2.1).
Here the judge is any repository of this code, and the score of a sample is the mean log-likelihood of its answer's
tokens: what a model that has seen the pictures finds unlikely is often wrong. Lines are copied as they are, in their
order, and get a "score".
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from training.data import Collator, ConversationFile, Encoder


@torch.no_grad()
def score_answers(model, batch):
    """Mean log-likelihood (nats a token) of each row's answer tokens, float32 (rows,)."""
    device = model.get_input_embeddings().weight.device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    labels = batch.pop("labels")[:, 1:]
    logits = model(**batch, use_cache=False).logits[:, :-1].float()
    answered = labels != -100
    of_tokens = logits.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (of_tokens * answered).sum(1) / answered.sum(1)


class _Indexed(torch.utils.data.Dataset):
    """The samples that can be encoded, with their line; others are None and never selected."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data.encode_line(index)


def select(pool, output, judge, keep, batch_size=16, max_length=None, dtype="bfloat16", workers=1, image_root=None):
    """Write the share `keep` of the lines that score best.

    Returns:
        (lines kept, lines scored).

    Raises:
        ValueError: `keep` outside (0, 1], or a pool without usable lines.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep}: expected a share above 0, at most 1.")
    processor = AutoProcessor.from_pretrained(judge, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(
        judge, torch_dtype=getattr(torch, dtype), device_map="auto" if torch.cuda.is_available() else None,
        trust_remote_code=True,
    ).eval()  # fmt: skip
    limit = max_length or model.config.llm_config.max_position_embeddings
    encoder = Encoder(model.config, processor.tokenizer, processor.image_processor, limit)
    data = ConversationFile([pool], encoder, image_root, max_broken_share=0.99)
    collator = Collator(
        processor.tokenizer.pad_token_id, (3, processor.image_processor.size, processor.image_processor.size)
    )
    order = sorted(range(len(data)), key=data.length)  # rows of one length waste no padding
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    loader = DataLoader(_Indexed(data), batch_sampler=batches, collate_fn=list, num_workers=workers)
    scores = {}
    for indices, encoded in zip(batches, tqdm(loader, desc="judge", unit="batch", mininterval=5)):
        usable = [(index, sample) for index, sample in zip(indices, encoded) if sample is not None]
        if usable:
            values = score_answers(model, collator([sample for _, sample in usable])).tolist()
            scores.update(zip((index for index, _ in usable), values))
    if not scores:
        raise ValueError(f"{pool}: no sample could be scored.")
    ranked = sorted(scores, key=lambda index: (-scores[index], index))
    kept = sorted(ranked[: max(1, round(keep * len(ranked)))])
    temporary = Path(output).with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        for index in kept:
            row = {**data.row(index), "score": round(scores[index], 4)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    temporary.replace(output)
    return len(kept), len(scores)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pool", type=Path, help="JSONL of conversations")
    parser.add_argument("output", type=Path, help="JSONL to write; relative image paths stay as they are")
    parser.add_argument("--judge", required=True, help="repository whose likelihood is the score")
    parser.add_argument("--keep", type=float, required=True, help="share that is kept")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-root", help="directory of relative image paths; by default that of the pool")
    arguments = parser.parse_args()
    try:
        kept, scored = select(
            arguments.pool, arguments.output, arguments.judge, arguments.keep, arguments.batch_size,
            image_root=arguments.image_root,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{kept} of {scored} samples kept in {arguments.output}")


if __name__ == "__main__":
    main()
