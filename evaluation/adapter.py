"""The benchmarks as EvalScope runs them, and the models that it asks.

EvalScope has the pool of threads, the files of answers and verdicts, and going on from them. The
questions of a run, its prompts and its judging are ours, and one adapter serves all benchmarks.
"""

from __future__ import annotations

import abc
import threading
from pathlib import Path
from typing import Any

from evaluation.benchmarks import BENCHMARKS
from evaluation.items import Item
from evaluation.judging import Judging
from evaluation.scope import (
    BenchmarkMeta,
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageUser,
    ContentImage,
    ContentReasoning,
    ContentText,
    DatasetDict,
    DefaultDataAdapter,
    GenerateConfig,
    Model,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    Sample,
    Score,
    TaskState,
    build_dataset_dict_from_record_map,
    openai_chat_message,
    register_benchmark,
)
from serving.client import Client, Reply, RequestFailed
from serving.sampling import Sampling

SUBSET = "default"
RATING = "accuracy"
STOP_REASONS: dict[str, Any] = {
    "stop": "stop",
    "length": "max_tokens",
    "content_filter": "content_filter",
}


class AskedModel(ModelAPI, abc.ABC):
    """A model that is evaluated, with the questions of a run and the judging of its answers.

    EvalScope makes the adapter of a benchmark by itself, from settings that are plain data; the
    model is the only object that it hands through.

    Args:
        name: of the model.
        folder: of the run.
        items: its questions.
        judging: of its answers.
    """

    def __init__(self, name: str, folder: Path, items: list[Item], judging: Judging) -> None:
        super().__init__(model_name=name)
        self.folder = folder
        self.items = items
        self.judging = judging
        self.failures: dict[int, str] = {}
        self._lock = threading.Lock()

    @abc.abstractmethod
    def ask(self, messages: list[ChatMessage]) -> Reply:
        """The reply to a question.

        Raises:
            RequestFailed: there is none.
        """

    def generate(
        self, input: list[ChatMessage], tools: Any, tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        """The reply to a question, as EvalScope keeps it."""
        return output_of(self.model_name, self.ask(input))

    def failed(self, number: int, reason: str) -> None:
        """Remember why there is no answer."""
        with self._lock:
            self.failures[number] = reason


class EndpointModel(AskedModel):
    """A model behind OpenAI-compatible endpoints.

    Args:
        client: that asks them.
        sampling: how its answers are drawn.
        folder, items, judging: see `AskedModel`.
    """

    def __init__(
        self,
        client: Client,
        sampling: Sampling,
        folder: Path,
        items: list[Item],
        judging: Judging,
    ) -> None:
        super().__init__(client.model, folder, items, judging)
        self.client = client
        self.sampling = sampling

    def ask(self, messages: list[ChatMessage]) -> Reply:
        """The reply of an endpoint."""
        asked = [dict(openai_chat_message(message)) for message in messages]
        return self.client.ask(asked, self.sampling)


def messages_of(item: Item, folder: Path) -> list[ChatMessage]:
    """A question as a conversation; EvalScope reads the image files when it asks."""
    parts = []
    for part in item.parts():
        if isinstance(part, Path):
            parts.append(ContentImage(image=str((folder / part).resolve())))
        else:
            parts.append(ContentText(text=part))
    return [ChatMessageUser(content=parts)]


def output_of(model: str, reply: Reply) -> ModelOutput:
    """A reply as EvalScope keeps it."""
    content: Any = reply.text
    if reply.reasoning:
        content = [ContentReasoning(reasoning=reply.reasoning), ContentText(text=reply.text)]
    usage = ModelUsage(
        input_tokens=reply.prompt_tokens or 0,
        output_tokens=reply.completion_tokens or 0,
        total_tokens=(reply.prompt_tokens or 0) + (reply.completion_tokens or 0),
    )
    choice = ChatCompletionChoice(
        message=ChatMessageAssistant(content=content, model=model, source="generate"),
        stop_reason=STOP_REASONS.get(reply.finish_reason, "unknown"),
    )
    return ModelOutput(model=model, choices=[choice], usage=usage, time=reply.seconds)


class ItemAdapter(DefaultDataAdapter):
    """A benchmark whose questions were prepared, judged by the library of answers."""

    @property
    def asked(self) -> AskedModel:
        """The model that is evaluated."""
        model = self._task_config.model
        if not isinstance(model, AskedModel):
            raise ValueError(f"model {model!r}: expected an AskedModel, which has the questions.")
        return model

    def load(self) -> tuple[DatasetDict, None]:
        """The questions of the run, each as often as it is to be answered."""
        records = [{"number": number} for number in range(len(self.asked.items))]
        loaded = build_dataset_dict_from_record_map(
            {SUBSET: records},
            self.record_to_sample,
            location=str(self.asked.folder),
            limit=None,
            repeats=self.repeats,
            shuffle=False,
            seed=None,
        )
        return loaded, None

    def record_to_sample(self, record: dict[str, Any]) -> Sample:
        """A question with its prompt."""
        item = self.asked.items[record["number"]]
        return Sample(
            input=messages_of(item, self.asked.folder),
            target=item.golds[0],
            metadata={"id": item.id, "group": item.group},
        )

    def _on_inference(self, model: Model, sample: Sample) -> ModelOutput:
        """The answer to a question; why there is none is kept for the page."""
        try:
            return model.generate(input=sample.input)
        except RequestFailed as error:
            self.asked.failed(sample.id or 0, str(error))
            raise

    def match_score(
        self,
        original_prediction: str,
        filtered_prediction: str,
        reference: str,
        task_state: TaskState,
    ) -> Score:
        """What an answer counts, and why."""
        item = self.asked.items[task_state.group_id]
        judged = self.asked.judging.judge(
            item, original_prediction, bool(reasoning_of(task_state.output.message.content))
        )
        return Score(
            value={RATING: float(judged.is_right)},
            main_score_name=RATING,
            extracted_prediction=judged.answer or "",
            prediction=original_prediction,
            explanation=judged.reason,
            metadata={"rule": judged.rule, "judge": judged.judge},
        )


def reasoning_of(content: Any) -> str:
    """The thinking in the content of a message, as EvalScope keeps it."""
    if isinstance(content, str):
        return ""
    return "".join(part.reasoning for part in content if part.type == "reasoning")


def registered_name(benchmark: str) -> str:
    """The name of a benchmark of ours in EvalScope, whose own names are taken."""
    return f"r1v_{benchmark}"


_TITLES = {name: benchmark.title for name, benchmark in BENCHMARKS.items()}
for _name, _title in {**_TITLES, "nano": "Nano tasks"}.items():
    register_benchmark(
        BenchmarkMeta(
            name=registered_name(_name),
            pretty_name=_title,
            description=f"{_title} by the protocol of Skywork-R1V's report.",
            dataset_id=_name,
            subset_list=[SUBSET],
            metric_list=[RATING],
            eval_split="test",
        )
    )(ItemAdapter)
