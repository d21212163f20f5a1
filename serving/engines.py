"""The two engines of `serving.offline`: transformers, and vLLM's offline engine.

An engine has a method `answers(questions)`, which gives an entry of the file of answers for each
question, in the order in which they are finished.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from preprocessor.image_loading import open_image
from preprocessor.image_settings import opening_keywords
from remote_code import conversation, generation
from serving.question_file import Entry, Question, answer_entry, error_entry, key_of
from serving.sampling import Sampling

NEVER = -100.0  # a bias on the logit of a token
# vLLM schedules within a call: the answers of a call are on disk when all of it is done, and until
# then its images are in memory.
QUESTIONS_PER_CALL = 256
IMAGES_PER_CALL = 256


# -- transformers ----------------------------------------------------------------------------------


class TransformersEngine:
    """`batch_chat`, in batches of questions with about as many images and as long a text."""

    def __init__(
        self, model: str, dtype: str, batch_size: int, sampling: Sampling, device: Any = None
    ) -> None:
        """Load a model.

        Args:
            model: directory, or id on the Hub.
            dtype: name of a torch dtype.
            batch_size: questions that are answered together.
            sampling: how answers are drawn.
            device: a device or a device map; None spreads the model over all GPUs.
        """
        if device is None and torch.cuda.is_available():
            device = "split"
        self.model = AutoModel.from_pretrained(
            model, torch_dtype=getattr(torch, dtype), device_map=device, trust_remote_code=True
        ).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=True)
        self.template = conversation.get_conv_template(self.model.config.template)
        self.stops = {
            conversation.token_id(self.tokenizer, token) for token in self.template.stop_strings
        }
        self.batch_size = batch_size
        self.sampling = sampling
        self.options = {
            "max_new_tokens": sampling.max_new_tokens,
            "do_sample": sampling.temperature > 0,
        }
        if sampling.temperature:
            self.options |= {"temperature": sampling.temperature, "top_p": sampling.top_p}

    def answers(self, questions: Sequence[Question]) -> Iterator[Entry]:
        """Entries as they are finished, in the order of the batches."""
        # A batch shares its system message and its repetition penalty
        groups: dict[tuple[str | None, float], list[Question]] = {}
        for question in sorted(questions, key=_size_of_question):
            groups.setdefault((question["system"], self._penalty(question)), []).append(question)
        for group in groups.values():
            for start in range(0, len(group), self.batch_size):
                yield from self._answer_batch(group[start : start + self.batch_size])

    def _penalty(self, question: Question) -> float:
        """The repetition penalty of a question: its own, or that of the run."""
        return self.sampling.with_penalty(question.get("repetition_penalty")).repetition_penalty

    def _answer_batch(self, batch: list[Question]) -> Iterator[Entry]:
        """Entries of a batch; where it cannot be answered, each of its questions is asked alone.

        One bad question, or one that is too large, must not cost the others their answer.
        """
        monitor = generation.GenerationMonitor()
        seed = self.sampling.seed_of(*key_of(batch[0]))
        try:
            with torch.random.fork_rng(enabled=seed is not None):
                if seed is not None:
                    torch.manual_seed(seed)
                texts = self._ask(batch, monitor)
        except (ValueError, OSError, torch.cuda.OutOfMemoryError) as error:
            # Only the text is used below: the error holds the frames that it came through, and with
            # them what they have in memory.
            refusal = str(error)
        else:
            rows = monitor.generated_rows(len(batch))
            for question, text, ids in zip(batch, texts, rows):
                yield self._entry(question, text, ids)
            return
        if len(batch) == 1:
            yield error_entry(batch[0], refusal)
            return
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        for question in batch:
            yield from self._answer_batch([question])

    def _ask(self, batch: list[Question], monitor: generation.GenerationMonitor) -> list[str]:
        """The text of each answer of a batch.

        Args:
            batch: the questions, which share system message and repetition penalty.
            monitor: gets the generated ids.
        """
        options = {
            **self.options,
            "repetition_penalty": self._penalty(batch[0]),
            "stopping_criteria": [monitor],
        }
        return self.model.batch_chat(
            self.tokenizer,
            [question["images"] or None for question in batch],
            [question["question"] for question in batch],
            options,
            history=[question["history"] for question in batch],
            system_message=batch[0]["system"],
            thinking_budget=self.sampling.thinking_budget,
        )

    def _entry(self, question: Question, text: str, ids: Sequence[int]) -> Entry:
        """The entry of an answer.

        Args:
            question: that was asked.
            text: of the answer.
            ids: generated ids; padding follows the stop token.
        """
        written = len(ids)
        finish_reason = "length"
        for number, token in enumerate(ids, 1):
            if token in self.stops:
                written = number
                finish_reason = "stop"
                break
        return answer_entry(question, text, written, finish_reason, self.template.opens_thinking)


def _size_of_question(question: Question) -> tuple[int, int]:
    """What makes questions alike for a batch: number of images, and characters of text."""
    characters = len(question["question"]) + len(str(question["history"]))
    return len(question["images"]), characters


# -- vLLM ------------------------------------------------------------------------------------------


class VllmEngine:
    """vLLM's offline engine, which batches continuously."""

    def __init__(
        self,
        model: str,
        dtype: str,
        sampling: Sampling,
        tensor_parallel: int,
        max_images: int,
        llm_options: Mapping[str, Any],
    ) -> None:
        """Start vLLM.

        Args:
            model: directory, or id on the Hub.
            dtype: name of a torch dtype.
            sampling: how answers are drawn.
            tensor_parallel: number of GPUs.
            max_images: the most images of a question.
            llm_options: further arguments of vLLM's `LLM`.

        Raises:
            ValueError: a thinking budget, and a model that does not think or a vLLM without one.
        """
        import vllm  # pyright: ignore[reportMissingImports]  # an optional package

        config = AutoConfig.from_pretrained(model, trust_remote_code=True)
        processor = AutoImageProcessor.from_pretrained(model, trust_remote_code=True)
        self.refusals = _errors_of_refusals()
        self.opening = opening_keywords(processor)
        self.template = conversation.get_conv_template(config.template)
        self.tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=True)
        self.llm = vllm.LLM(
            model=model,
            dtype=dtype,
            trust_remote_code=True,
            tensor_parallel_size=tensor_parallel,
            limit_mm_per_prompt={"image": max_images},
            **_options_of_budget(sampling, self.template),
            **llm_options,
        )
        # vLLM does not know that a model must not write tokens of images.
        ids = conversation.ids_of_prompts_only(self.tokenizer, self.template)
        self.sampling = sampling
        self.make_parameters = vllm.SamplingParams
        self.parameters = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "logit_bias": dict.fromkeys(ids, NEVER),
        }
        if sampling.thinking_budget is not None:
            self.parameters["thinking_token_budget"] = sampling.thinking_budget

    def answers(self, questions: Sequence[Question]) -> Iterator[Entry]:
        """Entries, in calls of at most `QUESTIONS_PER_CALL` questions and `IMAGES_PER_CALL` images.

        A question with more images than that is a call by itself.
        """
        prompts: list[Any] = []
        asked: list[Question] = []
        num_images = 0
        for question in questions:
            num_images += len(question["images"])
            if len(asked) == QUESTIONS_PER_CALL or (asked and num_images > IMAGES_PER_CALL):
                yield from self._generate(asked, prompts)
                prompts = []
                asked = []
                num_images = len(question["images"])
            try:
                prompts.append(self._prompt(question))
                asked.append(question)
            except (ValueError, OSError) as error:
                yield error_entry(question, error)
        yield from self._generate(asked, prompts)

    def _generate(self, questions: list[Question], prompts: list[Any]) -> Iterator[Entry]:
        """Entries of questions; where vLLM refuses one of them, each is asked alone."""
        if not questions:
            return
        parameters = []
        for question in questions:
            seed = self.sampling.seed_of(*key_of(question))
            own = self.sampling.with_penalty(question.get("repetition_penalty"))
            parameters.append(
                self.make_parameters(
                    seed=seed, repetition_penalty=own.repetition_penalty, **self.parameters
                )
            )
        try:
            outputs = self.llm.generate(prompts, parameters, use_tqdm=False)
        except self.refusals as error:
            if len(questions) == 1:
                yield error_entry(questions[0], error)
                return
            for question, prompt in zip(questions, prompts):
                yield from self._generate([question], [prompt])
            return
        for question, output in zip(questions, outputs):
            answer = output.outputs[0]
            yield answer_entry(
                question,
                answer.text.strip(),
                len(answer.token_ids),
                answer.finish_reason,
                self.template.opens_thinking,
            )

    def _prompt(self, question: Question) -> dict[str, Any]:
        """A question as vLLM takes it: token ids, and images."""
        ids = prompt_ids_for_vllm(self.tokenizer, self.template, question)
        if not question["images"]:
            return {"prompt_token_ids": ids}
        images = [open_image(path, **self.opening) for path in question["images"]]
        return {"prompt_token_ids": ids, "multi_modal_data": {"image": images}}


