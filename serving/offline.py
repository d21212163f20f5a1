"""Answers a file of questions without a server: JSONL in, JSONL out, resumable.

    python -m serving.offline questions.jsonl answers.jsonl --model nano
    python -m serving.offline questions.jsonl answers.jsonl --tensor-parallel 4 \\
        --model Skywork/Skywork-R1V-38B

`serving/question_file.py` describes the lines. A question may have images, a system message and
earlier turns:

    {"id": "7", "question": "What is this?", "images": ["a.jpg"]}

Answers are greedy, unless a temperature is set. Then there can be several to a question:

    python -m serving.offline questions.jsonl answers.jsonl --temperature 0.6 --top-p 0.95 \\
        --repetition-penalty 1.05 --answers 5 --seed 0

A server, or several, can answer as well, any that is OpenAI-compatible:

    python -m serving.offline questions.jsonl answers.jsonl --model Skywork-R1V-38B \\
        --api-url http://10.0.0.1:8000/v1 http://10.0.0.2:8000/v1

Otherwise it runs on vLLM where that is installed (continuous batching), or on transformers, in
batches of questions that are as long as each other. Run again after an interruption it answers what
is missing. Questions that failed are asked again, and so are those whose answers were cut where
there is more room now.

With a seed an answer is the same in every run on vLLM. On transformers the answers of a batch share
a generator: there it is so with `--batch-size 1`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import AutoConfig

from serving.engines import TransformersEngine, VllmEngine, context_limit
from serving.interrupt import exit_at_interrupt
from serving.question_file import (
    Question,
    is_done,
    json_line,
    key_of,
    read_answers,
    read_questions,
    repeated,
)
from serving.sampling import Sampling

NANO = Path(__file__).resolve().parents[1] / "nano"
DEFAULT_MAX_NEW_TOKENS = 8192


@dataclasses.dataclass(frozen=True)
class Limits:
    """What may cut an answer; it is written into each line.

    Attributes:
        max_new_tokens: tokens that an answer may have.
        context: tokens that prompt and answer may have together, or None if that is not known.
    """

    max_new_tokens: int
    context: int | None


def main() -> int:
    """Answer what is not answered; returns 1 where a question failed, else 0."""
    arguments = _parse_arguments()
    use_vllm = not arguments.api_url and _uses_vllm(arguments.engine)
    if not use_vllm and (arguments.tensor_parallel > 1 or arguments.vllm_options):
        raise ValueError(
            "--tensor-parallel and --vllm-options are vLLM's, which does not answer here: install "
            "it, or leave them out."
        )
    limits = _limits(arguments, use_vllm)
    sampling = _sampling(arguments, limits)
    questions = repeated(read_questions(arguments.questions), sampling.answers)
    remaining = _unanswered(arguments.answers, questions, limits, sampling)
    if not remaining:
        print(f"All {len(questions)} questions are answered.", file=sys.stderr)
        return 0
    # An answer that cannot be written is not worth computing: fail before the model is loaded
    arguments.answers.open("a", encoding="utf-8").close()
    max_images = max(len(question["images"]) for question in questions)
    engine = _load_engine(arguments, use_vllm, sampling, max(1, max_images))
    recorded = {**dataclasses.asdict(limits), "sampling": sampling.recorded}
    leaving = exit_at_interrupt() if arguments.api_url else contextlib.nullcontext()
    try:
        with leaving:
            failed = _write_answers(arguments.answers, engine, remaining, len(questions), recorded)
    finally:
        # Leaves one line for each question and number.
        read_answers(arguments.answers, questions, sampling.recorded)
    if failed:
        print(
            f"{failed} of {len(remaining)} questions failed; their lines say why.", file=sys.stderr
        )
    return 1 if failed else 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Answers a file of questions without a server: JSONL in, JSONL out, resumable."
    )
    parser.add_argument("questions", type=Path, help="file of questions, one JSON object a line")
    parser.add_argument("answers", type=Path, help="file of answers, which is added to")
    parser.add_argument(
        "--model",
        default=str(NANO),
        help="directory, or id on the Hub; with --api-url the name that it is served under",
    )
    parser.add_argument("--api-url", nargs="+", default=[], help="endpoints that answer instead")
    parser.add_argument("--concurrency", type=int, default=32, help="to an endpoint at a time")
    parser.add_argument(
        "--no-thinking", action="store_true", help="the model behind the endpoints does not think"
    )
    parser.add_argument("--engine", choices=("auto", "vllm", "transformers"), default="auto")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        help=f"default: {DEFAULT_MAX_NEW_TOKENS}, at most half of the model's context",
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy, the default")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--thinking-budget", type=int, help="tokens after which thinking is closed")
    parser.add_argument(
        "--answers", dest="answers_each", type=int, default=1, help="to each question"
    )
    parser.add_argument("--seed", type=int, help="of the answers, where a temperature is set")
    parser.add_argument("--batch-size", type=int, default=8, help="questions, on transformers")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="GPUs, on vLLM")
    parser.add_argument(
        "--vllm-options", type=json.loads, default={}, help="more arguments of vLLM's LLM, as JSON"
    )
    return parser.parse_args()


def _uses_vllm(engine: str) -> bool:
    """Whether vLLM answers; "auto" chooses it where it is installed."""
    if engine == "auto":
        return importlib.util.find_spec("vllm") is not None
    return engine == "vllm"


def _limits(arguments: argparse.Namespace, use_vllm: bool) -> Limits:
    """What may cut an answer; of a server's model only the server knows the context."""
    if arguments.api_url:
        return Limits(arguments.max_new_tokens or DEFAULT_MAX_NEW_TOKENS, None)
    config = AutoConfig.from_pretrained(arguments.model, trust_remote_code=True)
    half_of_context = config.llm_config.max_position_embeddings // 2
    max_new_tokens = arguments.max_new_tokens or min(DEFAULT_MAX_NEW_TOKENS, half_of_context)
    vllm_options = arguments.vllm_options if use_vllm else {}
    return Limits(max_new_tokens, context_limit(config, vllm_options))


