"""The plan of an assembly: what is written, and where each tensor comes from.

    plan = AssemblyPlan("InternViT-6B-448px-V2_5", "Qwen2.5-32B-Instruct")
    plan.config, plan.shapes, plan.notes
    plan.tensor("mlp1.1.weight")

Making a plan opens the sources and checks that they fit each other. It writes nothing, and of the
weights it reads only names and shapes (and the head, where it should be tied to the embeddings).
`training.assemble` writes what the plan says.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from remote_code import configuration_skywork_chat, conversation, modeling_skywork_chat
from training.checkpoint import Checkpoint, read_config

ROOT = Path(__file__).resolve().parents[1]
# A projector or a vision encoder brings these settings along, because it was trained with them.
VISUAL_SETTINGS = (
    "downsample_ratio",
    "dynamic_image_size",
    "force_image_size",
    "max_dynamic_patch",
    "min_dynamic_patch",
    "ps_version",
    "select_layer",
    "use_thumbnail",
)
VISION_PREFIX = "vision_model."
LANGUAGE_PREFIX = "language_model."
PROJECTOR_PREFIX = "mlp1."
EMBEDDINGS = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
# The chat template of each conversation template, by its name.
CHAT_TEMPLATES = {
    "skywork-r1v": "chat_template.jinja",
    "skywork-r1v3": "chat_template_chatml.jinja",
    "qwen2.5": "chat_template_qwen2_5.jinja",
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
LANGUAGE_ARCHITECTURE = "Qwen2ForCausalLM"
RMS_OF_GELU = 0.652  # root mean square of GELU(x) for x of N(0, 1)
ROW_MULTIPLE = 64  # of a grown vocabulary, so that tensor parallel ranks can share it out
ROWS_AT_A_TIME = 8192  # of the embeddings are summed in float32, to keep memory low


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


# -- the sources -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class VisionSource:
    """A vision encoder.

    Attributes:
        folder: where it lies.
        config: its vision_config.
        visual_settings: those of VISUAL_SETTINGS that its checkpoint has.
        checkpoint: its tensors.
    """

    folder: Path
    config: dict[str, Any]
    visual_settings: dict[str, Any]
    checkpoint: Checkpoint


@dataclasses.dataclass(frozen=True)
class LanguageSource:
    """A language model.

    Attributes:
        folder: where it lies, with its tokenizer.
        config: its llm_config.
        tokenizer: its tokenizer.json.
        checkpoint: its tensors.
        template: the conversation template that a repository of this code names, or None.
    """

    folder: Path
    config: dict[str, Any]
    tokenizer: dict[str, Any]
    checkpoint: Checkpoint
    template: str | None = None


@dataclasses.dataclass(frozen=True)
class ProjectorSource:
    """A trained projector.

    Attributes:
        folder: where it lies.
        visual_settings: those of VISUAL_SETTINGS that it was trained with.
        checkpoint: its tensors.
    """

    folder: Path
    visual_settings: dict[str, Any]
    checkpoint: Checkpoint


def open_vision(folder: str | Path) -> VisionSource:
    """Open an InternViT checkpoint, or the vision encoder of a whole model.

    Raises:
        FileNotFoundError: no complete checkpoint; see `Checkpoint`.
        ValueError: a checkpoint of another kind.
    """
    config = read_config(folder, "vision")
    visual_settings = {}
    if "vision_config" in config:
        checkpoint = Checkpoint(folder, VISION_PREFIX)
        visual_settings = _visual_settings_of(config)
        config = config["vision_config"]
    else:
        checkpoint = Checkpoint(folder)
    if "embeddings.class_embedding" not in checkpoint.names:
        raise ValueError(
            f"--vision {folder}: no InternViT tensors (embeddings.class_embedding and so on, or "
            "vision_model.…). Checkpoints in transformers' own InternVL format (…-hf) name them "
            "otherwise: use the original repository."
        )
    return VisionSource(Path(folder), config, visual_settings, checkpoint)


def open_language_model(folder: str | Path) -> LanguageSource:
    """Open a Qwen2 checkpoint, or the language model of a repository of this code.

    Raises:
        FileNotFoundError: no complete checkpoint (see `Checkpoint`), or no tokenizer.json.
        ValueError: another architecture, or quantized weights.
    """
    config = read_config(folder, "language-model")
    prefix = ""
    template = None
    if "llm_config" in config:
        prefix = LANGUAGE_PREFIX
        template = config.get("template")
        config = config["llm_config"]
    _check_language_config(folder, config)
    missing = [name for name in TOKENIZER_FILES if not (Path(folder) / name).is_file()]
    if missing:
        raise FileNotFoundError(f"--language-model {folder} has no {' and no '.join(missing)}.")
    checkpoint = Checkpoint(folder, prefix)
    tokenizer = read_json(Path(folder) / "tokenizer.json")
    return LanguageSource(Path(folder), config, tokenizer, checkpoint, template)


def open_projector(folder: str | Path) -> ProjectorSource:
    """Open a checkpoint that has a projector.

    Raises:
        FileNotFoundError: no complete checkpoint; see `Checkpoint`.
        ValueError: no tensors of a projector.
    """
    checkpoint = Checkpoint(folder, PROJECTOR_PREFIX)
    if not checkpoint.names:
        raise ValueError(f"--mlp1 {folder}: no tensors named {PROJECTOR_PREFIX}*.")
    visual_settings = _visual_settings_of(read_config(folder, "mlp1"))
    return ProjectorSource(Path(folder), visual_settings, checkpoint)


def _visual_settings_of(config: dict[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in VISUAL_SETTINGS if name in config}


def _check_language_config(folder: str | Path, config: dict[str, Any]) -> None:
    architectures = config.get("architectures") or [LANGUAGE_ARCHITECTURE]
    is_qwen2 = config.get("model_type", "qwen2") == "qwen2"
    if LANGUAGE_ARCHITECTURE not in architectures or not is_qwen2:
        raise ValueError(
            f"--language-model {folder}: model_type {config.get('model_type')!r}; "
            f"expected a {LANGUAGE_ARCHITECTURE} checkpoint."
        )
    if config.get("quantization_config"):
        raise ValueError(
            f"--language-model {folder} is quantized; assemble the full weights and quantize the "
            "result."
        )


# -- tokenizer and vocabulary ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TokenizerWithImages:
    """A tokenizer that has the image tokens.

    Attributes:
        serialized: its tokenizer.json.
        image_token_ids: the id of each of `conversation.IMAGE_TOKENS`.
        new_tokens: those of the image tokens that it did not have before.
    """

    serialized: dict[str, Any]
    image_token_ids: dict[str, int]
    new_tokens: list[str]

    @property
    def new_ids(self) -> list[int]:
        """The ids of the new tokens."""
        return [self.image_token_ids[token] for token in self.new_tokens]

    @property
    def rows_needed(self) -> int:
        """Rows of the embeddings that the image tokens need: one more than the largest id."""
        return max(self.image_token_ids.values()) + 1


def append_image_tokens(serialized: dict[str, Any]) -> TokenizerWithImages:
    """Give a tokenizer the image tokens; those that are new take the next free ids.

    Args:
        serialized: a tokenizer.json; it is not changed.
    """
    added_tokens = list(serialized["added_tokens"])
    present = {token["content"]: token["id"] for token in added_tokens}
    next_id = 1 + max([*present.values(), *serialized["model"]["vocab"].values()])
    new_tokens = []
    for content in conversation.IMAGE_TOKENS:
        if content in present:
            continue
        added_tokens.append(_special_token(content, next_id))
        present[content] = next_id
        new_tokens.append(content)
        next_id += 1
    image_token_ids = {token: present[token] for token in conversation.IMAGE_TOKENS}
    extended = dict(serialized, added_tokens=added_tokens)
    return TokenizerWithImages(extended, image_token_ids, new_tokens)


def _special_token(content: str, token_id: int) -> dict[str, Any]:
    """A special token as tokenizer.json lists it."""
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def same_base_vocabulary(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two tokenizer.json have the same vocabulary and merges, added tokens aside.

    Control tokens differ between Qwen2.5-Instruct and DeepSeek-R1-Distill-Qwen, at the same ids.
    """
    if first["model"]["vocab"] != second["model"]["vocab"]:
        return False
    return _pairs_of_merges(first) == _pairs_of_merges(second)


