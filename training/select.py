"""Keeps the samples of a data set that a judge model finds best.

    python -m training.select pool.jsonl selected.jsonl --judge runs/nano/mlp_init_1/model --keep 0.5

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

from training.data import IGNORED, Collator, ConversationFile, Encoder


@torch.no_grad()
def score_answers(model, batch, block=1024):
    """Mean log-likelihood (nats a token) of each row's answer tokens, float32 (rows,).

    Args:
        block: tokens whose logits are in memory at a time, over 152,064 words at 38B.
    """
    device = model.get_input_embeddings().weight.device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    labels = batch.pop("labels")[:, 1:]
    hidden_states = model.base_model(**batch, use_cache=False).last_hidden_state[
        :, :-1
    ]  # (rows, length - 1, H)
    labels = labels.to(hidden_states.device)  # of several GPUs the last
    rows, places = (labels != IGNORED).nonzero(as_tuple=True)
    total = torch.zeros(len(labels), device=labels.device)
    for of_rows, of_places in zip(rows.split(block), places.split(block)):
        logits = (
            model.get_output_embeddings()(hidden_states[of_rows, of_places])
            .to(labels.device)
            .float()
        )
        answered = labels[of_rows, of_places].unsqueeze(-1)
        total.index_add_(0, of_rows, logits.log_softmax(-1).gather(-1, answered).squeeze(-1))
    return total / (labels != IGNORED).sum(1)


class _Indexed(torch.utils.data.Dataset):
    """The samples that can be encoded, with their line; others are None and never selected."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data.encode_line(index)


class Scores:
    """Scores of lines, kept in a file as they come, so that an interrupted judging goes on.

    Args:
        path: of the file; one of another pool or judge is begun anew.
        of: what is scored by whom.
    """

    def __init__(self, path, of):
        self.path, self.values = path, {}
        header, *lines = path.read_text().splitlines() if path.exists() else [""]
        if header != json.dumps(of):
            path.write_text(json.dumps(of) + "\n")
            return
        for line in lines:
            index, _, value = line.partition(" ")
            if value.endswith(";"):  # a line that was cut off has no end
                self.values[int(index)] = float(value[:-1])

    def add(self, scores):
        self.values.update(scores)
        with open(self.path, "a") as file:
            file.writelines(f"{index} {value!r};\n" for index, value in scores.items())


def select(
    pool, output, judge, keep, batch_size=16, max_length=None, dtype="bfloat16", workers=1, image_root=None,
    max_broken_share=0.0,
):  # fmt: skip
    """Write the share `keep` of the lines that score best.

    Scores are kept beside the output while it is made; run again after an interruption, it goes on.

    Returns:
        (lines kept, lines scored).

    Raises:
        ValueError: `keep` outside (0, 1], a pool without usable lines, or with more broken ones than allowed.
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
    data = ConversationFile([pool], encoder, image_root, max_broken_share)
    collator = Collator(
        processor.tokenizer.pad_token_id,
        (3, processor.image_processor.size, processor.image_processor.size),
    )
    output = Path(output)
    scores = Scores(
        output.with_name(output.name + ".scores"), [data.fingerprint, str(judge), limit, dtype]
    )
    order = sorted(range(len(data)), key=data.length)  # rows of one length waste no padding
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    # The longest first: if one does not fit into memory it is this one
    batches = [batch for batch in reversed(batches) if not scores.values.keys() >= set(batch)]
    loader = DataLoader(_Indexed(data), batch_sampler=batches, collate_fn=list, num_workers=workers)
    for indices, encoded in zip(batches, tqdm(loader, desc="judge", unit="batch", mininterval=5)):
        usable = [(index, sample) for index, sample in zip(indices, encoded) if sample is not None]
        if usable:
            values = score_answers(model, collator([sample for _, sample in usable])).tolist()
            scores.add(dict(zip((index for index, _ in usable), values)))
    scored = scores.values
    if not scored:
        raise ValueError(f"{pool}: no sample could be scored.")
    ranked = sorted(scored, key=lambda index: (-scored[index], index))
    kept = sorted(ranked[: max(1, round(keep * len(ranked)))])
    temporary = output.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        for index in kept:
            row = {**data.row(index), "score": round(scored[index], 4)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    temporary.replace(output)
    scores.path.unlink()
    return len(kept), len(scored)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pool", type=Path, help="JSONL of conversations")
    parser.add_argument(
        "output", type=Path, help="JSONL to write; relative image paths stay as they are"
    )
    parser.add_argument("--judge", required=True, help="repository whose likelihood is the score")
    parser.add_argument("--keep", type=float, required=True, help="share that is kept")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--image-root", help="directory of relative image paths; by default that of the pool"
    )
    parser.add_argument(
        "--max-broken-share", type=float, default=0.0, help="of broken lines; more is an error"
    )
    arguments = parser.parse_args()
    try:
        kept, scored = select(
            arguments.pool, arguments.output, arguments.judge, arguments.keep, arguments.batch_size,
            image_root=arguments.image_root, max_broken_share=arguments.max_broken_share,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{kept} of {scored} samples kept in {arguments.output}")


if __name__ == "__main__":
    main()
