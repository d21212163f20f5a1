"""Conversations about images, from JSONL or `datasets`, to what the model trains on.

A row, in the forms of InternVL's and LLaVA's data sets or of chat messages; images are paths relative to the image
root (by default the file's own directory), URLs, or whatever `datasets` decodes:

    {"image": "a.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "…"}]}
    {"images": ["a.jpg", "b.jpg"], "messages": [
        {"role": "user", "content": "<image>\\n<image>\\nCompare."}, {"role": "assistant", "content": "…"}]}

Each `<image>` in a question is an image, in order; a row without any puts its images in front of the first question.
An answer `thinking</think>answer` (a leading `<think>` may be there) is reasoning as R1V writes it; an answer without
`</think>` closes the thinking at once and answers. Prompts have the tokens that `chat()` gives them, and the loss is
on answers only.
"""

import dataclasses
import hashlib
import json
import warnings
from pathlib import Path

import datasets
import torch
from PIL import Image
from torch.utils.data import Dataset

from preprocessor.image_loading import LONGEST_PATH, open_image
from preprocessor.tiling import count_tiles
from remote_code import conversation

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
ROLES = {"human": USER, "user": USER, "gpt": ASSISTANT, "assistant": ASSISTANT, "system": SYSTEM}
IGNORED = -100
MAX_WORKERS = 256  # of a process, that can count what they read of a stream
COUNTED = ("read", "broken", "too_long", "fewer_tiles")  # samples; the last are among those read


class SampleError(ValueError):
    """A sample that cannot be trained on; the message says why."""


class TooLongError(SampleError):
    """A sample with more tokens than allowed, however few its tiles."""


@dataclasses.dataclass
class ChatSample:
    """A checked sample: (question, answer) pairs, a system message, and images in the order of the `<image>`."""

    turns: list
    images: list
    system: str = ""