def _pairs_of_merges(serialized: dict[str, Any]) -> list[tuple[str, ...]]:
    """Merges as pairs; some versions of tokenizers write them as strings with a space."""
    pairs = []
    for merge in serialized["model"]["merges"]:
        if isinstance(merge, str):
            merge = merge.split(" ")
        pairs.append(tuple(merge))
    return pairs


def choose_template(serialized: dict[str, Any]) -> str:
    """The name of the conversation template whose control tokens the tokenizer has.

    A tokenizer of ChatML with the token `<think>` (QwQ, Qwen3) is that of a model which thinks; one
    without it, that of an instruct model such as Qwen2.5's.

    Raises:
        ValueError: the control tokens of no template.
    """
    tokens = {token["content"] for token in serialized["added_tokens"]}
    if "<｜User｜>" in tokens:
        return "skywork-r1v"
    if "<|im_start|>" in tokens and conversation.THINK_START in tokens:
        return "skywork-r1v3"
    if "<|im_start|>" in tokens:
        return "qwen2.5"
    raise ValueError(
        "The language model's tokenizer has neither <｜User｜> (DeepSeek-R1-Distill-Qwen) nor "
        "<|im_start|> (Qwen2.5): there is no conversation template for it."
    )


# -- the plan --------------------------------------------------------------------------------------