def _options_of_budget(sampling: Sampling, template: conversation.Conversation) -> dict[str, Any]:
    """Arguments of vLLM's `LLM` that let it close a thinking, where there is a budget for it."""
    budget = sampling.thinking_budget
    if budget is None:
        return {}
    if not template.opens_thinking:
        raise ValueError(
            f"--thinking-budget {budget}: this model does not think (template={template.name!r})."
        )
    try:
        from vllm.config import (  # pyright: ignore[reportMissingImports]  # optional, too
            ReasoningConfig,
        )
    except ImportError as error:
        raise ValueError(
            f"--thinking-budget {budget}: this vLLM has no budgets; use --engine transformers."
        ) from error
    config = ReasoningConfig(
        reasoning_parser="deepseek_r1", reasoning_end_str=template.skipped_thinking
    )
    return {"reasoning_config": config}


def _errors_of_refusals() -> tuple[type[Exception], ...]:
    """The errors with which vLLM refuses a request: up to 0.31 a ValueError, then its own, too."""
    try:
        from vllm.exceptions import (  # pyright: ignore[reportMissingImports]  # optional, too
            VLLMClientError,
        )
    except ImportError:
        return (ValueError,)
    return (ValueError, VLLMClientError)


def context_limit(config: PretrainedConfig, vllm_options: Mapping[str, Any]) -> int | None:
    """Tokens that prompt and answer may have: the model's, or vLLM's `max_model_len`.

    Returns:
        None where `max_model_len` is not a number of tokens ("32k", -1).
    """
    model_limit = config.llm_config.max_position_embeddings
    requested = vllm_options.get("max_model_len", model_limit)
    return requested if isinstance(requested, int) and requested > 0 else None


