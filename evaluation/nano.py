"""Scores a checkpoint on the nano tasks, on pictures drawn afresh.

    python -m evaluation.nano --model nano --count 500 --seed 12345
    python -m evaluation.nano --model nano --quantization "bitsandbytes nf4"
    python -m evaluation.nano --model runs/nano/reasoning --text

Draws `count` samples of each family (training draws from other generator streams), asks through `batch_chat` with PIL
images, greedily, and compares what is in the last \\boxed{}. With `--text` the pictures are put into words, and a
language model alone can be asked; a few words are misread unless `--exact`. Prints a table with 95 % Wilson intervals,
and JSON as the last line.
"""

import argparse
import functools
import json
import math
import re
import sys
import time

import numpy as np
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
)

from evaluation.quantization import QUANTIZATIONS, stored_bytes
from tasks import samples

OPTIONS = {"max_new_tokens": 160, "do_sample": False}
STREAM = 0x5EED  # keeps these pictures apart from those of training, whatever the seed


def boxed(text):
    """What is in the last `\\boxed{}` of an answer, or None."""
    found = re.findall(r"\\boxed\{([^{}]*)\}", text)
    return found[-1].strip() if found else None


def wilson(right, total, z=1.96):
    """95 % interval of a share (E. B. Wilson, 1927)."""
    share, spread = right / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return middle - half, middle + half


def draw_samples(family, count, seed):
    """Generator and samples of a family; the generator is the one to put them into words with."""
    rng = np.random.default_rng([STREAM, seed, sorted(samples.FAMILIES).index(family)])
    return rng, [samples.FAMILIES[family](rng) for _ in range(count)]


def compare(drawn, ask, batch_size, progress):
    """(number right, list of wrong ones as (index, sizes of the pictures, expected, answer))."""
    right, wrong = 0, []
    for start in range(0, len(drawn), batch_size):
        batch = drawn[start : start + batch_size]
        for index, (sample, answer) in enumerate(zip(batch, ask(batch)), start=start):
            if boxed(answer) == sample.answer:
                right += 1
            else:
                wrong.append(
                    (index, [drawing.size for drawing in sample.drawings], sample.answer, answer)
                )
        if progress:
            progress(start + len(batch), right)
    return right, wrong


def score(model, tokenizer, family, count, seed, batch_size, progress=None):
    """Ask a repository of this code about pictures; see `compare`."""

    def ask(batch):
        images, questions = (
            [sample.images for sample in batch],
            [sample.question for sample in batch],
        )
        return model.batch_chat(tokenizer, images, questions, OPTIONS)

    return compare(draw_samples(family, count, seed)[1], ask, batch_size, progress)


def score_text(model, tokenizer, family, count, seed, batch_size, progress=None, exact=False):
    """Ask a language model, alone or within a repository, about pictures put into words; see `compare`.

    Args:
        exact: no words are misread.
    """
    rng, drawn = draw_samples(family, count, seed)

    def ask(batch):
        prompts = [
            f"<｜User｜>\n{samples.described(rng, sample, exact)}<｜Assistant｜><think>\n"
            for sample in batch
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        ids = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        output = model.generate(**ids, **OPTIONS, pad_token_id=tokenizer.pad_token_id)
        return tokenizer.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )

    return compare(drawn, ask, batch_size, progress)


def load(path, dtype, quantization="none", text=False):
    """(model, tokenizer) of a repository of this code or, for text alone, of a language model."""
    loading = {
        "torch_dtype": getattr(torch, dtype),
        "trust_remote_code": True,
        **QUANTIZATIONS[quantization](),
    }
    kind = AutoModel
    if text:
        composite = hasattr(
            AutoConfig.from_pretrained(path, trust_remote_code=True), "vision_config"
        )
        kind = AutoModelForImageTextToText if composite else AutoModelForCausalLM
    return kind.from_pretrained(path, **loading).eval(), AutoTokenizer.from_pretrained(
        path, trust_remote_code=True
    )


def evaluate(
    path, count=500, seed=12345, batch_size=100, dtype="float32", text=False, families=None
):
    """{family: {"right", "total", "interval"}} of a checkpoint, for scripts."""
    model, tokenizer = load(path, dtype, text=text)
    scored = {}
    for family in families or samples.FAMILIES:
        right, _ = (score_text if text else score)(
            model, tokenizer, family, count, seed, batch_size
        )
        scored[family] = result(right, count)
    return scored


def result(right, count):
    return {
        "right": right,
        "total": count,
        "interval": [round(bound, 4) for bound in wilson(right, count)],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--count", type=int, default=500, help="samples of each family")
    parser.add_argument(
        "--families", nargs="+", choices=samples.FAMILIES, default=list(samples.FAMILIES)
    )
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument(
        "--show-wrong", type=int, default=0, help="print so many wrong answers of each task"
    )
    parser.add_argument(
        "--text", action="store_true", help="pictures put into words; for language models, too"
    )
    parser.add_argument("--exact", action="store_true", help="with --text: no words misread")
    parser.add_argument(
        "--quantization", choices=QUANTIZATIONS, default="none", help="of the decoder layers"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of everything else"
    )
    arguments = parser.parse_args()
    if arguments.exact and not arguments.text:
        parser.error("--exact is about pictures put into words: add --text")
    transformers.logging.set_verbosity_error()
    model, tokenizer = load(
        arguments.model, arguments.dtype, arguments.quantization, arguments.text
    )
    results, begun = {}, time.time()
    for family in arguments.families:

        def progress(done, right, family=family):
            if sys.stderr.isatty():
                print(f"\r{family}: {right}/{done}", end="", file=sys.stderr)

        scorer = functools.partial(score_text, exact=arguments.exact) if arguments.text else score
        settings = (arguments.count, arguments.seed, arguments.batch_size)
        right, wrong = scorer(model, tokenizer, family, *settings, progress)
        results[family] = result(right, arguments.count)
        low, high = results[family]["interval"]
        print(
            f"{family:12} {right}/{arguments.count} = {right / arguments.count:.1%}  (95 %: {low:.1%} to {high:.1%})"
        )
        for index, sizes, expected, answer in wrong[: arguments.show_wrong]:
            print(f"  #{index} {sizes}: expected {expected}, said {answer!r}")
    record = {
        "seed": arguments.seed,
        "seconds": round(time.time() - begun),
        "quantization": arguments.quantization,
        "dtype": arguments.dtype,
        "bytes": {
            part: stored_bytes(getattr(model, part))
            for part in ("vision_model", "mlp1", "language_model")
            if hasattr(model, part)
        },
        "decoder_layers_bytes": stored_bytes(model.get_decoder().layers),
        "tasks": results,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
