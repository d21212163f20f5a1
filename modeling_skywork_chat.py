"""Skywork-R1V: InternViT, pixel shuffle, an MLP projector and a Qwen2 language model.

The architecture is that of the report of R1V, section 2.1. Three classes share the weights:

- `SkyworkChatModel` (AutoModel, AutoModelForCausalLM) has the model card's: `chat()`,
  `batch_chat()` (chat.py), and a `generate()` that returns the new tokens only.
- `SkyworkChatForConditionalGeneration` (AutoModelForImageTextToText) has those of transformers, for
  pipelines and trainers: `generate()` returns prompt and completion.
- `SkyworkChatForSequenceClassification` (AutoModelForSequenceClassification) gives scores of whole
  conversations, as a reward model does.

A tile is a square image of `config.tile_size` pixels. It takes `num_image_token` tokens
`<IMG_CONTEXT>` in the prompt, which the tile's features replace.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, Qwen2ForCausalLM
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast, SequenceClassifierOutputWithPast
from transformers.utils import logging

# Before 5.9 transformers copies the files that this one imports itself, and no others. So each file
# of `CODE_FILES` is imported here by at least one name.
from .chat import ChatMixin
from .chat_images import ImageFeatures  # noqa: F401
from .checkpoint_files import (
    ARCHITECTURE,
    AUTO_MAP,
    HUB_KEYWORDS,
    UPLOAD_KEYWORDS,
    copy_repository_files,
    hub_keywords_of,
    upload,
)
from .configuration_skywork_chat import SkyworkChatConfig
from .conversation import get_conv_template
from .decoding import generate_from_embeddings, one_static_cache_at_a_time, with_compiled_decoding
from .device_map import build_device_map, clean_device_map, free_memory, module_sizes, split_layers
from .generation import (
    CandidatesWithoutImages,
    as_set,
    check_prompt_free,
    fit_into_context,
    guarded_processors,
)
from .image_features import ImageFeatureMixin
from .loading import (
    allow_host_memory,
    bytes_per_parameter,
    choose_attention,
    clear_attention_of_parts,
    hoist_quantization,
    loading_keywords,
    resolve_attention_of_config,
    share_attention,
)
from .modeling_intern_vit import SkyworkVisionModel
from .transformers_compat import (
    CACHE_NAME,
    accepted_keywords,
    cached_length,
    fill_unless_loaded,
    given_cache,
)

IGNORED_LABEL = -100
logger = logging.get_logger(__name__)

# Inputs of related models that change the result there, and what to do here.
INPUTS_OF_OTHER_MODELS = {
    "loss_weight": "the loss counts every label alike: set labels to -100 where none should count",
    "loss_reduction_all_gather": "pass num_items_in_batch, the number of labels on all processes",
    "statistics": "count tokens in the data collator",
    "pixel_values_videos": "pass the frames of a video as images, each an <image> of its own",
    "image_grid_thw": "tiles have one size here: pass pixel_values of (tiles, 3, side, side)",
    "visual_features": "forward() calls them image_features",
}
# Inputs besides the parameters of `forward` that the decoder takes, or that change nothing.
OTHER_INPUTS = (
    "adapter_names",
    "cache",
    "cache_position",
    "cu_seq_lens_k",
    "cu_seq_lens_q",
    "max_length_k",
    "max_length_q",
    "mm_token_type_ids",
    "return_loss",
    "seq_idx",
    "token_type_ids",
)


class SkyworkModelBase(ImageFeatureMixin, PreTrainedModel, GenerationMixin):
    """What both classes share: modules, loading, saving, `forward` and the loss."""

    config_class = SkyworkChatConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn_2 = True  # the flag's name before transformers 4.54
    _supports_flash_attn = True
    _supports_cache_class = True
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _no_split_modules = ["VisionLayer", "Qwen2DecoderLayer"]

    def __init__(
        self,
        config: SkyworkChatConfig,
        vision_model: nn.Module | None = None,
        language_model: nn.Module | None = None,
        use_flash_attn: bool | None = None,
    ) -> None:
        resolve_attention_of_config(config, None, use_flash_attn, torch.get_default_dtype())
        super().__init__(config)
        share_attention(config)
        # By this name Trainer knows not to count the label at the first position, which no loss
        # sees. transformers takes it from the class's name, and has none for `SkyworkChatModel`.
        self.loss_type = "ForCausalLM"
        if vision_model is None:
            vision_model = SkyworkVisionModel(config.vision_config)
        if language_model is None:
            language_model = Qwen2ForCausalLM(config.llm_config)
        self.vision_model: Any = vision_model
        self.language_model: Any = language_model
        self.mlp1 = build_projector(config)
        # The keywords with which the model came from the Hub, for its other files.
        self.hub_keywords: dict[str, Any] = {}
        self.num_image_token = config.num_image_token
        self.img_context_token_id = config.image_token_id
        self.post_init()

    # -- loading and saving ------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        config: Any = None,
        use_flash_attn: bool | None = None,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        offload_vision: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As transformers', with the model card's keywords on every version.

        Args:
            use_flash_attn: attention through flash-attn where it is installed, else through SDPA.
            load_in_8bit, load_in_4bit: quantize the decoder layers with bitsandbytes (the vision
                tower, the projector and the head are kept).
            device_map: also "split" (see device_map.py), and dicts with the model card's surplus
                names.
            offload_vision: with `device_map="split"`: keep the vision tower in host memory;
                accelerate's hooks bring it to the first GPU module by module while images are
                encoded.

        Raises:
            ImportError: quantization without bitsandbytes.
            ValueError: `device_map="split"` where the model does not fit, or `offload_vision`
                without it.
        """
        if offload_vision and kwargs.get("device_map") != "split":
            raise ValueError(
                "offload_vision=True goes with device_map='split', not with "
                f"{kwargs.get('device_map')!r}; in a map of your own write 'vision_model': 'cpu'."
            )
        if not isinstance(config, PretrainedConfig):
            hub = {name: kwargs[name] for name in HUB_KEYWORDS if name in kwargs}
            source = config or pretrained_model_name_or_path
            config = cls.config_class.from_pretrained(source, **hub)
        config = copy.deepcopy(config)
        hoist_quantization(config)
        kwargs = loading_keywords(kwargs, config, use_flash_attn, load_in_8bit, load_in_4bit)
        if kwargs.get("attn_implementation") is not None:
            clear_attention_of_parts(config)
        cls._resolve_device_map(kwargs, config, offload_vision)
        allow_host_memory(kwargs, config)
        path = _absolute_if_directory(pretrained_model_name_or_path)
        loaded = super().from_pretrained(path, *model_args, config=config, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
        model.hub_keywords = hub_keywords_of(model.config, kwargs)
        return loaded

    @classmethod
    def _from_config(cls, config: SkyworkChatConfig, **kwargs: Any) -> Any:
        requested = kwargs.pop("attn_implementation", None)
        if isinstance(requested, dict):
            kwargs["attn_implementation"] = choose_attention(requested)
        else:
            resolve_attention_of_config(config, requested)
        return super()._from_config(config, **kwargs)

    @classmethod
    def _resolve_device_map(
        cls, kwargs: dict[str, Any], config: SkyworkChatConfig, offload_vision: bool
    ) -> None:
        """Turn "split" and dicts with surplus names into a device map, in place."""
        device_map = kwargs.get("device_map")
        if device_map == "split":
            sizes = bytes_per_parameter(kwargs, config)
            kwargs["device_map"] = cls._split_device_map(config, *sizes, offload_vision)
        elif isinstance(device_map, dict):
            num_layers = config.llm_config.num_hidden_layers
            kwargs["device_map"] = clean_device_map(device_map, num_layers)

    @classmethod
    def _split_device_map(
        cls,
        config: SkyworkChatConfig,
        layer_bytes: float,
        other_bytes: float,
        offload_vision: bool = False,
    ) -> dict[str, Any]:
        with torch.device("meta"):
            model = cls(copy.deepcopy(config))
        layers, first = module_sizes(model, layer_bytes, other_bytes, offload_vision)
        return build_device_map(split_layers(layers, first, free_memory()), offload_vision)

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """As transformers', and the directory loads by itself.

        Code, tokenizer and processor files come along, and `architectures` stays the name that
        serving engines look for.

        Args:
            push_to_hub: upload the directory as it was written, to `repo_id` or a repository of its
                name (`token`, `private`, `commit_message`, `create_pr`).
        """
        upload_keywords = {name: kwargs.pop(name) for name in UPLOAD_KEYWORDS if name in kwargs}
        source = self.config._name_or_path
        super().save_pretrained(
            save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs
        )
        if not is_main_process:
            return
        self.config.architectures = [ARCHITECTURE]
        self.config.auto_map = dict(AUTO_MAP)
        self.config.save_pretrained(save_directory)
        where = {
            name: self.hub_keywords[name]
            for name in ("revision", "cache_dir", "subfolder")
            if name in self.hub_keywords
        }
        copy_repository_files(source, Path(save_directory), **where)
        if push_to_hub:
            upload(save_directory, token=kwargs.get("token"), **upload_keywords)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            std = self.config.llm_config.initializer_range
            fill_unless_loaded(module.weight, "normal_", 0.0, std)
            fill_unless_loaded(module.bias, "zero_")
        elif isinstance(module, nn.LayerNorm):
            fill_unless_loaded(module.weight, "fill_", 1.0)
            fill_unless_loaded(module.bias, "zero_")

    # -- what transformers and engines ask for -----------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's head."""
        self.language_model.set_output_embeddings(value)

    def get_decoder(self) -> nn.Module:
        """The language model without its head."""
        return self.language_model.get_decoder()

    @property
    def never_generated_ids(self) -> list[int]:
        """The tokens that stand in prompts only: of images, and the one that begins a text.

        The latter is that of the generation config. A Qwen2's own configuration names the end of a
        text there, which has to be written.
        """
        begin = self.generation_config.bos_token_id
        stops = as_set(self.generation_config.eos_token_id)
        ids = [self.img_context_token_id]
        return ids if begin is None or begin in stops else [*ids, begin]

    @property
    def base_model(self) -> Backbone:
        """The model without its head; a call gives `last_hidden_state` (TRL scores with that)."""
        return Backbone(self)

    # -- forward -----------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        image_flags: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits, and with labels the loss.

        Args:
            input_ids: (batch, length); or `inputs_embeds` (batch, length, H).
            pixel_values, image_flags, image_features: see `embed`. Images belong to the call that
                has their tokens, also where a cache is given.
            labels: (batch, length), -100 where no loss counts; shifted inside.
            logits_to_keep: logits of the last so many positions only (0: all), or an index tensor.
            num_items_in_batch: divisor of the loss, see `next_token_loss`.

        Returns:
            `CausalLMOutputWithPast` with logits (batch, length or fewer, vocabulary).

        Raises:
            ValueError: see `embed` and `check_forward_keywords`.
        """
        check_forward_keywords(kwargs)
        output = self._hidden_states(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            image_flags=image_flags,
            image_features=image_features,
            **kwargs,
        )
        logits = self._logits(output.last_hidden_state, logits_to_keep)
        loss = None if labels is None else next_token_loss(logits, labels, num_items_in_batch)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            **{CACHE_NAME: getattr(output, CACHE_NAME)},
        )
        return output if return_dict is None or return_dict else output.to_tuple()

    def _logits(
        self, hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor
    ) -> torch.Tensor:
        """(batch, length, H) to (batch, length or fewer, vocabulary)."""
        if torch.is_tensor(logits_to_keep):
            hidden_states = hidden_states[:, logits_to_keep]
        elif logits_to_keep:
            hidden_states = hidden_states[:, -logits_to_keep:]
        return self.get_output_embeddings()(hidden_states)

    def _hidden_states(
        self,
        input_ids: Any = None,
        pixel_values: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_flags: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        past_key_values: Any = None,
        **decoder_inputs: Any,
    ) -> Any:
        """The decoder's output, with `last_hidden_state` (batch, length, H)."""
        check_inputs(input_ids, inputs_embeds, pixel_values, image_features)
        has_images = pixel_values is not None or image_features is not None
        is_prompt = inputs_embeds is None and input_ids.shape[1] > 1
        if has_images or is_prompt:
            inputs_embeds = self.embed(
                input_ids, pixel_values, image_flags, image_features, inputs_embeds=inputs_embeds
            )
        elif inputs_embeds is None:
            # A decoding step. Counting image tokens would make the GPU wait for each token.
            inputs_embeds = self.get_input_embeddings()(input_ids)
        for name in ("output_attentions", "output_hidden_states"):
            if decoder_inputs.get(name) is None:
                decoder_inputs[name] = getattr(self.config, name)
        decoder_inputs[CACHE_NAME] = given_cache(past_key_values, decoder_inputs)
        decoder_inputs["return_dict"] = True  # PEFT may ask for a tuple, and here needs an object
        decoder = self.get_decoder()
        return decoder(inputs_embeds=inputs_embeds, **accepted_keywords(decoder, decoder_inputs))


class Backbone:
    """A view of a model without its head. Not a module: it owns no weights and adds no names."""

    def __init__(self, model: SkyworkModelBase) -> None:
        self.model = model

    def __call__(self, logits_to_keep: int = 0, **inputs: Any) -> Any:
        """The decoder's output for the model's inputs; every position is kept."""
        return self.model._hidden_states(**inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


# Both public classes name GenerationMixin themselves. Since 4.45 transformers puts a class that
# does not into a subclass of its own, which cannot be pickled.
class SkyworkChatModel(ChatMixin, SkyworkModelBase, GenerationMixin):
    """Skywork-R1V with the calls of its model card: `chat`, `batch_chat`, `generate`.

    Attributes:
        conv_template: the conversation template of the config's `template`; copied for each call.
        system_message: the system message of every conversation; empty, as in training, unless a
            script sets it.
    """

    def __init__(
        self,
        config: SkyworkChatConfig,
        vision_model: nn.Module | None = None,
        language_model: nn.Module | None = None,
        use_flash_attn: bool | None = None,
    ) -> None:
        super().__init__(config, vision_model, language_model, use_flash_attn)
        self.template = config.template
        self.conv_template = get_conv_template(config.template)
        self.system_message = self.conv_template.system_message
        self._image_processor = None

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        image_flags: torch.Tensor | None = None,
        past_key_values: Any = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `SkyworkModelBase.forward`, with the arguments in the published order."""
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            image_flags=image_flags,
            image_features=image_features,
            logits_to_keep=logits_to_keep,
            num_items_in_batch=num_items_in_batch,
            **kwargs,
        )

    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        output_hidden_states: bool | None = None,
        inputs_embeds: Any = None,
        image_token_id: int | None = None,
        **generate_kwargs: Any,
    ) -> Any:
        """Continue prompts, with images or without.

        Args:
            pixel_values: (tiles, channels, side, side) of all rows, in the order of their tokens,
                or None.
            input_ids: (batch, length), left-padded; or `inputs_embeds` (batch, length, H).
            attention_mask: (batch, length).
            visual_features: (tiles, num_image_token, H), what `extract_feature` gave, in place of
                `pixel_values`.
            image_token_id: the id that image features replace, if it is not `img_context_token_id`.
            generation_config, generate_kwargs: as of transformers' `generate`, `streamer` among
                them.

        Returns:
            (batch, new tokens), without the prompt: the language model gets embeddings, so that
            transformers has no ids of a prompt to return. decoding.py drops the one token that old
            versions put in front.

        Raises:
            ValueError: neither or both of `input_ids` and `inputs_embeds`; images twice or not
                matching the prompt; a prompt that exceeds the context; or logits that are no
                numbers.
        """
        check_inputs(input_ids, inputs_embeds, pixel_values, visual_features)
        check_prompt_free(generate_kwargs, generation_config)
        if attention_mask is not None:
            longest = int(attention_mask.sum(dim=-1).max())
        else:
            longest = (inputs_embeds if input_ids is None else input_ids).shape[1]
        context = self.config.llm_config.max_position_embeddings
        fit_into_context(generate_kwargs, generation_config, longest, context)
        given = generate_kwargs.pop("logits_processor", None)
        generate_kwargs["logits_processor"] = guarded_processors(given, self.never_generated_ids)
        if input_ids is not None or pixel_values is not None or visual_features is not None:
            inputs_embeds = self.embed(
                input_ids, pixel_values, None, visual_features, image_token_id, inputs_embeds
            )
        if output_hidden_states is not None:
            generate_kwargs["output_hidden_states"] = output_hidden_states
        generate_kwargs.pop("token_type_ids", None)  # of a tokenizer; a Qwen2 does not take them
        return generate_from_embeddings(
            self.language_model,
            inputs_embeds,
            attention_mask=attention_mask,
            generation_config=generation_config,
            **generate_kwargs,
        )


class SkyworkChatForConditionalGeneration(SkyworkModelBase, GenerationMixin):
    """Skywork-R1V with the calls of transformers: `generate` returns prompt and completion."""

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: list | None = None,
        *arguments: Any,
        **keywords: Any,
    ) -> Any:
        """As transformers'; `cache_implementation="static"` means compiled decoding everywhere."""
        keywords = with_compiled_decoding(keywords, generation_config, self.device)
        guarded = guarded_processors(logits_processor, self.never_generated_ids)
        base: Any = super()
        with one_static_cache_at_a_time(keywords, generation_config):
            return base.generate(inputs, generation_config, guarded, *arguments, **keywords)

    def _get_candidate_generator(self, *arguments: Any, **keywords: Any) -> Any:
        """transformers' own, whose guesses end at an image token: it would have no image."""
        base: Any = super()
        guesses = base._get_candidate_generator(*arguments, **keywords)
        return CandidatesWithoutImages(guesses, self.img_context_token_id)

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Any = None,
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Repeat each row for beams or several samples, and with it its tiles in their order.

        transformers' own method repeats along the first axis, which for images counts tiles.
        """
        images = {name: model_kwargs.pop(name, None) for name in ("pixel_values", "image_features")}
        base: Any = super()
        expanded_ids, model_kwargs = base._expand_inputs_for_generation(
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **model_kwargs,
        )
        for name, tiles in images.items():
            if tiles is not None and expand_size > 1:
                tiles = self._repeat_tiles(tiles, input_ids, expand_size)
            model_kwargs[name] = tiles
        return expanded_ids, model_kwargs

    def _repeat_tiles(
        self, tiles: torch.Tensor, input_ids: torch.Tensor, repeats: int
    ) -> torch.Tensor:
        """The tiles of each row so many times, row by row."""
        tokens_of_rows = (input_ids == self.img_context_token_id).sum(-1)
        tiles_of_rows = tiles.split((tokens_of_rows // self.num_image_token).tolist())
        return torch.cat([of_row for of_row in tiles_of_rows for _ in range(repeats)])

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: Any = None,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The language model's own inputs; the images go with the step that has their tokens.

        Args:
            cache: `past_key_values` under its name since 5.24. `generate` refuses a keyword of its
                caller that neither this method nor `forward` names.
        """
        if cache is None:
            cache = past_key_values
        kwargs[CACHE_NAME] = cache
        inputs = self.language_model.prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        images = {"pixel_values": pixel_values, "image_features": image_features}
        if cached_length(cache) == 0:
            inputs.update(images)
            return inputs
        new_ids = inputs.get("input_ids")
        if new_ids is None or new_ids.shape[1] == 1:
            return inputs  # embeddings, or a decoding step
        is_image = input_ids == self.img_context_token_id  # (batch, length)
        num_new = new_ids.shape[1]
        if is_image[:, -num_new:].any():
            inputs.update(self._images_after_cache(images, is_image, num_new))
        return inputs

    def _images_after_cache(
        self, images: dict[str, torch.Tensor | None], is_image: torch.Tensor, num_new: int
    ) -> dict[str, torch.Tensor | None]:
        """Of all tiles of a prompt those that a cache of earlier turns does not have.

        Args:
            is_image: (1, length), the image tokens of the whole prompt.
            num_new: number of tokens at the end that are not in the cache.

        Raises:
            ValueError: several conversations at once.
        """
        if len(is_image) > 1:
            raise ValueError(
                "A cache of earlier turns takes new images in one conversation at a time (batch 1)."
            )
        num_tiles = int(is_image.sum()) // self.num_image_token
        num_cached = int(is_image[:, :-num_new].sum()) // self.num_image_token
        new_images = {}
        for name, tiles in images.items():
            if tiles is not None and len(tiles) == num_tiles:
                tiles = tiles[num_cached:]
            new_images[name] = tiles
        return new_images


class SkyworkChatForSequenceClassification(SkyworkModelBase, GenerationMixin):
    """Scores of conversations with images: a linear head over the last token, for reward models.

    `config.num_labels` is the number of scores (`from_pretrained(..., num_labels=1)`). The head is
    new where a checkpoint has none. The language model's own head stays with the weights, so that
    they are saved whole; it is not used, and not trained.
    """

    # The loss is a mean over rows, so that Trainer divides it by the steps that it accumulates.
    accepts_loss_kwargs = False

    def __init__(self, config: SkyworkChatConfig, *modules: Any, **keywords: Any) -> None:
        super().__init__(config, *modules, **keywords)
        self.loss_type = "ForSequenceClassification"
        num_labels: Any = config.num_labels
        self.score = nn.Linear(config.llm_config.hidden_size, num_labels, bias=False)
        self._init_weights(self.score)
        self.get_output_embeddings().requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls, path: Any, *model_args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """As `SkyworkModelBase.from_pretrained`; a head that the checkpoint lacks is drawn anew.

        Versions of transformers before 5.0 leave it on the meta device, and some of them do not
        call it missing.
        """
        loaded = super().from_pretrained(path, *model_args, output_loading_info=True, **kwargs)
        model, info = loaded
        is_missing = any(name.endswith("score.weight") for name in info["missing_keys"])
        if is_missing or model.score.weight.is_meta:
            like = model.get_decoder().norm.weight
            weight = torch.empty_like(model.score.weight, dtype=like.dtype, device=like.device)
            model.score.weight = nn.Parameter(weight)
            model._init_weights(model.score)
        return loaded if output_loading_info else model

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """Scores of the rows, and with labels the loss.

        Args:
            input_ids: (batch, length), padded on either side.
            pixel_values: (tiles, channels, side, side) of all rows, in the order of their tokens.
            attention_mask: (batch, length), 0 where a row is padded; None where none is.
            labels: see `classification_loss`.
            inputs: what `SkyworkModelBase.forward` takes besides.

        Returns:
            `SequenceClassifierOutputWithPast` with logits (batch, num_labels).

        Raises:
            ValueError: see `embed` and `check_forward_keywords`.
        """
        check_forward_keywords(inputs)
        output = self._hidden_states(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            **inputs,
        )
        hidden = output.last_hidden_state
        last = torch.full((len(hidden),), hidden.shape[1] - 1, device=hidden.device)
        if attention_mask is not None:
            places = torch.arange(hidden.shape[1], device=hidden.device)
            last = (attention_mask.to(hidden.device) * places).argmax(dim=-1)
        rows = torch.arange(len(hidden), device=hidden.device)
        logits = self.score(hidden[rows, last])
        loss = None if labels is None else classification_loss(logits, labels)
        scored = SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            **{CACHE_NAME: getattr(output, CACHE_NAME)},
        )
        return scored if return_dict is None or return_dict else scored.to_tuple()


def _absolute_if_directory(path: Any) -> Any:
    """An absolute path, with which the checkpoint's other files are found later, from anywhere.

    A Hub id stays as it is; so does None, which goes with all weights in `state_dict`.
    """
    if path is not None and Path(path).is_dir():
        return str(Path(path).absolute())
    return path


def build_projector(config: SkyworkChatConfig) -> nn.Sequential:
    """`mlp1`: LayerNorm and two linear layers, from merged patches (C · f²) to the width H."""
    merged_size = config.merged_size
    hidden_size = config.llm_config.hidden_size
    return nn.Sequential(
        nn.LayerNorm(merged_size),
        nn.Linear(merged_size, hidden_size),
        nn.GELU(),
        nn.Linear(hidden_size, hidden_size),
    )


def check_inputs(
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    pixel_values: torch.Tensor | None,
    image_features: torch.Tensor | None,
) -> None:
    """Check that exactly one of input_ids and inputs_embeds is given, and images at most once."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Exactly one of input_ids and inputs_embeds must be given.")
    if pixel_values is not None and image_features is not None:
        raise ValueError("Give pixel_values or their features, not both.")


def check_forward_keywords(keywords: dict[str, Any]) -> None:
    """Say what becomes of keywords that `forward` does not name: a warning for unknown ones.

    Raises:
        ValueError: an input of a related model that this one does not have.
    """
    for name, value in keywords.items():
        if value is None or name in OTHER_INPUTS:
            continue
        if name in INPUTS_OF_OTHER_MODELS:
            raise ValueError(f"forward() has no {name}: {INPUTS_OF_OTHER_MODELS[name]}.")
        logger.warning_once(f"forward() does not know {name}; it has no effect on this model.")


def next_token_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: int | torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross entropy of the next token, in fp32.

    Args:
        logits: (batch, length, vocabulary).
        labels: (batch, length); -100 is ignored.
        num_items_in_batch: divide the sum by this, as a trainer that accumulates gradients asks
            for, and not by the number of labels in this batch.

    Returns:
        A scalar; zero where no label counts (a mean over nothing would be NaN).

    Raises:
        ValueError: lengths that differ, as when logits were cut by `logits_to_keep`.
    """
    if logits.shape[1] != labels.shape[1]:
        raise ValueError(
            f"labels have length {labels.shape[1]} and logits {logits.shape[1]}: a loss needs "
            "logits_to_keep=0."
        )
    targets = labels[:, 1:].to(logits.device).flatten()
    predictions = logits[:, :-1].flatten(0, 1).float()
    total = F.cross_entropy(predictions, targets, ignore_index=IGNORED_LABEL, reduction="sum")
    if num_items_in_batch is None:
        return total / (targets != IGNORED_LABEL).sum().clamp(min=1)
    if torch.is_tensor(num_items_in_batch):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch


def classification_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean loss of the scores of rows.

    Args:
        logits: (batch, scores).
        labels: (batch,) numbers where there is one score (squared error); (batch,) indices of
            classes (cross-entropy); or (batch, scores) of 0 and 1 for labels that do not exclude
            each other (binary cross-entropy).

    Raises:
        ValueError: labels of another shape.
    """
    labels = labels.to(logits.device)
    scores = logits.float()
    if labels.shape == scores.shape and scores.shape[1] > 1:
        return F.binary_cross_entropy_with_logits(scores, labels.float())
    if labels.numel() != len(scores):
        raise ValueError(
            f"labels have the shape {tuple(labels.shape)} and the scores {tuple(scores.shape)}: "
            "expected one label for each row, or one for each score."
        )
    if scores.shape[1] == 1:
        return F.mse_loss(scores.flatten(), labels.flatten().float())
    return F.cross_entropy(scores, labels.flatten().long())
