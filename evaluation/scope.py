"""Imports EvalScope, and gives the loggers of others back what it changes in them.

Everything else of this room takes EvalScope's names from here.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

# Loggers that it quietens: transformers_modules is that of a model's own code.
QUIETENED = ("datasets", "httpx", "modelscope", "transformers_modules")


@contextlib.contextmanager
def _keeping_loggers() -> Iterator[None]:
    """Give the root logger its handlers back, and those of QUIETENED their levels."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    levels = {name: logging.getLogger(name).level for name in ("", *QUIETENED)}
    root.handlers = []
    yield
    root.handlers = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


with _keeping_loggers():
    import evalscope  # noqa: F401  # registers its metrics and evaluators
    from evalscope.api.benchmark import BenchmarkMeta, DefaultDataAdapter
    from evalscope.api.dataset import DatasetDict, Sample
    from evalscope.api.dataset.builder import build_dataset_dict_from_record_map
    from evalscope.api.evaluator import TaskState
    from evalscope.api.messages import (
        ChatMessage,
        ChatMessageAssistant,
        ChatMessageUser,
        ContentImage,
        ContentReasoning,
        ContentText,
    )
    from evalscope.api.metric import Score
    from evalscope.api.model import (
        ChatCompletionChoice,
        GenerateConfig,
        Model,
        ModelAPI,
        ModelOutput,
        ModelUsage,
    )
    from evalscope.api.registry import BENCHMARK_REGISTRY, get_benchmark, register_benchmark
    from evalscope.config import TaskConfig
    from evalscope.evaluation_versioning import (
        ResolvedBenchmarkSpec,
        build_evaluation_identity,
        build_generated_evaluation_metadata,
    )
    from evalscope.models.utils.openai import openai_chat_message
    from evalscope.run import run_task
    from evalscope.utils.io_utils import OutputsStructure

__all__ = [
    "BENCHMARK_REGISTRY",
    "BenchmarkMeta",
    "ChatCompletionChoice",
    "ChatMessage",
    "ChatMessageAssistant",
    "ChatMessageUser",
    "ContentImage",
    "ContentReasoning",
    "ContentText",
    "DatasetDict",
    "DefaultDataAdapter",
    "GenerateConfig",
    "Model",
    "ModelAPI",
    "ModelOutput",
    "ModelUsage",
    "OutputsStructure",
    "ResolvedBenchmarkSpec",
    "Sample",
    "Score",
    "TaskConfig",
    "TaskState",
    "build_dataset_dict_from_record_map",
    "build_evaluation_identity",
    "build_generated_evaluation_metadata",
    "get_benchmark",
    "openai_chat_message",
    "register_benchmark",
    "run_task",
]
