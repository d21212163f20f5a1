"""Processor of Skywork-R1V: text and images to model inputs, in the form that pipelines and trainers expect.

processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
messages = [{"role": "user", "content": [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "What is it?"}]}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
"""

import re

import transformers
from packaging import version
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

# Only modules that import no further sibling: before 5.9 transformers copies the files that this one imports itself
from .image_loading import flatten_images

IMAGE_PLACEHOLDER = "<image>"
IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
THINK_END = "</think>"
# Put behind the first character of a control token that a user typed, so that tokenization takes it as text. It is a
# private-use character, and only recognised inside a token, so that no other text changes.
CUT = "\ue0c5"
IMAGE_KEYS = ("image", "url", "path", "base64", "image_url")
IMAGE_PARTS = ("image", "image_url")


class SkyworkChatProcessor(ProcessorMixin):
    """Image processor and tokenizer in one, with the chat template.

    Args:
        image_processor: `SkyworkImageProcessor`.
        tokenizer: the checkpoint's tokenizer.
        chat_template: in place of the tokenizer's.
        num_image_token: tokens of a tile (`config.num_image_token`).
    """

    if version.parse(transformers.__version__).major < 5:  # read off __init__ since 5.0
        attributes = ["image_processor", "tokenizer"]
        image_processor_class = "AutoImageProcessor"
        tokenizer_class = "AutoTokenizer"
        valid_kwargs = ["chat_template", "num_image_token"]

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template=None,
        num_image_token=256,
        **kwargs,
    ):
        self.num_image_token = num_image_token
        self.image_token = IMAGE_CONTEXT
        self.image_token_id = (
            None if tokenizer is None else tokenizer.convert_tokens_to_ids(IMAGE_CONTEXT)
        )
        if chat_template is None:
            chat_template = getattr(tokenizer, "chat_template", None)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @property
    def model_input_names(self):
        return ["input_ids", "attention_mask", "pixel_values"]

    def __call__(
        self,
        images=None,
        text=None,
        padding=False,
        padding_side=None,
        truncation=False,
        max_length=None,
        add_special_tokens=True,
        return_tensors=None,
        return_attention_mask=True,
        images_kwargs=None,
        text_kwargs=None,
        pad_to_multiple_of=None,
        **kwargs,
    ):
        """Model inputs of texts with images.

        Args:
            images: an image, a list of images, or a list with a list (or None) for each text.
            text: a text or a list of texts; each `<image>` stands for one image of that text, up to their number.
            padding: True or "longest" pads to the longest, "max_length" to `max_length`; on `padding_side`, by default
                the tokenizer's (left); the length is rounded up to `pad_to_multiple_of`.
            truncation: cut texts at `max_length`, except that image tokens are never cut.
            add_special_tokens: put the begin-of-sentence token in front where the text does not start with it.
            return_tensors: "pt", "np" or None (lists of ids; pixel_values are tensors always).
            images_kwargs, text_kwargs: more settings, as transformers' processors take them; further keywords go to
                the image processor.

        Returns:
            `BatchFeature`: input_ids, attention_mask, each (texts, length), and pixel_values (tiles, 3, side, side).

        Raises:
            ValueError: numbers of images and `<image>` that differ, no text, or truncation through an image.
        """
        options = dict(text_kwargs or {})
        padding, padding_side = (
            options.get("padding", padding),
            options.get("padding_side", padding_side),
        )
        max_length, truncation = (
            options.get("max_length", max_length),
            options.get("truncation", truncation),
        )
        add_special_tokens = options.get("add_special_tokens", add_special_tokens)
        pad_to_multiple_of = options.get("pad_to_multiple_of", pad_to_multiple_of)
        return_tensors = kwargs.pop("common_kwargs", {}).get("return_tensors", return_tensors)
        if text is None:
            raise ValueError("No text was given; for images alone call processor.image_processor.")
        texts = [text] if isinstance(text, str) else list(text)
        groups = self._images_of_texts(images, texts)
        data, num_patches = {}, []
        if any(groups):
            features = self.image_processor(groups, **{**kwargs, **(images_kwargs or {})})
            data["pixel_values"], num_patches = (
                features["pixel_values"],
                features["num_patches"].tolist(),
            )
        remaining = iter(num_patches)
        rows = []
        for prompt, group in zip(texts, groups):
            counts = [next(remaining) * self.num_image_token for _ in group]
            rows.append(self._encode(self._expand(prompt, counts), add_special_tokens))
        if truncation:
            rows = [self._truncate(row, max_length) for row in rows]
        rows, masks = self._pad(rows, padding, padding_side, max_length, pad_to_multiple_of)
        data["input_ids"] = rows
        if return_attention_mask:
            data["attention_mask"] = masks
        feature = BatchFeature(data=data, tensor_type=return_tensors)
        return feature

    def _images_of_texts(self, images, texts):
        """For each text the list of its images."""
        if images is None:
            return [[] for _ in texts]
        if isinstance(images, (list, tuple)) and any(
            entry is None or isinstance(entry, (list, tuple)) for entry in images
        ):
            if len(images) != len(texts):
                raise ValueError(f"{len(texts)} texts but {len(images)} lists of images.")
            return [flatten_images(entry) for entry in images]
        flat = flatten_images(images)
        if len(texts) == 1:
            return [flat]
        placeholders = [text.count(IMAGE_PLACEHOLDER) for text in texts]
        if sum(placeholders) != len(flat):
            raise ValueError(
                f"{len(flat)} images for {len(texts)} texts with {placeholders} {IMAGE_PLACEHOLDER}: pass a list of "
                "images for each text."
            )
        remaining = iter(flat)
        return [[next(remaining) for _ in range(count)] for count in placeholders]

    def _expand(self, text, counts):
        """The text with the first `<image>` in place of image tokens, `counts` of them for each image."""
        parts = text.split(IMAGE_PLACEHOLDER, len(counts))
        if len(parts) <= len(counts):
            raise ValueError(
                f"{len(counts)} image{'s' if len(counts) != 1 else ''} but {len(parts) - 1} {IMAGE_PLACEHOLDER} in the "
                f"text: write one {IMAGE_PLACEHOLDER} where each image belongs."
            )
        expanded = [parts[0]]
        for count, part in zip(counts, parts[1:]):
            expanded += [IMAGE_START + IMAGE_CONTEXT * count + IMAGE_END, part]
        return "".join(expanded)

    def _encode(self, text, add_special_tokens):
        """Ids of a text in which `protect` may have marked control tokens that are text."""
        begin = self.tokenizer.bos_token
        ids = []
        if begin and add_special_tokens and not text.startswith(begin):
            ids.append(self.tokenizer.convert_tokens_to_ids(begin))
        for part in self._protected_pattern().split(text):
            if part:
                ids += self.tokenizer(part, add_special_tokens=False)["input_ids"]
        return ids

    def _control_tokens(self):
        return sorted([*self.tokenizer.get_added_vocab(), IMAGE_PLACEHOLDER], key=len, reverse=True)

    def _protected_pattern(self):
        """Matches the mark inside a control token, and nothing else."""
        tokens = self._control_tokens()
        before = "|".join(sorted({re.escape(token[0]) for token in tokens}))
        after = "|".join(re.escape(token[1:]) for token in tokens)
        return re.compile(f"(?<={before}){CUT}(?={after})")

    def protect(self, text, is_answer=False, placeholders=True):
        """Mark the control tokens in a text, so that they are tokenized as what they look like.

        Args:
            is_answer: an assistant's text, whose first `</think>` closes the thinking that the template has opened.
            placeholders: leave `<image>` to stand for an image.
        """
        if is_answer and THINK_END in text:
            thinking, answer = text.split(THINK_END, 1)
            return (
                self.protect(thinking, False, False)
                + THINK_END
                + self.protect(answer, False, False)
            )
        tokens = [
            token
            for token in self._control_tokens()
            if not (placeholders and token == IMAGE_PLACEHOLDER)
        ]
        pattern = "|".join(re.escape(token) for token in tokens)
        return re.sub(pattern, lambda match: match.group()[0] + CUT + match.group()[1:], text)

    def apply_chat_template(
        self,
        conversation,
        chat_template=None,
        tools=None,
        add_generation_prompt=False,
        continue_final_message=False,
        tokenize=False,
        return_dict=False,
        return_tensors=None,
        **kwargs,
    ):
        """Render messages, and with `tokenize` make model inputs of them.

        Args:
            conversation: a list of messages `{"role", "content"}`, or a list of such lists. `content` is a string, or
                parts `{"type": "text", "text"}` and `{"type": "image", …}` with the image (PIL, path, URL, base64)
                under "image", "url", "path", "base64" or "image_url".
            tokenize, return_dict: the text; or the model inputs; or of these only input_ids.
            kwargs: keywords of `__call__`, also in a dict `processor_kwargs`; any other is a variable of the template
                (`enable_thinking`).

        Returns:
            What `tokenize` and `return_dict` ask for. A text marks control tokens that a user typed (see `protect`).
        """
        batched = bool(conversation) and isinstance(conversation[0], (list, tuple))
        conversations = conversation if batched else [conversation]
        of_call = dict(kwargs.pop("processor_kwargs", None) or {})
        return_tensors = of_call.pop("return_tensors", return_tensors)
        of_call.pop("add_special_tokens", None)  # which TRL gives; the template has written them
        of_call.update({name: kwargs.pop(name) for name in CALL_KEYWORDS if name in kwargs})
        images = [
            self._images_of_messages(messages, must_have=tokenize) for messages in conversations
        ]
        texts = [
            self.tokenizer.apply_chat_template(
                self._protected_messages(messages),
                chat_template=chat_template or self.chat_template,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tokenize=False,
                **kwargs,
            )
            for messages in conversations
        ]
        if not tokenize:
            return texts if batched else texts[0]
        inputs = self(
            text=texts,
            images=images if any(images) else None,
            return_tensors=return_tensors,
            add_special_tokens=False,
            **of_call,
        )
        if not batched and return_tensors is None:
            return inputs if return_dict else inputs["input_ids"][0]
        return inputs if return_dict else inputs["input_ids"]

    def _images_of_messages(self, messages, must_have):
        """The images of all content parts in order; a part without one is an error if `must_have`."""
        parts = [
            part for message in messages for part in _parts(message) if part["type"] in IMAGE_PARTS
        ]
        images = [image for part in parts for image in self._image_of_part(part)]
        if must_have and len(images) != len(parts):
            raise ValueError(
                f"{len(parts)} image parts but {len(images)} images in the messages: give each image part its image "
                f"under one of {', '.join(IMAGE_KEYS)}."
            )
        return images

    def _image_of_part(self, part):
        """The image of a content part as a list; empty for a bare placeholder, whose image is passed separately."""
        for key in IMAGE_KEYS:
            if part.get(key) is not None:
                value = part[key]
                if isinstance(
                    value, dict
                ):  # of the OpenAI API, or an image that `datasets` did not decode
                    known = [
                        value[name]
                        for name in ("url", "bytes", "path")
                        if value.get(name) is not None
                    ]
                    if not known:
                        raise ValueError(
                            f"An image part has {sorted(value)}: expected a url, bytes or a path."
                        )
                    value = known[0]
                return [value]  # the image processor opens it
        return []

    def _protected_messages(self, messages):
        """The messages with every control token that a user typed marked; a copy.

        Where any message has image parts, these say where the images are and every `<image>` typed is text. Texts that
        follow each other are protected as the one text that the template makes of them.
        """
        has_image_parts = any(
            part["type"] in IMAGE_PARTS for message in messages for part in _parts(message)
        )
        protected = []
        for message in messages:
            content, is_answer = message.get("content"), message["role"] == "assistant"
            # Where a server gave the thinking apart, `</think>` in the answer is a word
            is_answer = is_answer and not (
                message.get("reasoning") or message.get("reasoning_content")
            )
            placeholders = message["role"] == "user" and not has_image_parts
            if isinstance(content, str):
                content = self.protect(content, is_answer, placeholders)
            elif content is not None:
                merged = []
                for part in content:
                    if part["type"] == "text" and merged and merged[-1]["type"] == "text":
                        merged[-1]["text"] += part["text"]
                    else:
                        merged.append(
                            dict(part) if part["type"] == "text" else {"type": part["type"]}
                        )
                for part in merged:
                    if part["type"] == "text":
                        closes = is_answer and THINK_END in part["text"]
                        part["text"] = self.protect(part["text"], is_answer, placeholders)
                        is_answer = is_answer and not closes
                content = merged
            message = dict(message, content=content)
            for name in (
                "reasoning",
                "reasoning_content",
            ):  # of an answer whose parts a server gave apart
                if isinstance(message.get(name), str):
                    message[name] = self.protect(message[name], False, False)
            protected.append(message)
        return protected

    def _truncate(self, row, max_length):
        if max_length is None or len(row) <= max_length:
            return row
        if self.image_token_id in row[max_length:]:
            raise ValueError(
                f"max_length={max_length} would cut through an image of a text of {len(row)} tokens: raise it, or use "
                "fewer tiles (max_dynamic_patch)."
            )
        return row[:max_length]

    def _pad(self, rows, padding, padding_side, max_length, multiple):
        """(rows, attention masks), as lists, of one length if padding is asked for."""
        length = 0
        if padding is True or padding == "longest":
            length = max(len(row) for row in rows)
        elif padding == "max_length":
            length = max_length or self.tokenizer.model_max_length
        if multiple:
            length = -(-length // multiple) * multiple
        side = padding_side or self.tokenizer.padding_side
        padded, masks = [], []
        for row in rows:
            fill = max(0, length - len(row))
            pad, mask = [self.tokenizer.pad_token_id] * fill, [0] * fill
            padded.append(pad + row if side == "left" else row + pad)
            masks.append(mask + [1] * len(row) if side == "left" else [1] * len(row) + mask)
        return padded, masks

    def batch_decode(self, *args, **kwargs):
        """As the tokenizer's."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args, **kwargs):
        """As the tokenizer's."""
        return self.tokenizer.decode(*args, **kwargs)


def _parts(message):
    """The content parts of a message; none where its content is a string."""
    return message["content"] if isinstance(message.get("content"), (list, tuple)) else ()


CALL_KEYWORDS = (
    "padding",
    "padding_side",
    "truncation",
    "max_length",
    "pad_to_multiple_of",
    "return_attention_mask",
    "images_kwargs",
    "text_kwargs",
    "min_dynamic_patch",
    "max_dynamic_patch",
    "crop_to_patches",
    "use_thumbnail",
    "apply_exif_orientation",
    "alpha",
    "fast_resize",
    "dtype",
)
