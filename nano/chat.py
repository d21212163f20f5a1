"""The calls of the model card: `chat()`, `batch_chat()`, and `chat_stream()` and `encode_images()`.

`ChatMixin` is a part of `SkyworkChatModel`. A call passes through four steps: its images become
tiles (chat_images.py), conversations become token ids (conversation.py), the settings of the
generation are completed (generation.py), and the generated ids become answers.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, TextIteratorStreamer
from transformers.utils import logging

from .chat_images import (
    ChatImages,
    ImageFeatures,
    images_of_batch,
    images_of_question,
    load_image_processor,
)
from .conversation import (
    IMAGE_CONTEXT,
    IMAGE_END,
    IMAGE_START,
    IMAGE_TOKENS,
    Conversation,
    Question,
    add_image_placeholders,
    encode_segments,
    ids_of_prompts_only,
    open_conversation,
    token_id,
)
from .device_map import device_of_embedding
from .generation import (
    AnswerStream,
    GenerationInterrupted,
    GenerationMonitor,
    SuppressedTokens,
    as_set,
    check_chat_options,
    copied_keywords,
    make_repetition_limit,
    make_thinking_budget,
    requested_setting,
    set_length,
    set_stop_and_pad_tokens,
)

logger = logging.get_logger(__name__)

MODES = ("think", "no-think")


@dataclasses.dataclass(frozen=True)
class ChatOptions:
    """How questions are asked and answered, the same for every question of a call.

    Attributes:
        generation_config: see `ChatMixin.chat`.
        mode: "think" or "no-think".
        system_message: in place of the model's own.
        thinking_budget: number of tokens after which the thinking is closed, or None.
        max_repetitions: how often a passage may stand in a row, or None.
        verbose: whether prompt and answer are logged.
        streamer: gets the generated tokens.
        monitor: keeps the generated ids, and can stop the generation.

    Raises:
        ValueError: an unknown mode.
    """

    generation_config: Any
    mode: str = "think"
    system_message: str | None = None
    thinking_budget: int | None = None
    max_repetitions: int | None = None
    verbose: bool = False
    streamer: TextIteratorStreamer | None = None
    monitor: GenerationMonitor = dataclasses.field(default_factory=GenerationMonitor)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} is unknown; expected 'think' or 'no-think'.")


class ChatMixin:
    """Conversations about images, for a model with `generate`, `extract_feature` and a template.

    Attributes:
        conv_template: the conversation template, which each call copies.
        system_message: the system message of every conversation, that of the template (R1V's has
            none) unless a script sets it.
    """

    if TYPE_CHECKING:  # what the model class brings
        config: Any
        conv_template: Conversation
        extract_feature: Callable[[torch.Tensor], torch.Tensor]
        generate: Callable[..., Any]
        generation_config: GenerationConfig
        get_input_embeddings: Callable[[], torch.nn.Module]
        num_image_token: int
        system_message: str
        vision_model: Any
        _image_processor: Any

    def chat(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: Any,
        question: str,
        generation_config: Any,
        history: list | None = None,
        return_history: bool = False,
        num_patches_list: Sequence[int] | None = None,
        IMG_START_TOKEN: str = IMAGE_START,
        IMG_END_TOKEN: str = IMAGE_END,
        IMG_CONTEXT_TOKEN: str = IMAGE_CONTEXT,
        verbose: bool = False,
        mode: str = "think",
        system_message: str | None = None,
        thinking_budget: int | None = None,
        max_repetitions: int | None = None,
    ) -> Any:
        """Ask a question about images, or about none.

        Args:
            tokenizer: the checkpoint's tokenizer, or its processor.
            pixel_values: all images of the conversation: their tiles one after another, (tiles,
                channels, side, side); or images (PIL images or paths), one or a list of them, which
                are tiled here; or what `encode_images` gave; or None.
            question: a text. The first `<image>` in it stand for the images, in order; any further
                one stays text. Where there is none at all, the images that the history does not
                account for are put in front of the question.
            generation_config: a dict of `generate`'s keywords (`max_new_tokens`, `do_sample`,
                `streamer` and so on) or a `GenerationConfig`; None is the checkpoint's. It is not
                changed. Without `max_new_tokens` an answer may take the rest of the context.
            history: earlier turns, a list of (question, answer), as returned. It is not changed.
            return_history: return (answer, history with this turn) rather than the answer.
            num_patches_list: number of tiles of each image; None means that all tiles are of one.
            verbose: log the prompt and the answer.
            mode: "think", or "no-think" for an answer without thinking; the same for models that do
                not think.
            system_message: in place of the model's own.
            thinking_budget: close `</think>` after so many tokens of thinking; without effect on
                "no-think".
            max_repetitions: close the thinking, or end the answer, where it repeats a passage more
                often in a row (see `RepetitionLimit`).

        Returns:
            The answer, with its thinking up to `</think>` (`split_thinking` in conversation.py
            takes the two apart).

        Raises:
            ValueError: fewer `<image>` than images; tiles that do not match; an unknown mode; a
                tokenizer without the image tokens; a request without room for an answer.
            GenerationInterrupted: on Ctrl-C, with what had been generated.
        """
        _check_image_tokens(IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN)
        tokenizer = _tokenizer_of(tokenizer)
        options = ChatOptions(
            generation_config, mode, system_message, thinking_budget, max_repetitions, verbose
        )
        images = images_of_question(pixel_values, num_patches_list, self._tile)
        answers, histories = self._ask(tokenizer, images, [question], [history], options)
        return (answers[0], histories[0]) if return_history else answers[0]

    def chat_stream(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: Any,
        question: str,
        generation_config: Any,
        history: list | None = None,
        num_patches_list: Sequence[int] | None = None,
        IMG_START_TOKEN: str = IMAGE_START,
        IMG_END_TOKEN: str = IMAGE_END,
        IMG_CONTEXT_TOKEN: str = IMAGE_CONTEXT,
        verbose: bool = False,
        mode: str = "think",
        system_message: str | None = None,
        thinking_budget: int | None = None,
        max_repetitions: int | None = None,
    ) -> AnswerStream:
        """`chat()` as an iterator over pieces of the answer, as they are generated.

        Leaving the loop, closing the stream or dropping it ends the generation with the token that
        is being computed.

        Args:
            As for `chat`, but for `return_history`: the stream has `answer` and `history`.

        Raises:
            ValueError: a `streamer` in the generation config, or an unknown mode. Whatever else
                `chat` raises comes while iterating.
        """
        if copied_keywords(generation_config).get("streamer") is not None:
            raise ValueError(
                "chat_stream() brings its own streamer: leave it out of the generation config."
            )
        _check_image_tokens(IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN)
        tokenizer = _tokenizer_of(tokenizer)
        options = ChatOptions(
            generation_config, mode, system_message, thinking_budget, max_repetitions, verbose
        )

        def ask(streamer: TextIteratorStreamer, monitor: GenerationMonitor) -> tuple[str, list]:
            streamed = dataclasses.replace(options, streamer=streamer, monitor=monitor)
            images = images_of_question(pixel_values, num_patches_list, self._tile)
            answers, histories = self._ask(tokenizer, images, [question], [history], streamed)
            return answers[0], histories[0]

        return AnswerStream(tokenizer, ask)

    def batch_chat(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: Any,
        questions: Sequence[str],
        generation_config: Any,
        num_patches_list: Sequence | None = None,
        history: Sequence | None = None,
        return_history: bool = False,
        IMG_START_TOKEN: str = IMAGE_START,
        IMG_END_TOKEN: str = IMAGE_END,
        IMG_CONTEXT_TOKEN: str = IMAGE_CONTEXT,
        verbose: bool = False,
        image_counts: Sequence | None = None,
        mode: str = "think",
        system_message: str | None = None,
        thinking_budget: int | None = None,
        max_repetitions: int | None = None,
    ) -> Any:
        """Ask several independent questions in one call; the answers are those of single calls.

        Args:
            pixel_values: the tiles of all questions' images, one after another; or a list with, for
                each question, None, an image (PIL or path), a list of images, or (for all that have
                images) what `encode_images` gave.
            questions: a list of texts.
            num_patches_list: for each question a list with the number of tiles of each of its
                images; or, as in the published code, one number for each question, which has one
                image, or none where the number is 0.
            history: for each question its earlier turns, or None.
            image_counts: older name of `num_patches_list`.
            The others as for `chat`.

        Returns:
            A list of answers, or (answers, histories) with `return_history`.

        Raises:
            ValueError: as `chat`, and a flat `num_patches_list` that can be read in several ways.
            GenerationInterrupted: on Ctrl-C, with what had been generated for each question.
        """
        _check_image_tokens(IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN)
        tokenizer = _tokenizer_of(tokenizer)
        options = ChatOptions(
            generation_config, mode, system_message, thinking_budget, max_repetitions, verbose
        )
        if isinstance(questions, str):
            raise ValueError(f"questions is one text, {questions!r}: pass a list, or call chat().")
        if not len(questions):
            return ([], []) if return_history else []
        histories = [None] * len(questions) if history is None else history
        if len(histories) != len(questions):
            raise ValueError(f"{len(questions)} questions but {len(histories)} histories.")
        num_patches_list = image_counts if num_patches_list is None else num_patches_list
        images = images_of_batch(pixel_values, num_patches_list, questions, self._tile)
        answers, histories = self._ask(tokenizer, images, questions, histories, options)
        return (answers, histories) if return_history else answers

    def encode_images(
        self, images: Any, num_patches_list: Sequence[int] | None = None
    ) -> ImageFeatures:
        """Encode images once, to keep them for further turns, questions or samples.

        Args:
            images: what `chat` takes: images or paths, one or a list, or `pixel_values` with
                `num_patches_list`.

        Returns:
            `ImageFeatures`, which `chat`, `batch_chat` and `chat_stream` take in place of the
            images; add two of them (`+`) as a conversation gets more images.

        Raises:
            ValueError: no image, or numbers that do not match.
        """
        if isinstance(images, ImageFeatures) and num_patches_list in (None, images.num_patches):
            return images
        given = images_of_question(images, num_patches_list, self._tile)
        if given.pixel_values is None:
            raise ValueError("No image was given to encode.")
        with torch.no_grad():
            features = self.extract_feature(given.pixel_values)
        return ImageFeatures(features, given.num_patches[0])

    def _tile(self, images: list) -> tuple[torch.Tensor, list[int]]:
        """Pixel values and number of tiles of images, by this repository's image processor."""
        if self._image_processor is None:
            self._image_processor = load_image_processor(self)
        dtype = self.vision_model.embeddings.patch_embedding.weight.dtype
        features = self._image_processor(images=images, dtype=dtype, return_tensors="pt")
        return features["pixel_values"], [int(count) for count in features["num_patches"]]

    def _ask(
        self,
        tokenizer: PreTrainedTokenizerBase,
        images: ChatImages,
        questions: Sequence[str],
        histories: Sequence[list | None],
        options: ChatOptions,
    ) -> tuple[list[str], list[list]]:
        """The answer to each question, and its history with this turn."""
        asked = [
            add_image_placeholders(question, history, len(num_patches))
            for question, history, num_patches in zip(questions, histories, images.num_patches)
        ]
        system_message = options.system_message
        if system_message is None:
            system_message = self.system_message
        conversations = [
            open_conversation(self.conv_template, question, history, system_message)
            for question, history in zip(asked, histories)
        ]
        prompts = self._encode_prompts(tokenizer, conversations, images, options.mode)
        answers = self._generate_answers(tokenizer, images, prompts, options)
        if options.verbose:
            for conversation, answer in zip(conversations, answers):
                logger.warning(f"{conversation.get_prompt()}{answer}")
        new_histories = [
            self._history_with_turn(history, question, answer, options.mode)
            for history, question, answer in zip(histories, asked, answers)
        ]
        return answers, new_histories

    def _encode_prompts(
        self,
        tokenizer: PreTrainedTokenizerBase,
        conversations: Sequence[Conversation],
        images: ChatImages,
        mode: str,
    ) -> list[list[int]]:
        """The token ids of each conversation up to where its answer begins."""
        if not images.is_empty and token_id(tokenizer, IMAGE_CONTEXT) is None:
            raise ValueError(
                f"The tokenizer has no token {IMAGE_CONTEXT}: load it from the checkpoint's own "
                "repository."
            )
        prompts = []
        for conversation, num_patches in zip(conversations, images.num_patches):
            segments = conversation.segments(
                [self.num_image_token * tiles for tiles in num_patches]
            )
            if mode == "no-think":
                segments.append((conversation.skipped_thinking, True))
            prompts.append(encode_segments(tokenizer, segments, conversation.begin))
        return prompts

    def _generate_answers(
        self,
        tokenizer: PreTrainedTokenizerBase,
        images: ChatImages,
        prompts: list[list[int]],
        options: ChatOptions,
    ) -> list[str]:
        """The answer to each prompt.

        Raises:
            GenerationInterrupted: on Ctrl-C.
        """
        longest = max(len(prompt) for prompt in prompts)
        keywords, config = self._generation_settings(tokenizer, longest, options)
        device = device_of_embedding(self.get_input_embeddings())
        pad_token_id = requested_setting(keywords, config, "pad_token_id")
        input_ids, attention_mask = left_pad(prompts, pad_token_id, device)
        stop_ids = as_set(requested_setting(keywords, config, "eos_token_id"))
        separator = self.conv_template.sep.strip()
        try:
            output = self.generate(
                pixel_values=images.pixel_values,
                visual_features=images.features,
                input_ids=input_ids,
                attention_mask=attention_mask,
                generation_config=config,
                image_token_id=token_id(tokenizer, IMAGE_CONTEXT),
                **keywords,
            )
        except KeyboardInterrupt as interrupt:
            rows = options.monitor.generated_rows(len(prompts))
            answers = decode_answers(tokenizer, rows, stop_ids, separator)
            raise GenerationInterrupted(answers) from interrupt
        sequences = output if torch.is_tensor(output) else output.sequences
        return decode_answers(tokenizer, sequences.tolist(), stop_ids, separator)

    def _generation_settings(
        self, tokenizer: PreTrainedTokenizerBase, longest: int, options: ChatOptions
    ) -> tuple[dict[str, Any], GenerationConfig | None]:
        """Keywords of `generate`, and the generation config where the caller gave one as such.

        Args:
            longest: number of tokens of the longest prompt.
        """
        given = options.generation_config
        if given is None:
            given = self.generation_config
        config = given if isinstance(given, GenerationConfig) else None
        keywords = copied_keywords(given)
        check_chat_options(keywords, config)
        set_stop_and_pad_tokens(keywords, config, tokenizer, self.conv_template)
        context = self.config.llm_config.max_position_embeddings
        max_new_tokens = set_length(keywords, config, longest, context)
        if options.streamer is not None:
            keywords["streamer"] = options.streamer
        if options.thinking_budget is not None and options.mode == "think":
            budget = make_thinking_budget(
                tokenizer, self.conv_template, options.thinking_budget, max_new_tokens
            )
            _append(keywords, "logits_processor", budget)
        if options.max_repetitions is not None:
            stop_ids = sorted(as_set(requested_setting(keywords, config, "eos_token_id")))
            limit = make_repetition_limit(
                tokenizer,
                self.conv_template,
                options.max_repetitions,
                stop_ids[0],
                thinks=options.mode == "think",
            )
            _append(keywords, "logits_processor", limit)  # after the budget, which it overrules
        suppressed = SuppressedTokens(ids_of_prompts_only(tokenizer, self.conv_template))
        _append(keywords, "logits_processor", suppressed)
        _append(keywords, "stopping_criteria", options.monitor)
        if requested_setting(keywords, config, "stop_strings"):
            keywords.setdefault("tokenizer", tokenizer)
        if config is not None:  # transformers deprecates settings beside a config
            config = copy.deepcopy(config)
            keywords = config.update(**keywords)
        return keywords, config

    def _history_with_turn(
        self, history: list | None, question: Question, answer: str, mode: str
    ) -> list:
        """The history with one more turn, which is replayed without thinking if it had none."""
        replayed = answer
        if mode == "no-think":
            replayed = self.conv_template.skipped_thinking + answer
        return [*(history or []), (question, replayed)]