# -- prompts for vLLM ------------------------------------------------------------------------------


def prompt_ids_for_vllm(
    tokenizer: PreTrainedTokenizerBase,
    template: conversation.Conversation,
    question: Mapping[str, Any],
) -> list[int]:
    """Ids of the prompt that `chat()` would build, with the text `<image>` in place of each image.

    vLLM puts an image's tokens where it first finds the ids of `<image>`. Where a system message or
    an earlier answer has this word, and its ids, in front of an image's place, the word is
    tokenized in two parts, which reads the same to the model.
    """
    num_images = len(question["images"])
    history = question["history"]
    asked = conversation.add_image_placeholders(question["question"], history, num_images)
    opened = conversation.open_conversation(template, asked, history, question["system"])
    placeholder = tokenizer(conversation.IMAGE_PLACEHOLDER, add_special_tokens=False)["input_ids"]
    parts = _split_at_images(opened.segments([1] * num_images))
    begins = [opened.begin] + [""] * num_images
    encoded = [
        conversation.encode_segments(tokenizer, part, begin) for part, begin in zip(parts, begins)
    ]
    ids, places = _join_with_placeholders(encoded, placeholder)
    if _occurrences(placeholder, ids)[: len(places)] == places:
        return ids
    encoded = [_encode_word_in_two(tokenizer, part, begin) for part, begin in zip(parts, begins)]
    return _join_with_placeholders(encoded, placeholder)[0]


def _split_at_images(segments: Sequence[conversation.Segment]) -> list[list[conversation.Segment]]:
    """The segments before, between and after the images, each of which has one token."""
    image = conversation.IMAGE_START + conversation.IMAGE_CONTEXT + conversation.IMAGE_END
    parts: list[list[conversation.Segment]] = [[]]
    for text, is_control in segments:
        if is_control and text == image:
            parts.append([])
        else:
            parts[-1].append((text, is_control))
    return parts


def _join_with_placeholders(
    parts: Sequence[list[int]], placeholder: list[int]
) -> tuple[list[int], list[int]]:
    """The ids of all parts with a placeholder between them, and where each placeholder begins."""
    ids = list(parts[0])
    places = []
    for part in parts[1:]:
        places.append(len(ids))
        ids += placeholder
        ids += part
    return ids, places


def _encode_word_in_two(
    tokenizer: PreTrainedTokenizerBase, segments: Sequence[conversation.Segment], begin: str
) -> list[int]:
    """Ids of segments in which every word `<image>` is tokenized as `<im` and `age>`."""
    pieces: list[list[conversation.Segment]] = [[]]
    for text, is_control in segments:
        first, *others = re.split("(?<=<im)(?=age>)", text)
        pieces[-1].append((first, is_control))
        for other in others:
            pieces.append([(other, is_control)])
    ids = conversation.encode_segments(tokenizer, pieces[0], begin)
    for piece in pieces[1:]:
        ids += conversation.encode_segments(tokenizer, piece)
    return ids


def _occurrences(wanted: list[int], ids: list[int]) -> list[int]:
    """Where a list of ids begins in another list."""
    return [start for start in range(len(ids)) if ids[start : start + len(wanted)] == wanted]