class TensorSource(NamedTuple):
    """Where a tensor of the result comes from.

    Attributes:
        checkpoint: None for a tensor of a new projector.
        name: the tensor's name in that checkpoint, or in the projector.
    """

    checkpoint: Checkpoint | None
    name: str


class AssemblyPlan:
    """What is written and where each tensor comes from; made, and checked, before anything is.

    Args:
        vision: directory of a vision encoder; see `open_vision`.
        language_model: directory of a language model; see `open_language_model`.
        mlp1: directory of a checkpoint with a projector; None for a new one.
        dtype: of all tensors of the result: "bfloat16", "float16" or "float32".
        seed: of a new projector.
        settings: entries of config.json in place of those that the sources bring.

    Attributes:
        config: config.json of the result, a dict.
        model_config: the same as a `SkyworkChatConfig`.
        tokenizer: tokenizer.json of the result, a dict.
        shapes: name to shape of every tensor, in the order of writing.
        notes: what was decided, in sentences.

    Raises:
        FileNotFoundError: a source is no checkpoint, or an incomplete one.
        ValueError: sources that do not fit each other.
    """

    def __init__(
        self,
        vision: str | Path,
        language_model: str | Path,
        mlp1: str | Path | None = None,
        dtype: str = "bfloat16",
        seed: int = 0,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.seed = seed
        self.notes: list[str] = []
        self.vision = open_vision(vision)
        self.language = open_language_model(language_model)
        self.projector = None
        if mlp1 is not None:
            self.projector = open_projector(mlp1)
            _check_base_vocabulary(self.projector, self.language)
        extended = append_image_tokens(self.language.tokenizer)
        self.tokenizer = extended.serialized
        self.new_ids = extended.new_ids
        self.config = self._compose_config(extended, settings or {}, dtype)
        self.model_config = configuration_skywork_chat.SkyworkChatConfig(**self.config)
        self.shapes = self._shapes_of_result()
        self._check_head()
        self._check_tensors()
        if self.projector is None:
            self.notes.append(f"mlp1 is new, drawn with seed {seed}: it has to be trained.")

    @property
    def old_rows(self) -> int:
        """Rows of the language model's embeddings, before the vocabulary grows."""
        return self.language.config["vocab_size"]

    @property
    def is_tied(self) -> bool:
        """Whether the head is the embeddings, and so has no tensor of its own."""
        return self.config["tie_word_embeddings"]

    # -- the config --------------------------------------------------------------------------------

    def _compose_config(
        self, extended: TokenizerWithImages, settings: dict[str, Any], dtype: str
    ) -> dict[str, Any]:
        """config.json of the result: the root's, with the sources' shapes and settings."""
        vision_config = self._vision_config(dtype)
        llm_config = self._language_config(extended, dtype)
        config = read_json(ROOT / "config.json")
        config["force_image_size"] = vision_config["image_size"]
        visual_settings = dict(self.vision.visual_settings)
        if self.projector is not None:
            visual_settings |= self.projector.visual_settings
        for name, value in visual_settings.items():
            if value is not None:
                config[name] = value
        config |= settings
        return config | {
            "vision_config": vision_config,
            "llm_config": llm_config,
            "image_token_id": extended.image_token_ids[conversation.IMAGE_CONTEXT],
            "template": self._template(extended, settings),
            "tie_word_embeddings": bool(llm_config.get("tie_word_embeddings", False)),
            "torch_dtype": dtype,
        }

    def _template(self, extended: TokenizerWithImages, settings: dict[str, Any]) -> str:
        """The name of the conversation template: as asked, of the source, or by the tokenizer.

        Raises:
            ValueError: a template that is asked for and unknown, or the control tokens of none.
        """
        asked = settings.get("template")
        if asked is not None and asked not in CHAT_TEMPLATES:
            raise ValueError(
                f"template={asked!r} is unknown; expected one of {', '.join(CHAT_TEMPLATES)}."
            )
        if asked is None and self.language.template in CHAT_TEMPLATES:
            asked = self.language.template
        chosen = asked or choose_template(extended.serialized)
        self.notes.append(f"Conversations have the template {chosen!r}.")
        return chosen

    def _vision_config(self, dtype: str) -> dict[str, Any]:
        """vision_config of the result: those fields of the source that this code knows."""
        vision_class = configuration_skywork_chat.SkyworkVisionConfig
        known = inspect.signature(vision_class.__init__).parameters
        fields = {name: value for name, value in self.vision.config.items() if name in known}
        return fields | {
            "model_type": "skywork_vision",
            "architectures": ["InternVisionModel"],
            "torch_dtype": dtype,
        }

    def _language_config(self, extended: TokenizerWithImages, dtype: str) -> dict[str, Any]:
        """llm_config of the result, whose vocabulary has room for the image tokens."""
        portable = configuration_skywork_chat.portable_language_config(self.language.config)
        llm_config = {"architectures": [LANGUAGE_ARCHITECTURE], **portable}
        llm_config["torch_dtype"] = dtype
        if extended.rows_needed > self.old_rows:
            multiples = -(-extended.rows_needed // ROW_MULTIPLE)  # rounded up
            llm_config["vocab_size"] = multiples * ROW_MULTIPLE
            self.notes.append(
                f"Vocabulary grown from {self.old_rows} to {llm_config['vocab_size']} rows; the "
                "new rows of embedding and head are the mean of the old ones."
            )
        if extended.new_tokens:
            self.notes.append(
                f"{', '.join(extended.new_tokens)} appended as {extended.new_ids}; their "
                "embeddings are the mean of all others."
            )
        return llm_config

    # -- the tensors -------------------------------------------------------------------------------

    def _shapes_of_result(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every tensor of the model, of which no weights are made."""
        with torch.device("meta"):
            model = modeling_skywork_chat.SkyworkChatModel(self.model_config)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        if self.is_tied:
            shapes.pop(LANGUAGE_PREFIX + HEAD, None)
        return shapes

    def _check_head(self) -> None:
        """Check that the language model has a head of its own exactly where its config says so."""
        folder = self.language.folder
        checkpoint = self.language.checkpoint
        has_head = HEAD in checkpoint.names
        if not self.is_tied and not has_head:
            raise ValueError(
                f"{folder}: tie_word_embeddings is false, but there is no {HEAD}. If its head is "
                "tied, set tie_word_embeddings to true in its config.json."
            )
        if not self.is_tied or not has_head:
            return
        if not torch.equal(checkpoint.read(HEAD), checkpoint.read(EMBEDDINGS)):
            raise ValueError(
                f"{folder}: tie_word_embeddings is true, but {HEAD} differs from the embeddings. "
                "Set it to false in its config.json."
            )

    def source(self, name: str) -> TensorSource:
        """Where the tensor of that name in the result comes from."""
        if name.startswith(VISION_PREFIX):
            return TensorSource(self.vision.checkpoint, name[len(VISION_PREFIX) :])
        if name.startswith(LANGUAGE_PREFIX):
            return TensorSource(self.language.checkpoint, name[len(LANGUAGE_PREFIX) :])
        if name.startswith(PROJECTOR_PREFIX):
            checkpoint = None if self.projector is None else self.projector.checkpoint
            return TensorSource(checkpoint, name[len(PROJECTOR_PREFIX) :])
        raise AssertionError(f"no part of the model has a tensor {name}")

    def _check_tensors(self) -> None:
        """Check names and shapes of all tensors that are taken; note those that are left over."""
        names_by_checkpoint: dict[Checkpoint, set[str]] = {}
        missing = []
        for name in self.shapes:
            checkpoint, source_name = self.source(name)
            if checkpoint is None:
                continue
            names_by_checkpoint.setdefault(checkpoint, set()).add(source_name)
            if source_name not in checkpoint.names:
                missing.append(f"{source_name} in {checkpoint.folder}")
        if missing:
            shown = ", ".join(missing[:3])
            if len(missing) > 3:
                shown += ", …"
            raise ValueError(f"{len(missing)} tensors are missing: {shown}")
        for name in self.shapes:
            self._check_shape(name)
        for checkpoint, taken in names_by_checkpoint.items():
            self._note_unused(checkpoint, taken)

    def _check_shape(self, name: str) -> None:
        """Check that the source of a tensor has it in the shape that the config asks for."""
        checkpoint, source_name = self.source(name)
        if checkpoint is None:
            return
        shape = self.shapes[name]
        expected = shape
        if source_name in (EMBEDDINGS, HEAD):
            expected = (self.old_rows, *shape[1:])
        found = checkpoint.shape(source_name)
        if found == expected:
            return
        hint = "Its config.json does not fit its weights."
        if name.startswith(PROJECTOR_PREFIX):
            hint = self._widths_of_projector(checkpoint)
        raise ValueError(
            f"{source_name} of {checkpoint.folder} has the shape {found}, expected {shape}. {hint}"
        )

    def _widths_of_projector(self, projector: Checkpoint) -> str:
        """What a projector connects, and what it would have to, for an error."""
        return (
            f"The projector maps a vision width of {projector.shape('1.weight')[1]} to a language "
            f"width of {projector.shape('3.weight')[0]}; {self.vision.folder} and "
            f"{self.language.folder} need {self.shapes['mlp1.1.weight'][1]} and "
            f"{self.shapes['mlp1.3.weight'][0]}. Leave --mlp1 out for a new one."
        )

    def _note_unused(self, checkpoint: Checkpoint, taken: set[str]) -> None:
        unused = set(checkpoint.names) - taken
        if self.is_tied:
            unused.discard(HEAD)
        if unused:
            self.notes.append(
                f"{len(unused)} tensors of {checkpoint.folder} have no place here, such as "
                f"{min(unused)}."
            )

    # -- what is written ---------------------------------------------------------------------------

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor of that name, as it is written."""
        checkpoint, source_name = self.source(name)
        shape = self.shapes[name]
        if checkpoint is None:
            return self._new_projector_tensor(source_name, shape).to(self.dtype)
        tensor = checkpoint.read(source_name)
        if source_name == EMBEDDINGS and self.new_ids:
            tensor = with_mean_rows(tensor, shape[0], self.new_ids)
        elif source_name == HEAD and tensor.shape[0] < shape[0]:
            tensor = with_mean_rows(tensor, shape[0], [])
        return tensor.to(self.dtype).contiguous()

    def _new_projector_tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """LayerNorm of ones, biases of zeros, matrices from N(0, 1 / inputs) by seed and name.

        The last matrix is scaled so that image features are as large as the text's embeddings (root
        mean square): in a residual stream that they dominate, the decoder layers could hardly add
        to them.
        """
        if name == "0.weight":
            return torch.ones(shape)
        if name.endswith("bias"):
            return torch.zeros(shape)
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        weight = torch.randn(shape, generator=generator) / shape[1] ** 0.5
        if name == "3.weight":
            return weight * self._size_of_embeddings() / RMS_OF_GELU
        return weight

    def _size_of_embeddings(self) -> float:
        """Root mean square of the embeddings of the tokens that the tokenizer has."""
        rows = min([self.old_rows, *self.new_ids])
        tensor = self.language.checkpoint.read(EMBEDDINGS)[:rows]
        squares = 0.0
        for part in tensor.split(ROWS_AT_A_TIME):
            squares += float(part.float().square().sum())
        return (squares / tensor.numel()) ** 0.5

    def bytes_of(self, name: str) -> int:
        """Bytes of a tensor as it is written."""
        return self.dtype.itemsize * torch.Size(self.shapes[name]).numel()

    def fingerprint(self) -> str:
        """A text that changes with anything that would change the output."""
        sources = [self.vision.checkpoint.fingerprint(), self.language.checkpoint.fingerprint()]
        if self.projector is not None:
            sources.append(self.projector.checkpoint.fingerprint())
        added_tokens = self.tokenizer["added_tokens"]
        return json.dumps([sources, self.config, str(self.dtype), self.seed, added_tokens])


def _check_base_vocabulary(projector: ProjectorSource, language: LanguageSource) -> None:
    """Check that a projector was trained with a language model of the same base.

    A directory with a projector but without a tokenizer cannot be checked.
    """
    path = projector.folder / "tokenizer.json"
    if not path.is_file() or same_base_vocabulary(read_json(path), language.tokenizer):
        return
    raise ValueError(
        f"--language-model {language.folder} has another base vocabulary than the one that the "
        f"projector of {projector.folder} was trained with: a projector moves only between "
        "children of one base model. Train a new one (leave --mlp1 out)."
    )


def with_mean_rows(tensor: torch.Tensor, rows: int, ids: list[int]) -> torch.Tensor:
    """Embeddings, or a head, with more rows.

    Args:
        tensor: (old rows, width); it is not changed.
        rows: of the result, at least as many.
        ids: old rows that are replaced.

    Returns:
        (rows, width), in which the new rows and those of `ids` are the mean of the other old ones.
    """
    old_rows = len(tensor)
    # Rows behind the tokenizer's last token were never trained, so they stay out of the mean.
    trained = tensor[: min([old_rows, *ids])]
    total = torch.zeros(tensor.shape[1])
    for part in trained.split(ROWS_AT_A_TIME):
        total += part.float().sum(0)
    mean = (total / len(trained)).to(tensor.dtype)
    grown = torch.empty(rows, tensor.shape[1], dtype=tensor.dtype)
    grown[:old_rows] = tensor
    grown[old_rows:] = mean
    if ids:
        grown[ids] = mean
    return grown