def decode_answers(
    tokenizer: PreTrainedTokenizerBase, rows: list[list[int]], stop_ids: set, separator: str
) -> list[str]:
    """The text of each row of generated ids, up to its stop token or the separator.

    A row that a stop token has ended is padded, and the pad token may be an ordinary one.
    """
    ended = []
    for row in rows:
        stops = (place for place, token in enumerate(row, 1) if token in stop_ids)
        ended.append(row[: next(stops, len(row))])
    texts = tokenizer.batch_decode(ended, skip_special_tokens=True)
    return [text.split(separator)[0].strip() for text in texts]


def left_pad(
    rows: list[list[int]], pad_token_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of ids to (input_ids, attention_mask), each (rows, longest), padded on the left."""
    length = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), length), pad_token_id)
    attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        input_ids[index, length - len(row) :] = torch.tensor(row)
        attention_mask[index, length - len(row) :] = 1
    return input_ids.to(device), attention_mask.to(device)


def _check_image_tokens(*tokens: str) -> None:
    """Check that the model card's keywords name the tokens that the templates write."""
    if tokens != IMAGE_TOKENS:
        raise ValueError(
            f"The image tokens {tokens} were given; this model's are {IMAGE_TOKENS}: leave the "
            "keywords out."
        )


def _tokenizer_of(given: Any) -> PreTrainedTokenizerBase:
    """The tokenizer itself, or that of a processor."""
    return getattr(given, "tokenizer", given)


def _append(keywords: dict[str, Any], name: str, value: Any) -> None:
    """Append to a list among the keywords; the caller's list is not changed."""
    keywords[name] = [*(keywords.get(name) or []), value]
