"""Scores a served model by the report's protocol (technical report of R1V, section 3).

    python -m evaluation --api-url http://127.0.0.1:8000/v1 --model Skywork-R1V-38B \\
        --benchmarks mmmu math_vista math_500 aime24 gpqa_diamond --out runs/evaluation
    python -m evaluation --api-url http://127.0.0.1:8000/v1 --model nano --benchmarks nano

It asks any OpenAI-compatible endpoint, or several: at temperature 0.6, top_p 0.95 and a repetition
penalty of 1.05, for up to 65,536 tokens, five times each question without a seed. It prints the
table, and writes `results.json` and `page.html`, which shows every answer, into `--out`.

Run again after an interruption it asks what has no answer. Data sets are loaded from the Hugging
Face Hub, or with `--data DIR` from DIR/<benchmark>. A first `--limit 5` tells what all will take.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from evaluation import cost, protocol, report
from evaluation.adapter import EndpointModel
from evaluation.benchmarks import BENCHMARKS, load_items
from evaluation.families import FamilySet
from evaluation.items import Item, read_items
from evaluation.judging import STRATEGIES, THINKING, JudgeModel, Judging
from evaluation.results import Results, read_answers
from evaluation.run import ITEMS, answer_and_judge, prepared_items
from evaluation.run_folder import folder_of_run
from serving.client import Client
from serving.interrupt import exit_at_interrupt
from serving.reply_cache import ReplyCache
from serving.sampling import Sampling

REPLIES = "judge.sqlite"  # of the judge model, in the folder of a run


def main() -> int:
    """Evaluate as the command line asks; returns 1 where answers are missing, else 0."""
    arguments = _parse_arguments()
    sampling = _sampling(arguments)
    judge_client = _judge_client(arguments)
    client = _client(arguments, arguments.api_url, arguments.model)
    with folder_of_run(arguments.out, _settings(arguments, sampling)):
        items = {name: _items(arguments, name) for name in arguments.benchmarks}
        print(_estimate(arguments, items), file=sys.stderr)
        if arguments.estimate_only:
            return 0
        client.check(sampling.max_new_tokens)
        results = []
        judge_model = _judge_model(arguments, judge_client)
        with (
            exit_at_interrupt(),
            Judging(arguments.strategy, arguments.thinking, judge_model) as judging,
        ):
            for name, questions in items.items():
                model = EndpointModel(client, sampling, arguments.out / name, questions, judging)
                results.append(answer_and_judge(name, model, sampling.answers, client.capacity))
        results += _others(arguments)
        report.write(arguments.out, results, arguments.strategy, arguments.model)
    return 0 if all(result.is_complete for result in results) else 1


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Scores a served model by the report's protocol, or on the nano tasks."
    )
    add = parser.add_argument
    add("--api-url", nargs="+", required=True, help="one endpoint or several, such as http://…/v1")
    add("--model", required=True, help="the name that it is served under")
    add("--benchmarks", nargs="+", choices=[*BENCHMARKS, "nano"], required=True)
    add("--out", type=Path, default=Path("runs/evaluation"), help="folder of the run")
    add("--data", type=Path, help="directory with a directory for each benchmark")
    add("--limit", type=int, help="ask the first questions of each subject only")
    add("--count", type=int, default=500, help="of the nano tasks: samples of each family")
    add("--seed", type=int, default=12345, help="of the nano tasks: samples are drawn from it")
    add("--thinking", choices=THINKING, default="opened", help="absent: answers show no thinking")
    _add_sampling(parser.add_argument_group("how answers are drawn, by default as in the report"))
    _add_judging(parser.add_argument_group("how they are judged"))
    _add_requests(parser.add_argument_group("requests"))
    _add_estimate(parser.add_argument_group("the estimate before it starts"))
    arguments = parser.parse_args()
    if arguments.limit is not None and arguments.limit < 1:
        parser.error(f"--limit {arguments.limit}: expected at least 1, or leave it out for all")
    return arguments


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    settings = protocol.SAMPLING
    group.add_argument(
        "--repeats", type=int, default=settings.answers, help="answers to a question"
    )
    group.add_argument("--temperature", type=float, default=settings.temperature)
    group.add_argument("--top-p", type=float, default=settings.top_p)
    group.add_argument("--repetition-penalty", type=float, default=settings.repetition_penalty)
    group.add_argument("--max-new-tokens", type=int, default=settings.max_new_tokens)
    group.add_argument("--thinking-budget", type=int, help="tokens after which thinking is closed")


def _add_judging(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--strategy", choices=STRATEGIES, default="rule")
    group.add_argument("--judge-url", nargs="+", help="endpoints of the judge model")
    group.add_argument("--judge-model", help="the name that it is served under")


def _add_requests(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--concurrency", type=int, default=32, help="to an endpoint at a time")
    group.add_argument("--timeout", type=float, default=7200.0, help="seconds of one try")
    group.add_argument("--tries", type=int, default=8, help="after 429, 5xx or a lost connection")


def _add_estimate(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--expected-tokens", type=int, help="of an answer")
    group.add_argument("--tokens-per-second", type=float, help="of all endpoints together")
    group.add_argument("--gpus", type=int, help="of all endpoints together")
    group.add_argument("--price", type=float, help="of a GPU hour")
    group.add_argument("--estimate-only", action="store_true", help="print it and stop")


def _sampling(arguments: argparse.Namespace) -> Sampling:
    if arguments.repeats < 1:
        raise ValueError(f"--repeats {arguments.repeats}: expected at least 1.")
    return Sampling(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        repetition_penalty=arguments.repetition_penalty,
        thinking_budget=arguments.thinking_budget,
        answers=arguments.repeats,
    )


def _client(arguments: argparse.Namespace, urls: list[str], model: str) -> Client:
    return Client(urls, model, arguments.concurrency, arguments.timeout, arguments.tries)


def _judge_client(arguments: argparse.Namespace) -> Client | None:
    """The client of the judge model, whose endpoints answer, or None where none is asked."""
    if arguments.strategy == "rule":
        return None
    if not arguments.judge_url or not arguments.judge_model:
        raise ValueError(
            f"--strategy {arguments.strategy} needs --judge-url and --judge-model, or use "
            "--strategy rule."
        )
    client = _client(arguments, arguments.judge_url, arguments.judge_model)
    client.check()
    return client


def _judge_model(arguments: argparse.Namespace, client: Client | None) -> JudgeModel | None:
    if client is None:
        return None
    return JudgeModel(client, ReplyCache(arguments.out / REPLIES))


def _settings(arguments: argparse.Namespace, sampling: Sampling) -> dict[str, Any]:
    """What decides which questions are asked, how, and how answers are judged.

    Where the endpoints are, and how many requests they get, may change while a run goes on.
    """
    return {
        "model": arguments.model,
        "limit": arguments.limit,
        "nano": {"count": arguments.count, "seed": arguments.seed},
        "sampling": dataclasses.asdict(sampling),
        "thinking": arguments.thinking,
        "strategy": arguments.strategy,
        "judge": arguments.judge_model,
    }


def _items(arguments: argparse.Namespace, name: str) -> list[Item]:
    """The questions of a benchmark."""
    folder = arguments.out / name

    def load() -> list[Item]:
        """The questions from the data set, or drawn."""
        if name == "nano":
            return FamilySet(arguments.count, arguments.seed).items(folder)
        return load_items(name, folder, arguments.data, arguments.limit)

    return prepared_items(folder, load)


def _others(arguments: argparse.Namespace) -> list[Results]:
    """What earlier calls have answered of other benchmarks, for the table and the page."""
    others = []
    for name in (*BENCHMARKS, "nano"):
        if name in arguments.benchmarks:
            continue
        folder = arguments.out / name
        items = read_items(folder / ITEMS)
        if items:
            answers = read_answers(folder, arguments.repeats)
            others.append(Results(name, items, arguments.repeats, answers, {}))
    return others


def _estimate(arguments: argparse.Namespace, items: dict[str, list[Item]]) -> str:
    """The tokens, hours and money that are left, a line for each benchmark."""
    speed = cost.Speed(arguments.tokens_per_second, arguments.gpus, arguments.price)
    lines = []
    for name, questions in items.items():
        answers = read_answers(arguments.out / name, arguments.repeats).values()
        wanted = len(questions) * arguments.repeats
        expectation = cost.expected(name, wanted, answers, arguments.expected_tokens)
        lines.append(cost.text_of(name, len(questions), arguments.repeats, expectation, speed))
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; run it again to go on")
