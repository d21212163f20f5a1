"""Imports EvalScope, which replaces the handlers of the root logger when it is imported.

Everything else of this room takes EvalScope's names from here.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def _keeping_root_logging() -> Iterator[None]:
    """Give the root logger back what it had."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    root.handlers = []
    yield
    root.handlers = handlers
    root.setLevel(level)


with _keeping_root_logging():
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