def _sampling(arguments: argparse.Namespace, limits: Limits) -> Sampling:
    return Sampling(
        max_new_tokens=limits.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        repetition_penalty=arguments.repetition_penalty,
        thinking_budget=arguments.thinking_budget,
        answers=arguments.answers_each,
        seed=arguments.seed,
    )


def _unanswered(
    path: Path, questions: list[Question], limits: Limits, sampling: Sampling
) -> list[Question]:
    """The questions that are to be asked, given a file of earlier answers."""
    earlier = read_answers(path, questions, sampling.recorded)
    done = set()
    for key, entry in earlier.items():
        if is_done(entry, limits.max_new_tokens, limits.context):
            done.add(key)
    return [question for question in questions if key_of(question) not in done]


def _load_engine(
    arguments: argparse.Namespace, use_vllm: bool, sampling: Sampling, max_images: int
) -> Any:
    """The engine, with its model loaded.

    Args:
        arguments: of the command line.
        use_vllm: rather than transformers.
        sampling: how answers are drawn.
        max_images: the most images of a question.

    Raises:
        ValueError: an endpoint cannot be reached, or does not serve the model.
    """
    if arguments.api_url:
        # The package openai is needed for these alone.
        from serving.client import Client
        from serving.endpoint_engine import EndpointEngine

        client = Client(arguments.api_url, arguments.model, arguments.concurrency)
        client.check(sampling.max_new_tokens)
        return EndpointEngine(client, sampling, not arguments.no_thinking)
    if use_vllm:
        return VllmEngine(
            arguments.model,
            arguments.dtype,
            sampling,
            arguments.tensor_parallel,
            max_images,
            arguments.vllm_options,
        )
    return TransformersEngine(arguments.model, arguments.dtype, arguments.batch_size, sampling)


def _write_answers(
    path: Path, engine: Any, remaining: list[Question], total: int, recorded: dict[str, Any]
) -> int:
    """Append an answer or an error for each remaining question, as they come.

    Args:
        path: of the file of answers.
        engine: which answers.
        remaining: the questions to ask.
        total: number of all questions, for the progress bar.
        recorded: limits and settings, which are written into each answer.

    Returns:
        How many questions failed.
    """
    failed = 0
    progress = tqdm(total=total, initial=total - len(remaining), unit="answer")
    with path.open("a", encoding="utf-8") as output, progress:
        for entry in engine.answers(remaining):
            if "error" in entry:
                failed += 1
            else:
                entry.update(recorded)
            output.write(json_line(entry))
            output.flush()
            progress.update()
    return failed


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; run it again to go on")