def parse_row(row):
    """A row in any of the known forms.

    Raises:
        SampleError: roles that do not alternate, an empty answer, or other than one `<image>` for each image.
    """
    if not isinstance(row, dict):
        raise SampleError(f"expected an object, found {type(row).__name__}{_hint_at_array(row)}")
    messages = row.get("conversations") or row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise SampleError('expected a list "conversations" (InternVL, LLaVA) or "messages"')
    images = row.get("image") if row.get("images") is None else row["images"]
    images = (
        [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
    )
    texts = [_parse_message(message, bool(images)) for message in messages]
    system = texts.pop(0)[1] if texts[0][0] == SYSTEM else ""
    roles = [role for role, _ in texts]
    if len(roles) < 2 or roles != [USER, ASSISTANT] * (len(roles) // 2):
        raise SampleError(
            f"expected questions and answers in turns, found {', '.join(roles) or 'none'}"
        )
    questions, answers = [text for _, text in texts[::2]], [text for _, text in texts[1::2]]
    if not all(answer.strip() for answer in answers):
        raise SampleError("an answer is empty")
    placed = sum(question.count(conversation.IMAGE_PLACEHOLDER) for question in questions)
    if placed == 0:
        questions[0] = f"{conversation.IMAGE_PLACEHOLDER}\n" * len(images) + questions[0]
    elif placed != len(images):
        raise SampleError(f"{placed} <image> in the questions but {len(images)} images")
    return ChatSample(list(zip(questions, answers)), images, system)


def _parse_message(message, has_images):
    """(role, text) of a message in either form; image parts of a list become `<image>`.

    Args:
        has_images: whether the row lists its images, so that a part need not.
    """
    if not isinstance(message, dict):
        raise SampleError(f"a message is {type(message).__name__}, not an object")
    role, content = (
        message.get("from", message.get("role")),
        message.get("value", message.get("content")),
    )
    if role not in ROLES:
        raise SampleError(f"role {role!r} is unknown; expected one of {', '.join(ROLES)}")
    if isinstance(content, list):
        content = "".join(_text_of_part(part, has_images) for part in content)
    if not isinstance(content, str):
        raise SampleError(f"the content of a message is {type(content).__name__}, not text")
    return ROLES[role], content


def _text_of_part(part, has_images):
    if not isinstance(part, dict):
        raise SampleError(f"a part of a message is {type(part).__name__}, not an object")
    if part.get("type") != "text":
        own = [
            name
            for name in ("path", "url", "image", "image_url", "base64")
            if part.get(name) is not None
        ]
        if own and not has_images:
            raise SampleError(
                f'a part of a message has its image in itself ("{own[0]}"); list images under "images"'
            )
        return "<image>\n"
    if not isinstance(part.get("text"), str):
        raise SampleError(
            f"the text of a message's part is {type(part.get('text')).__name__}, not text"
        )
    return part["text"]


class Encoder:
    """Turns a `ChatSample` into ids, labels and tiles.

    Args:
        config: `SkyworkChatConfig` of the model.
        tokenizer, image_processor: of its repository.
        max_length: tokens of a sample at most.
        max_tiles: of an image, thumbnail not counted; by default the image processor's.
        long_samples: "fewer_tiles" halves the tiles of a sample's images until it fits, and drops it if even one tile
            each is too much; "drop" drops it at once. Nothing is ever cut off.
    """

    def __init__(
        self,
        config,
        tokenizer,
        image_processor,
        max_length,
        max_tiles=None,
        long_samples="fewer_tiles",
    ):
        if long_samples not in ("fewer_tiles", "drop"):
            raise ValueError(
                f"long_samples={long_samples!r} is unknown; expected 'fewer_tiles' or 'drop'."
            )
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.template = conversation.get_conv_template(config.template)
        self.tokens_per_tile = config.num_image_token
        self.max_length, self.long_samples = max_length, long_samples
        self.max_tiles = max_tiles or image_processor.max_dynamic_patch

    def __call__(self, sample, image_root=None):
        """A dict of input_ids and labels (int64, length), pixel_values (tiles, 3, side, side) or None, `fewer_tiles`.

        Raises:
            SampleError: an image that cannot be read.
            TooLongError: more than `max_length` tokens.
        """
        images = [self._open(image, image_root) for image in sample.images]
        processor, limit = self.image_processor, self.max_tiles
        while True:
            tiles = [self.count_tiles(image, limit) for image in images]
            ids, labels = self.tokens(sample, tiles)
            if len(ids) <= self.max_length:
                break
            if limit == 1 or not images or self.long_samples == "drop":
                raise TooLongError(
                    f"{len(ids)} tokens with at most {limit} tiles an image; {self.max_length} are allowed"
                )
            limit //= 2
        pixel_values = None
        if images:
            least = min(processor.min_dynamic_patch, limit)
            tiled = processor(images=images, min_dynamic_patch=least, max_dynamic_patch=limit)
            pixel_values = tiled["pixel_values"]
        return {
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor(labels),
            "pixel_values": pixel_values,
            "fewer_tiles": limit < self.max_tiles,
        }

    def tokens(self, sample, tiles):
        """Ids and labels (IGNORED on prompts) of a conversation whose images have so many tiles each."""
        remaining, ids, labels = [self.tokens_per_tile * count for count in tiles], [], []
        for number, (question, answer) in enumerate(sample.turns):
            count = question.count(conversation.IMAGE_PLACEHOLDER)
            count = min(count, len(remaining))
            own, remaining = remaining[:count], remaining[count:]
            asked = conversation.open_conversation(
                self.template,
                conversation.Question(question, count),
                system_message=sample.system if number == 0 else "",
            )
            begin = self.template.begin if number == 0 else ""
            prompt = conversation.encode_segments(self.tokenizer, asked.segments(own), begin)
            reply = conversation.encode_segments(self.tokenizer, self._answer_segments(answer))
            ids += prompt + reply
            labels += [IGNORED] * len(prompt) + reply
        return ids, labels

    def _answer_segments(self, answer):
        end = conversation.THINK_END
        if end not in answer:
            return [
                (self.template.skipped_thinking, True),
                (answer, False),
                (self.template.sep, True),
            ]
        if answer.lstrip().startswith("<think>"):
            answer = answer.lstrip().removeprefix("<think>").removeprefix("\n")
        thinking, _, rest = answer.partition(end)
        return [(thinking, False), (end, True), (rest, False), (self.template.sep, True)]

    def _open(self, image, image_root):
        if isinstance(image, dict):  # as `datasets` gives an image that it did not decode
            image = image.get("bytes") or image.get("path")
        path, processor = local_path(image, image_root), self.image_processor
        try:
            return open_image(path or image, processor.apply_exif_orientation, processor.alpha)
        except (OSError, ValueError, TypeError) as error:
            raise SampleError(f"image: {error}") from error

    def count_tiles(self, image, limit):
        """Tiles of an image (anything with a `size`), of which `limit` at most are no thumbnail."""
        processor = self.image_processor
        if not processor.dynamic_image_size:
            return 1
        smallest = min(processor.min_dynamic_patch, limit)
        return count_tiles(*image.size, smallest, limit, processor.size, processor.use_thumbnail)


def local_path(image, image_root=None):
    """Where the file of an image lies, or None: a URL, base64 text, or no text at all."""
    if (
        not isinstance(image, str)
        or "://" in image
        or image.startswith("data:")
        or len(image) > LONGEST_PATH
    ):
        return None
    return Path(image_root or "") / image


class Counts:
    """How many samples were read, broken, too long or given fewer tiles, by all workers of a process.

    A sample of a file counts once, however often it is read. Workers read ahead, so that a few more may be read than
    were trained on.

    Args:
        lines: samples of the data set, or None where it streams.
        broken: lines that were found broken before.
        max_broken_share: of broken samples among all; one more raises. Each process of a training counts what it reads.
    """

    def __init__(self, lines=None, broken=0, max_broken_share=0.0):
        # Shared with the workers: a row for each line, or of a stream one for each worker, which alone writes it
        shape, dtype = (1 + MAX_WORKERS, torch.int64) if lines is None else (lines, torch.uint8)
        self._rows = torch.zeros(shape, len(COUNTED), dtype=dtype).share_memory_()
        self.lines, self.broken, self.max_broken_share = lines, broken, max_broken_share

    def add(self, kind, line=None):
        column = COUNTED.index(kind)
        if line is not None:
            self._rows[line, column] = 1
            return
        worker = torch.utils.data.get_worker_info()
        self._rows[0 if worker is None else 1 + worker.id, column] += 1

    def is_unusable(self, line):
        return bool(
            self._rows[line, COUNTED.index("broken")] or self._rows[line, COUNTED.index("too_long")]
        )

    def _sums(self, rows):
        sums = dict(zip(COUNTED, rows.sum(0, dtype=torch.int64).tolist()))
        return {**sums, "broken": sums["broken"] + self.broken}

    def as_dict(self):
        return self._sums(self._rows)

    def over_processes(self, accelerator):
        """The counts of all processes of a training, in which a line counts once."""
        rows = accelerator.reduce(self._rows.to(accelerator.device, torch.int64), "sum")
        return self._sums(rows if self.lines is None else rows.clamp(max=1))

    def report_broken(self, where, error, line=None):
        """Count a broken sample and say which it is.

        Raises:
            SampleError: too many.
        """
        self.add("broken", line)
        counts = self.as_dict()
        seen = sum(counts[name] for name in ("read", "broken", "too_long"))
        total = max(1000, seen) if self.lines is None else self.lines + self.broken
        if counts["broken"] > self.max_broken_share * total:
            raise SampleError(
                f"{where}: {error}. Broken samples: {counts['broken']} of {total}; max_broken_share allows a share of "
                f"{self.max_broken_share:g}. Mend the data or raise it."
            ) from error
        warnings.warn(f"{where}: {error}; skipped", stacklevel=2)


class Conversations(Dataset):
    """Samples by number. One that turns out broken (an image that does not decode) or too long is counted, and another
    one, drawn at random, takes its place.

    Attributes:
        counts: `Counts`.
        fingerprint: changes with the data.
    """

    def row(self, index):
        """The row as it stands in the data."""
        raise NotImplementedError

    def where(self, index):
        """What messages call it."""
        raise NotImplementedError

    def root(self, index):
        """The directory of relative image paths, or None."""
        raise NotImplementedError

    def length(self, index):
        """About how many tokens a sample has: for grouping by length."""
        raise NotImplementedError

    def encode_line(self, index):
        """The encoded sample, or None for one that is counted as broken or too long."""
        return _encode(
            self.encoder,
            self.counts,
            lambda: self.row(index),
            self.root(index),
            self.where(index),
            index,
        )

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(index)
        sample = self._usable(index)
        if (
            sample is None
        ):  # its substitute is the same whenever it is asked for: a resumed training reads it again
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(index))
            sample = next(filter(None, map(self._usable, order.tolist())), None)
        if sample is None:
            raise SampleError("none of the samples can be used: all are broken or too long")
        return sample

    def _usable(self, index):
        return None if self.counts.is_unusable(index) else self.encode_line(index)


class ConversationFile(Conversations):
    """A JSONL file (or several) read line by line from disk, in any order.

    Lines are checked when the data set is made: form, roles, and whether image files exist.

    Args:
        paths: of the files.
        encoder: `Encoder`.
        image_root: directory of relative image paths; None: each file's own.
        max_broken_share: of broken lines among all that is put up with.

    Raises:
        FileNotFoundError: no such file.
        SampleError: no line at all, or too many broken ones.
    """

    def __init__(self, paths, encoder, image_root=None, max_broken_share=0.0):
        self.encoder, self._lines = encoder, []
        self.paths = [Path(path) for path in paths]
        self.image_root = image_root
        broken, content = [], hashlib.blake2b(digest_size=16)
        for number, path in enumerate(self.paths):
            if not path.is_file():
                raise FileNotFoundError(f"data file {path} does not exist.")
            with open(path, "rb") as file:
                offset = 0
                for line_number, line in enumerate(file, start=1):
                    content.update(line)
                    if line.strip():
                        try:
                            self._check(line, path)
                            self._lines.append((number, offset, line_number))
                        except SampleError as error:
                            broken.append(f"{path}, line {line_number}: {error}")
                    offset += len(line)
        total = len(self._lines) + len(broken)
        if not total:
            raise SampleError(f"no samples in {', '.join(map(str, self.paths))}")
        if len(broken) > max_broken_share * total:
            shown = "\n  ".join(broken[:10])
            raise SampleError(
                f"{len(broken)} of {total} lines are broken; max_broken_share allows a share of {max_broken_share:g}. "
                f"Mend them or raise it:\n  {shown}"
            )
        for message in broken:
            warnings.warn(f"{message}; skipped", stacklevel=2)
        self.counts = Counts(len(self._lines), len(broken), max_broken_share)
        self.fingerprint = content.hexdigest()

    def _root(self, path):
        return self.image_root or path.parent

    def _check(self, line, path):
        sample = parse_row(_parse_json(line))
        for image in sample.images:
            file = local_path(image, self._root(path))
            if file is not None and not file.is_file():
                raise SampleError(f"no image file {file}")

    def __len__(self):
        return len(self._lines)

    def where(self, index):
        number, _, line_number = self._lines[index]
        return f"{self.paths[number]}, line {line_number}"

    def root(self, index):
        return self._root(self.paths[self._lines[index][0]])

    def row(self, index):
        number, offset, _ = self._lines[index]
        with open(self.paths[number], "rb") as file:
            file.seek(offset)
            return _parse_json(file.readline())

    def length(self, index):
        """From the text and the sizes of the images, of which only the headers are read.

        An image that cannot be read counts nothing here: it is reported when its turn comes.
        """
        sample = parse_row(self.row(index))
        tokens = _tokens_of_text(sample)
        for image in sample.images:
            path = local_path(image, self.root(index))
            if path is None:
                continue
            try:
                with Image.open(path) as opened:
                    tokens += (
                        self.encoder.count_tiles(opened, self.encoder.max_tiles)
                        * self.encoder.tokens_per_tile
                    )
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                continue
        return min(tokens, self.encoder.max_length)


class ConversationTable(Conversations):
    """A `datasets.Dataset` of rows as `parse_row` knows them.

    Args:
        rows: the data set.
        name: for messages.
        encoder, image_root, max_broken_share: as for `ConversationFile`.
    """

    def __init__(self, rows, name, encoder, image_root=None, max_broken_share=0.0):
        self.name, self.encoder, self.image_root = name, encoder, image_root
        # Images as they are stored: `datasets` turns photographs by a rule of its own, and broken ones would not count
        self.rows, self.features = rows.with_format("arrow"), _as_stored(rows.features)
        columns = [column for column in rows.column_names if column not in ("image", "images")]
        self._texts = rows.select_columns(columns)  # without decoding images
        self.counts = Counts(len(rows), 0, max_broken_share)
        self.fingerprint = f"{name}, {len(rows)} rows, {rows._fingerprint}"

    def __len__(self):
        return len(self.rows)

    def where(self, index):
        return f"{self.name}, row {index}"

    def root(self, index):
        return self.image_root

    def row(self, index):
        return self.features.decode_example(self.rows[index].to_pylist()[0])

    def length(self, index):
        """From the text; an image counts as if it had all tiles."""
        row = self._texts[index]
        messages = [part for name in ("conversations", "messages") for part in row.get(name) or []]
        text = json.dumps(messages, default=str)
        whole = (self.encoder.max_tiles + 1) * self.encoder.tokens_per_tile
        return min(len(text) // 3 + text.count("<image>") * whole, self.encoder.max_length)


class StreamedConversations:
    """The samples of a `datasets.IterableDataset`; unusable ones are counted and left out.

    Attributes:
        dataset: an IterableDataset with one column, "sample"; as many workers can share it as it has shards.
        counts: `Counts`.

    Args:
        rows: what `json_lines` gives, or rows as `parse_row` knows them.
        name: for messages.
        encoder, max_broken_share: as for `ConversationFile`.
        image_root: directory of relative image paths; None: that of each JSONL file.
        fingerprint: changes with the data.
    """

    def __init__(self, rows, name, encoder, image_root=None, max_broken_share=0.0, fingerprint=""):
        self.name, self.encoder, self.image_root, self.fingerprint = (
            name,
            encoder,
            image_root,
            fingerprint,
        )
        self.counts = Counts(None, 0, max_broken_share)
        if rows.features is not None:
            # Images are decoded here, where a broken one counts; `decode` takes out threads that would do it before
            rows = rows.decode(False).cast(_as_stored(rows.features))
        columns = rows.column_names or list(next(iter(rows)))
        encoded = rows.map(self._encoded, with_indices=True, remove_columns=columns)
        self.dataset = encoded.filter(lambda row: row["sample"] is not None)

    def _encoded(self, row, index):
        root, where = self.image_root, f"{self.name}, row {index + 1}"
        if set(row) == {"path", "number", "line"}:
            root, where = root or Path(row["path"]).parent, f"{row['path']}, line {row['number']}"
            line = row["line"]
            return {
                "sample": _encode(self.encoder, self.counts, lambda: _parse_json(line), root, where)
            }
        return {"sample": _encode(self.encoder, self.counts, lambda: row, root, where)}


def _as_stored(features):
    """Features of `datasets` in which no image or other medium, however deep, is decoded; JSON is."""

    def walk(feature):
        if hasattr(feature, "decode") and not isinstance(feature, datasets.Json):
            return dataclasses.replace(feature, decode=False)
        if isinstance(feature, dict):
            return {name: walk(inner) for name, inner in feature.items()}
        if isinstance(feature, (datasets.List, datasets.LargeList)):
            return dataclasses.replace(feature, feature=walk(feature.feature))
        return feature

    return datasets.Features({name: walk(feature) for name, feature in features.items()})


def json_lines(paths):
    """The lines of JSONL files as they stand: rows of different forms have no common schema."""
    for path in paths:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield {"path": str(path), "number": number, "line": line}


def _tokens_of_text(sample):
    return sum(len(question) + len(answer) for question, answer in sample.turns) // 3


def _parse_json(line):
    try:
        return json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SampleError(f"not JSON ({error}){_hint_at_array(line)}") from error


def _hint_at_array(content):
    """What to do about LLaVA's files, which are one JSON array."""
    is_text = isinstance(content, (str, bytes))
    is_array = isinstance(content, list) or (is_text and content.lstrip()[:1] in ("[", b"["))
    return (
        "; of a JSON array make an object a line: jq -c '.[]' data.json > data.jsonl"
        if is_array
        else ""
    )


def _encode(encoder, counts, read_row, image_root, where, line=None):
    """An encoded sample, or None for one that is counted as broken or too long."""
    try:
        sample = encoder(parse_row(read_row()), image_root)
    except TooLongError:
        counts.add("too_long", line)
        return None
    except SampleError as error:
        counts.report_broken(where, error, line)
        return None
    counts.add("read", line)
    if sample.pop("fewer_tiles"):
        counts.add("fewer_tiles", line)
    return sample


@dataclasses.dataclass
class Collator:
    """Pads samples to a batch on the right.

    A batch without images gets one empty tile that is flagged as padding: so the projector takes part in every step,
    which gradients across processes need.

    Args:
        pad_token_id: goes into input_ids; attention_mask and labels leave it out.
        tile_shape: (3, side, side).
    """

    pad_token_id: int
    tile_shape: tuple

    def __call__(self, samples):
        length = max(len(sample["input_ids"]) for sample in samples)
        input_ids = torch.full((len(samples), length), self.pad_token_id)
        labels = torch.full((len(samples), length), IGNORED)
        attention_mask = torch.zeros(len(samples), length, dtype=torch.int64)
        for row, sample in enumerate(samples):
            own = len(sample["input_ids"])
            input_ids[row, :own], labels[row, :own] = sample["input_ids"], sample["labels"]
            attention_mask[row, :own] = 1
        tiles = [sample["pixel_values"] for sample in samples if sample["pixel_values"] is not None]
        pixel_values = torch.cat(tiles) if tiles else torch.zeros(1, *self.tile_shape)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "pixel_values": pixel_values,
            "image_flags": torch.full((len(pixel_values),), int(bool(tiles))),
        }
