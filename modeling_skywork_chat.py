"""Skywork-R1V: InternViT, pixel shuffle, an MLP projector and a Qwen2 language model (report of R1V, section 2.1).

Two classes over the same weights, because two calling conventions are in use:

- `SkyworkChatModel` (AutoModel, AutoModelForCausalLM): the model card's. `chat()`, `batch_chat()`, and a `generate()`
  that returns the new tokens only.
- `SkyworkChatForConditionalGeneration` (AutoModelForImageTextToText): the standard one of transformers, for pipelines
  and trainers. `generate()` returns prompt and completion.

Tiles are square images of `config.tile_size` pixels; each takes `num_image_token` tokens `<IMG_CONTEXT>` in the prompt.
"""

import copy
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import HfApi, try_to_load_from_cache
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel, Qwen2ForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging

from .configuration_skywork_chat import SkyworkChatConfig
from .conversation import (
    IMAGE_CONTEXT,
    IMAGE_END,
    IMAGE_PLACEHOLDER,
    IMAGE_START,
    THINK_END,
    checked_turns,
    encode_segments,
    get_conv_template,
    open_conversation,
    place_images,
    token_id,
)
from .cpu_backend import cpu_backend  # by this file: before 5.9 transformers copies what it imports itself
from .device_map import build_device_map, clean_device_map, free_memory, module_sizes, split_layers
from .generation import (
    AnswerStream,
    GenerationInterrupted,
    ImageFeatures,
    ThinkingBudget,
    Written,
    check_context,
)
from .modeling_intern_vit import SkyworkVisionModel
from .transformers_compat import (
    GENERATED_FROM,
    accepted_keywords,
    bytes_per_parameter,
    cached_length,
    choose_attention,
    clear_own_attention,
    compiled_decoding,
    fill_unless_loaded,
    generate_from_embeddings,
    hoist_quantization,
    hub_keywords_of,
    load_image_processor,
    loading_keywords,
    new_tokens,
    one_static_cache_at_a_time,
    requested_cache,
    resolve_attention_of_config,
    share_attention,
    tokens_device,
)

logger = logging.get_logger(__name__)

# Tiles are encoded in chunks of about this many positions: 16 tiles of 448 pixels, which bounds the activations of
# InternViT-6B at about 1 GB in bf16, whatever the number of tiles. On a CPU one tile, which stays in its cache.
POSITIONS_PER_CHUNK = 16 * 1025
POSITIONS_PER_CHUNK_ON_CPU = 1025

ARCHITECTURE = "SkyworkR1VChatModel"  # what vLLM looks for; it is not the name of a class here
AUTO_MAP = {
    "AutoConfig": "configuration_skywork_chat.SkyworkChatConfig",
    "AutoModel": "modeling_skywork_chat.SkyworkChatModel",
    "AutoModelForCausalLM": "modeling_skywork_chat.SkyworkChatModel",
    "AutoModelForImageTextToText": "modeling_skywork_chat.SkyworkChatForConditionalGeneration",
}
HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
CODE_FILES = (
    "configuration_skywork_chat.py",
    "conversation.py",
    "cpu_backend.py",
    "device_map.py",
    "generation.py",
    "modeling_intern_vit.py",
    "modeling_skywork_chat.py",
    "transformers_compat.py",
)
# What else makes a checkpoint complete, if the repository that the model came from has it
SUPPORT_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "preprocessor/image_loading.py",
    "preprocessor/image_processing_skywork_chat.py",
    "preprocessor/processing_skywork_chat.py",
    "preprocessor/tiling.py",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)


class SkyworkModelBase(PreTrainedModel, GenerationMixin):
    """What both classes share: the modules, the merge of image features into the tokens, and `forward`."""

    config_class = SkyworkChatConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn_2 = True  # the flag's name before transformers 4.54
    _supports_flash_attn = True
    _supports_cache_class = True
    _skip_keys_device_placement = "past_key_values"
    _no_split_modules = ["VisionLayer", "Qwen2DecoderLayer"]
    # Training with parameters shared out over processes (FSDP, ZeRO-3) needs each to call every module equally often
    whole_batches_of_tiles = False

    def __init__(self, config, vision_model=None, language_model=None, use_flash_attn=None):
        resolve_attention_of_config(config, None, use_flash_attn, torch.get_default_dtype())
        super().__init__(config)
        share_attention(config)
        self.vision_model = SkyworkVisionModel(config.vision_config) if vision_model is None else vision_model
        self.language_model = Qwen2ForCausalLM(config.llm_config) if language_model is None else language_model
        factor = round(1 / config.downsample_ratio)
        merged_size = config.vision_config.hidden_size * factor**2
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(merged_size),
            nn.Linear(merged_size, config.llm_config.hidden_size),
            nn.GELU(),
            nn.Linear(config.llm_config.hidden_size, config.llm_config.hidden_size),
        )
        self.hub_keywords = {}  # with which the model came from the Hub: its other files are found with the same
        self.num_image_token = config.num_image_token
        self.img_context_token_id = config.image_token_id
        self.post_init()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *model_args,
        config=None,
        use_flash_attn=None,
        load_in_8bit=False,
        load_in_4bit=False,
        offload_vision=False,
        **kwargs,
    ):
        """As transformers', with the model card's keywords on every version.

        Args:
            use_flash_attn: attention through flash-attn where it is installed, else through SDPA.
            load_in_8bit, load_in_4bit: quantize the language model with bitsandbytes (the vision tower, the projector
                and the head are kept).
            device_map: also "split" (see device_map.py), and dicts with the model card's surplus names.
            offload_vision: with `device_map="split"`: keep the vision tower in host memory, and let it pass through
                the first GPU module by module (accelerate's hooks) while images are encoded.

        Raises:
            ImportError: quantization without bitsandbytes.
            ValueError: `device_map="split"` where the model does not fit; `offload_vision` without it.
        """
        if offload_vision and kwargs.get("device_map") != "split":
            raise ValueError(
                f"offload_vision=True goes with device_map='split', not with {kwargs.get('device_map')!r}; in a map of "
                "your own write 'vision_model': 'cpu'."
            )
        if not isinstance(config, PretrainedConfig):
            hub = {name: kwargs[name] for name in HUB_KEYWORDS if name in kwargs}
            config = cls.config_class.from_pretrained(config or pretrained_model_name_or_path, **hub)
        config = copy.deepcopy(config)
        hoist_quantization(config)
        kwargs = loading_keywords(kwargs, config, use_flash_attn, load_in_8bit, load_in_4bit)
        if kwargs.get("attn_implementation") is not None:
            clear_own_attention(config)
        if isinstance(kwargs.get("device_map"), str) and kwargs["device_map"] == "split":
            sizes = bytes_per_parameter(kwargs, config)
            kwargs["device_map"] = cls._split_device_map(config, *sizes, offload_vision)
        elif isinstance(kwargs.get("device_map"), dict):
            kwargs["device_map"] = clean_device_map(kwargs["device_map"], config.llm_config.num_hidden_layers)
        # Absolute, so that its other files are found later, from anywhere; None where all weights are in state_dict
        if pretrained_model_name_or_path is not None and Path(pretrained_model_name_or_path).is_dir():
            pretrained_model_name_or_path = str(Path(pretrained_model_name_or_path).absolute())
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
        model.hub_keywords = hub_keywords_of(model.config, kwargs, HUB_KEYWORDS)
        return loaded

    @classmethod
    def _from_config(cls, config, **kwargs):
        requested = kwargs.pop("attn_implementation", None)
        if isinstance(requested, dict):
            return super()._from_config(config, attn_implementation=choose_attention(requested), **kwargs)
        resolve_attention_of_config(config, requested)
        return super()._from_config(config, **kwargs)

    @classmethod
    def _split_device_map(cls, config, layer_bytes, other_bytes, offload_vision=False):
        with torch.device("meta"):
            layers, first = module_sizes(cls(copy.deepcopy(config)), layer_bytes, other_bytes, offload_vision)
        return build_device_map(split_layers(layers, first, free_memory()), offload_vision)

    def save_pretrained(self, save_directory, is_main_process=True, state_dict=None, push_to_hub=False, **kwargs):
        """As transformers', and the directory loads by itself: code, tokenizer and processor files come along.

        `architectures` stays the name that serving engines look for. With `push_to_hub` the directory is uploaded as it
        was written, to `repo_id` or a repository of its name (`token`, `private`, `commit_message`, `create_pr`).
        """
        hub = {
            name: kwargs.pop(name) for name in ("repo_id", "private", "commit_message", "create_pr") if name in kwargs
        }
        source = self.config._name_or_path
        super().save_pretrained(save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs)
        if not is_main_process:
            return
        self.config.architectures, self.config.auto_map = [ARCHITECTURE], dict(AUTO_MAP)
        self.config.save_pretrained(save_directory)
        known = ("revision", "cache_dir", "subfolder")
        where = {name: value for name, value in self.hub_keywords.items() if name in known}
        copy_repository_files(source, Path(save_directory), **where)
        if push_to_hub:
            upload(save_directory, token=kwargs.get("token"), **hub)

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            fill_unless_loaded(module.weight, "normal_", 0.0, self.config.llm_config.initializer_range)
            fill_unless_loaded(module.bias, "zero_")
        elif isinstance(module, nn.LayerNorm):
            fill_unless_loaded(module.weight, "fill_", 1.0)
            fill_unless_loaded(module.bias, "zero_")

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value):
        self.language_model.set_output_embeddings(value)

    def get_decoder(self):
        return self.language_model.get_decoder()

    def pixel_shuffle(self, features):
        """Merge squares of patches into the channels: (tiles, rows, columns, C) to (tiles, rows/f, columns/f, C·f²).

        Order "v2" keeps rows first; "v1" of the first InternVL gives the tokens column by column.
        """
        factor = round(1 / self.config.downsample_ratio)
        features = features.unflatten(2, (-1, factor)).unflatten(1, (-1, factor))  # (tiles, R, f, S, f, C)
        features = features.permute(0, 1, 3, 2, 4, 5).flatten(3)  # (tiles, R, S, f·f·C)
        return features.transpose(1, 2) if self.config.ps_version == "v1" else features

    def extract_feature(self, pixel_values):
        """Image features in the language model's width.

        Args:
            pixel_values: (tiles, channels, side, side), normalised pixels.

        Returns:
            (tiles, num_image_token, hidden size of the language model).

        Raises:
            ValueError: a shape that the vision tower cannot cut into patches.
        """
        device = self.vision_model.embeddings.patch_embedding.weight.device
        if device.type != "meta":  # offloaded: a hook places the inputs
            pixel_values = pixel_values.to(device)
        patches = pixel_values.shape[-2] * pixel_values.shape[-1] // self.config.vision_config.patch_size**2
        positions = POSITIONS_PER_CHUNK_ON_CPU if device.type == "cpu" else POSITIONS_PER_CHUNK
        whole = self.training and self.whole_batches_of_tiles
        chunks = [pixel_values] if whole else pixel_values.split(max(1, positions // (1 + patches)))
        features = [self._encode_tiles(chunk) for chunk in chunks]
        return features[0] if len(features) == 1 else torch.cat(features)

    def _features_per_tile(self, pixel_values):
        side = self.config.vision_config.patch_size / self.config.downsample_ratio  # pixels of a token's side
        return int(pixel_values.shape[-2] // side * (pixel_values.shape[-1] // side))

    def _encode_tiles(self, pixel_values):
        layer = self.config.select_layer
        num_layers = layer if layer >= 0 else self.config.vision_config.num_hidden_layers + 1 + layer
        hidden_states = self.vision_model(pixel_values=pixel_values, num_layers=num_layers).last_hidden_state
        patches = hidden_states[:, 1:]  # without the class token
        side = pixel_values.shape[-1] // self.config.vision_config.patch_size
        features = self.pixel_shuffle(patches.unflatten(1, (-1, side)))  # (tiles, R, S, C·f²)
        return self.mlp1(features.flatten(1, 2).to(next(self.mlp1.parameters()).dtype))

    def embed(self, input_ids, pixel_values=None, image_flags=None, image_features=None, image_token_id=None):
        """Token embeddings with the image features in place of the image tokens.

        Args:
            input_ids: (batch, length).
            pixel_values: (tiles, channels, side, side) of all rows, in the order of their tokens.
            image_flags: (tiles,) or (tiles, 1); tiles flagged 0 are padding without tokens in the prompt.
            image_features: (tiles, num_image_token, H), what `extract_feature` gave, in place of `pixel_values`.
            image_token_id: the id that is replaced, if not `img_context_token_id`.

        Returns:
            (batch, length, H).

        Raises:
            ValueError: as many image tokens as features were expected, and the numbers differ.
        """
        padding = None
        if image_flags is not None and pixel_values is not None:
            is_image = image_flags.flatten().to(pixel_values.device) == 1
            padding = pixel_values[~is_image]
            pixel_values = pixel_values[is_image]
        tiles, given = 0, 0
        if image_features is not None:
            tiles, given = len(image_features), image_features.shape[:-1].numel()
        elif pixel_values is not None:
            tiles, given = len(pixel_values), len(pixel_values) * self._features_per_tile(pixel_values)
        token_id = self.img_context_token_id if image_token_id is None else image_token_id
        is_image = input_ids == token_id  # (batch, length)
        expected = int(is_image.sum())
        if expected != given:  # before the images are encoded
            raise ValueError(
                f"The prompt has {expected} image tokens (id {token_id}) but the images give {given} features "
                f"({tiles} tiles of {given // max(tiles, 1)}): pass the pixel_values that the prompt was built for."
            )
        inputs_embeds = self.get_input_embeddings()(input_ids)
        if not tiles and padding is not None and len(padding) and self.training:
            # A batch of text alone: with its padding the projector has a gradient (of zero), as training over several
            # processes needs of every parameter in every step
            return inputs_embeds + 0 * self.extract_feature(padding[:1]).sum().to(inputs_embeds)
        if not tiles:
            return inputs_embeds
        if image_features is None:
            image_features = self.extract_feature(pixel_values)
        image_features = image_features.flatten(0, -2).to(inputs_embeds.device, inputs_embeds.dtype)
        return inputs_embeds.masked_scatter(is_image.unsqueeze(-1).to(inputs_embeds.device), image_features)

    @property
    def base_model(self):
        """The model without its language head: called like it, gives `last_hidden_state` (TRL scores with that)."""
        return Backbone(self)

    def _hidden_states(
        self,
        input_ids=None,
        pixel_values=None,
        attention_mask=None,
        position_ids=None,
        image_flags=None,
        past_key_values=None,
        inputs_embeds=None,
        image_features=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,  # PEFT gives it to the view without head, too; what comes back is always an output object
        **kwargs,
    ):
        _check_inputs(input_ids, inputs_embeds, pixel_values, image_features)
        has_images = pixel_values is not None or image_features is not None
        if inputs_embeds is None and (has_images or input_ids.shape[1] > 1):
            inputs_embeds = self.embed(input_ids, pixel_values, image_flags, image_features)
        elif inputs_embeds is None:
            # A decoding step: counting image tokens would make the GPU wait for each token
            inputs_embeds = self.get_input_embeddings()(input_ids)
        decoder = self.get_decoder()
        return decoder(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            return_dict=True,
            output_attentions=self.config.output_attentions if output_attentions is None else output_attentions,
            output_hidden_states=(
                self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
            ),
            **accepted_keywords(decoder, kwargs),
        )

    def _forward(self, labels=None, logits_to_keep=0, num_items_in_batch=None, return_dict=None, **inputs):
        output = self._hidden_states(**inputs)
        hidden_states = output.last_hidden_state  # (batch, length, H)
        if torch.is_tensor(logits_to_keep):
            hidden_states = hidden_states[:, logits_to_keep]
        elif logits_to_keep:
            hidden_states = hidden_states[:, -logits_to_keep:]
        logits = self.get_output_embeddings()(hidden_states)
        output = CausalLMOutputWithPast(
            loss=None if labels is None else next_token_loss(logits, labels, num_items_in_batch),
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return output if return_dict is None or return_dict else output.to_tuple()


class Backbone:
    """A view of a model without its language head. Not a module: it owns no weights and adds no names."""

    def __init__(self, model):
        self.model = model

    def __call__(self, logits_to_keep=0, **inputs):
        """The decoder's output for the model's inputs; every position is kept, as `last_hidden_state` promises."""
        return self.model._hidden_states(**inputs)

    def __getattr__(self, name):
        return getattr(self.model, name)


class SkyworkChatModel(SkyworkModelBase):
    """Skywork-R1V with the calls of its model card: `chat`, `batch_chat`, `generate` of new tokens only.

    Attributes:
        conv_template: the conversation template of the config's `template`; copied for each call.
        system_message: the system message of every conversation; empty, as in training, unless a script sets it.
    """

    main_input_name = "pixel_values"

    def __init__(self, config, vision_model=None, language_model=None, use_flash_attn=None):
        super().__init__(config, vision_model, language_model, use_flash_attn)
        self.template = config.template
        self.conv_template = get_conv_template(config.template)
        self.system_message = self.conv_template.system_message
        self._image_processor = None

    def forward(
        self,
        pixel_values=None,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        image_flags=None,
        past_key_values=None,
        labels=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        inputs_embeds=None,
        image_features=None,
        logits_to_keep=0,
        num_items_in_batch=None,
        **kwargs,
    ):
        """See `SkyworkChatForConditionalGeneration.forward`; the order of the arguments is the published one."""
        return self._forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            image_flags=image_flags,
            past_key_values=past_key_values,
            labels=labels,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            inputs_embeds=inputs_embeds,
            image_features=image_features,
            logits_to_keep=logits_to_keep,
            num_items_in_batch=num_items_in_batch,
            **kwargs,
        )

    @torch.no_grad()
    def generate(
        self,
        pixel_values=None,
        input_ids=None,
        attention_mask=None,
        visual_features=None,
        generation_config=None,
        output_hidden_states=None,
        inputs_embeds=None,
        image_token_id=None,
        **generate_kwargs,
    ):
        """Continue prompts, with images or without.

        Args:
            pixel_values: (tiles, channels, side, side) of all rows, in the order of their tokens, or None.
            input_ids: (batch, length), left-padded; or `inputs_embeds` (batch, length, H).
            attention_mask: (batch, length).
            visual_features: (tiles, num_image_token, H), what `extract_feature` gave, in place of `pixel_values`.
            image_token_id: the id that image features replace, if not `img_context_token_id`.
            generation_config, generate_kwargs: as of transformers' `generate`, `streamer` among them.

        Returns:
            (batch, new tokens): only what was generated, without the prompt.

        Raises:
            ValueError: neither or both of `input_ids` and `inputs_embeds`, images twice, with `inputs_embeds` or not
                matching the prompt, or a prompt that with `max_new_tokens` exceeds the context.
        """
        _check_inputs(input_ids, inputs_embeds, pixel_values, visual_features)
        longest = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
        if attention_mask is not None:
            longest = int(attention_mask.sum(dim=-1).max())
        most = new_tokens(generate_kwargs, generation_config, longest)
        check_context(longest, most, self.config.llm_config.max_position_embeddings)
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, pixel_values, None, visual_features, image_token_id)
        if output_hidden_states is not None:
            generate_kwargs["output_hidden_states"] = output_hidden_states
        generate_kwargs.pop("token_type_ids", None)  # which a tokenizer may give and a Qwen2 does not take
        return generate_from_embeddings(
            self.language_model,
            inputs_embeds,
            cpu_backend,
            attention_mask=attention_mask,
            generation_config=generation_config,
            **generate_kwargs,
        )

    def chat(
        self,
        tokenizer,
        pixel_values,
        question,
        generation_config,
        history=None,
        return_history=False,
        num_patches_list=None,
        IMG_START_TOKEN=IMAGE_START,
        IMG_END_TOKEN=IMAGE_END,
        IMG_CONTEXT_TOKEN=IMAGE_CONTEXT,
        verbose=False,
        mode="think",
        system_message=None,
        thinking_budget=None,
    ):
        """Ask a question about images, or about none.

        Args:
            tokenizer: the checkpoint's tokenizer.
            pixel_values: (tiles, channels, side, side), all images of the conversation one after another; or images
                themselves, PIL or paths, one or a list of them, which are tiled here; or what `encode_images` gave; or
                None.
            question: text; each literal `<image>` stands for one image, the first for the first. Where the question
                has none, the images that the history does not account for are put in front of it.
            generation_config: a dict of `generate`'s keywords (`max_new_tokens`, `do_sample`, `streamer`, …) or a
                `GenerationConfig`; None is the checkpoint's. Neither is changed. Without `max_new_tokens` an answer may
                take the rest of the context.
            history: earlier turns, a list of (question, answer), as returned. Not changed.
            return_history: return (answer, history with this turn) rather than the answer.
            num_patches_list: tiles of each image; None means that all tiles are of one image.
            verbose: log the prompt and the answer.
            mode: "think", or "no-think" to have the answer without reasoning.
            system_message: in place of the model's own `system_message`.
            thinking_budget: close `</think>` after so many tokens of thinking; without effect on "no-think".

        Returns:
            The answer, with its thinking up to `</think>` (see `split_thinking` in conversation.py).

        Raises:
            ValueError: numbers of images, tiles and `<image>` that do not match, an unknown mode, a tokenizer without
                the image tokens, or a request that exceeds the context or leaves no room after the thinking.
            GenerationInterrupted: on Ctrl-C, with what had been written.
        """
        _check_image_tokens(IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN)
        answer, history = self._chat(
            tokenizer,
            pixel_values,
            question,
            generation_config,
            history=history,
            num_patches_list=num_patches_list,
            verbose=verbose,
            mode=mode,
            system_message=system_message,
            thinking_budget=thinking_budget,
        )
        return (answer, history) if return_history else answer

    def chat_stream(
        self,
        tokenizer,
        pixel_values,
        question,
        generation_config,
        history=None,
        num_patches_list=None,
        IMG_START_TOKEN=IMAGE_START,
        IMG_END_TOKEN=IMAGE_END,
        IMG_CONTEXT_TOKEN=IMAGE_CONTEXT,
        verbose=False,
        mode="think",
        system_message=None,
        thinking_budget=None,
    ):
        """`chat()`, as an iterator over pieces of the answer as it is written.

        Leaving the loop, closing the stream or dropping it ends the generation with the token being computed.

        Args:
            As for `chat`, but for `return_history`: the stream has `answer` and `history`.

        Returns:
            `AnswerStream`.

        Raises:
            ValueError: a `streamer` in the generation config; whatever else `chat` raises comes while iterating.
        """
        options = _as_dict(generation_config)
        if options.get("streamer") is not None:
            raise ValueError("chat_stream() brings its own streamer: leave it out of the generation config.")
        _check_image_tokens(IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN)

        def ask(streamer, written):
            return self._chat(
                tokenizer,
                pixel_values,
                question,
                generation_config,
                history=history,
                num_patches_list=num_patches_list,
                verbose=verbose,
                mode=mode,
                system_message=system_message,
                thinking_budget=thinking_budget,
                streamer=streamer,
                written=written,
            )

        return AnswerStream(tokenizer, ask)

    def _chat(
        self,
        tokenizer,
        images,
        question,
        generation_config,
        history=None,
        num_patches_list=None,
        system_message=None,
        mode="think",
        **keywords,
    ):
        """(answer, history with this turn)."""
        images, num_patches_list = self._images_of_chat(images, num_patches_list)
        question = place_images(question, history, len(num_patches_list))
        conversation = self._conversation(question, history, system_message)
        answer = self._answer(
            tokenizer, images, [conversation], [num_patches_list], generation_config, mode, **keywords
        )[0]
        return answer, _history(history, question, answer, conversation, mode)

    def encode_images(self, images, num_patches_list=None):
        """Images through the vision tower and the projector, to be kept across turns, questions or samples.

        Args:
            images: what `chat` takes: images or paths, one or a list, or `pixel_values` with `num_patches_list`.

        Returns:
            `ImageFeatures`, which `chat`, `batch_chat` and `chat_stream` take in place of the images; add two of them
            (`+`) as a conversation gets more images.

        Raises:
            ValueError: no image, or numbers that do not match.
        """
        images, num_patches_list = self._images_of_chat(images, num_patches_list)
        if isinstance(images, ImageFeatures):
            return images
        if images is None:
            raise ValueError("No image was given to encode.")
        with torch.no_grad():
            return ImageFeatures(self.extract_feature(images), num_patches_list)

    def batch_chat(
        self,
        tokenizer,
        pixel_values,
        questions,
        generation_config,
        num_patches_list=None,
        history=None,
        return_history=False,
        IMG_START_TOKEN=IMAGE_START,
        IMG_END_TOKEN=IMAGE_END,
        IMG_CONTEXT_TOKEN=IMAGE_CONTEXT,
        verbose=False,
        image_counts=None,
        mode="think",
        system_message=None,
        thinking_budget=None,
    ):
        """Ask several independent questions in one call; the answers are those of the single calls.

        Args:
            pixel_values: the tiles of all questions' images, one after another; or a list with, for each question,
                None, an image (PIL or path), a list of images, or (for all that have images) what `encode_images` gave.
            questions: a list of texts.
            num_patches_list: tiles of each image, in order. A list of lists says which images belong to which
                question. A flat list gives each question as many as it has `<image>`, or one each (0: none).
            history: for each question its earlier turns or None.
            image_counts: older name of `num_patches_list`.
            The rest as for `chat`.

        Returns:
            A list of answers, or (answers, histories).

        Raises:
            ValueError: as `chat`, and a flat `num_patches_list` that cannot be dealt out.
            GenerationInterrupted: on Ctrl-C, with what had been written of each answer.
        """
        _check_image_tokens(IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN)
        if isinstance(questions, str):
            raise ValueError(f"questions is one text, {questions!r}: pass a list, or call chat().")
        if not len(questions):
            return ([], []) if return_history else []
        num_patches_list = image_counts if num_patches_list is None else num_patches_list
        histories = [None] * len(questions) if history is None else history
        if len(histories) != len(questions):
            raise ValueError(f"{len(questions)} questions but {len(histories)} histories.")
        images, patches = self._images_of_batch(pixel_values, num_patches_list, questions, histories)
        asked = [place_images(q, h, len(p)) for q, h, p in zip(questions, histories, patches)]
        conversations = [self._conversation(q, h, system_message) for q, h in zip(asked, histories)]
        answers = self._answer(
            tokenizer, images, conversations, patches, generation_config, mode, verbose, thinking_budget
        )
        if not return_history:
            return answers
        turns = zip(histories, asked, answers, conversations)
        return answers, [_history(*turn, mode) for turn in turns]

    def _conversation(self, question, history, system_message):
        system_message = self.system_message if system_message is None else system_message
        return open_conversation(self.conv_template, question, history, system_message)

    def _answer(
        self,
        tokenizer,
        images,
        conversations,
        patches,
        generation_config,
        mode,
        verbose=False,
        thinking_budget=None,
        streamer=None,
        written=None,
    ):
        """The answers to conversations, whose images are pixel values, `ImageFeatures` or None, in their order."""
        if mode not in ("think", "no-think"):
            raise ValueError(f"mode={mode!r} is unknown; expected 'think' or 'no-think'.")
        image_token_id = token_id(tokenizer, IMAGE_CONTEXT)
        if image_token_id is None and images is not None:
            raise ValueError(
                f"The tokenizer has no token {IMAGE_CONTEXT}: load it from the checkpoint's own repository."
            )
        rows = []
        for conversation, counts in zip(conversations, patches):
            segments = conversation.segments([self.num_image_token * count for count in counts])
            if mode == "no-think":
                segments.append((conversation.skipped_thinking, True))
            rows.append(encode_segments(tokenizer, segments, conversation.begin))
        template, device = conversations[0], tokens_device(self.get_input_embeddings())
        if generation_config is None:
            generation_config = self.generation_config
        options, config = _generation_options(generation_config, tokenizer, template)
        longest = max(map(len, rows))
        most = new_tokens(options, config, longest)
        if most is None:  # transformers would stop at 20 tokens
            if "static" in str(requested_cache(options, config)):
                raise ValueError(
                    "cache_implementation='static' without a length: the whole cache is allocated at once, and every "
                    "token attends over all of it. Set max_new_tokens."
                )
            most = options["max_new_tokens"] = max(1, self.config.llm_config.max_position_embeddings - longest)
        if streamer is not None:
            options["streamer"] = streamer
        if thinking_budget is not None and mode == "think":
            budget = _thinking_budget(tokenizer, template, thinking_budget, most)
            options["logits_processor"] = [*(options.get("logits_processor") or []), budget]
        written = Written() if written is None else written
        options["stopping_criteria"] = [*(options.get("stopping_criteria") or []), written]
        if options.get("stop_strings") or getattr(config, "stop_strings", None):
            options.setdefault("tokenizer", tokenizer)
        input_ids, attention_mask = left_pad(rows, options["pad_token_id"], device)
        kept = images.features if isinstance(images, ImageFeatures) else None

        stops = _ids(options.get("eos_token_id", getattr(config, "eos_token_id", None)))

        def texts_of(rows):
            rows = [row.tolist() if torch.is_tensor(row) else row for row in rows]
            # A row that a stop token has ended is padded, with a token that may be an ordinary one
            ends = [next((end for end, token in enumerate(row, 1) if token in stops), len(row)) for row in rows]
            texts = tokenizer.batch_decode([row[:end] for row, end in zip(rows, ends)], skip_special_tokens=True)
            return [text.split(template.sep.strip())[0].strip() for text in texts]

        try:
            output = self.generate(
                pixel_values=images if kept is None else None,
                visual_features=kept,
                input_ids=input_ids,
                attention_mask=attention_mask,
                generation_config=config,
                image_token_id=image_token_id,
                **options,
            )
        except KeyboardInterrupt as interrupt:
            # Beams have several rows for each question, its best first
            ids = [[] for _ in rows] if written.ids is None else written.ids[:: len(written.ids) // len(rows)]
            ids = [row[GENERATED_FROM:] for row in ids]
            raise GenerationInterrupted(texts_of(ids)) from interrupt
        answers = texts_of(output if torch.is_tensor(output) else output.sequences)
        if verbose:
            for conversation, answer in zip(conversations, answers):
                logger.warning(f"{conversation.get_prompt()}{answer}")
        return answers

    def _images_of_chat(self, images, num_patches_list):
        """(pixel values, `ImageFeatures` or None; tiles of each image)."""
        if isinstance(images, ImageFeatures):
            if num_patches_list not in (None, images.num_patches):
                raise ValueError(f"num_patches_list={num_patches_list}, but the features are of {images.num_patches}.")
            return images, images.num_patches
        if images is None or torch.is_tensor(images):
            return _checked_tiles(images, num_patches_list)
        if num_patches_list is not None:
            raise ValueError("num_patches_list goes with pixel_values; images are tiled here.")
        images = list(images) if isinstance(images, (list, tuple)) else [images]
        return self._tile(images) if images else (None, [])

    def _images_of_batch(self, images, num_patches_list, questions, histories):
        if images is not None and not torch.is_tensor(images):
            if num_patches_list is not None:
                raise ValueError("num_patches_list goes with pixel_values; images are tiled here.")
            if not isinstance(images, (list, tuple)):
                raise ValueError(
                    f"images is one {type(images).__name__}; expected pixel_values, or a list with an entry for each "
                    f"of the {len(questions)} questions."
                )
            if len(images) != len(questions):
                raise ValueError(f"{len(questions)} questions but {len(images)} entries of images; None is one, too.")
            if any(isinstance(entry, ImageFeatures) for entry in images):
                return _concatenated(images)
            groups = [[] if i is None else list(i) if isinstance(i, (list, tuple)) else [i] for i in images]
            flat = [image for group in groups for image in group]
            pixel_values, counts = self._tile(flat) if flat else (None, [])
            remaining = iter(counts)
            return pixel_values, [[next(remaining) for _ in group] for group in groups]
        patches = _deal_out(num_patches_list, images, questions, histories)
        flat = [count for group in patches for count in group]
        return _checked_tiles(images, flat)[0], patches

    def _tile(self, images):
        """PIL images or paths to (pixel_values, tiles of each), with the image processor of this repository."""
        if self._image_processor is None:
            self._image_processor = load_image_processor(self)
        dtype = self.vision_model.embeddings.patch_embedding.weight.dtype
        features = self._image_processor(images=images, dtype=dtype, return_tensors="pt")
        return features["pixel_values"], [int(count) for count in features["num_patches"]]


class SkyworkChatForConditionalGeneration(SkyworkModelBase):
    """Skywork-R1V with the calls of transformers: `generate` returns prompt and completion."""

    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        image_flags=None,
        image_features=None,
        logits_to_keep=0,
        num_items_in_batch=None,
        **kwargs,
    ):
        """Logits, and with labels the loss.

        Args:
            input_ids: (batch, length), with `num_image_token` image tokens for each tile; or `inputs_embeds`
                (batch, length, H).
            pixel_values: (tiles, channels, side, side) of all rows, in the order of their tokens.
            attention_mask: (batch, length).
            past_key_values: the cache of earlier positions; images belong to the call that has their tokens.
            labels: (batch, length), -100 where no loss counts; shifted inside.
            image_flags: (tiles,); tiles flagged 0 are padding.
            image_features: what `extract_feature` gave, in place of `pixel_values`.
            logits_to_keep: logits of the last so many positions only (0: all), or an index tensor.
            num_items_in_batch: divisor of the loss for gradient accumulation, see `next_token_loss`.

        Returns:
            `CausalLMOutputWithPast` with logits (batch, length or fewer, vocabulary).

        Raises:
            ValueError: images that do not match the image tokens, or neither or both kinds of input.
        """
        return self._forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            image_flags=image_flags,
            past_key_values=past_key_values,
            labels=labels,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            inputs_embeds=inputs_embeds,
            image_features=image_features,
            logits_to_keep=logits_to_keep,
            num_items_in_batch=num_items_in_batch,
            **kwargs,
        )

    def generate(self, inputs=None, generation_config=None, *arguments, **keywords):
        """As transformers', with compiled decoding wherever `cache_implementation="static"` is asked for."""
        keywords = compiled_decoding(keywords, generation_config, self.device, cpu_backend)
        ids = keywords.get("input_ids") if inputs is None else inputs
        if ids is not None:
            keywords["prompt_length"] = ids.shape[1]
        with one_static_cache_at_a_time(keywords, generation_config):
            return super().generate(inputs, generation_config, *arguments, **keywords)

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """Repeat each row for beams or several samples, and with it all of its tiles in their order.

        transformers' own repeats along the first axis, which for images counts tiles, not rows.
        """
        images = {name: model_kwargs.pop(name, None) for name in ("pixel_values", "image_features")}
        input_ids_of_rows = input_ids
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        for name, tiles in images.items():
            if tiles is not None and expand_size > 1:
                image_tokens = (input_ids_of_rows == self.img_context_token_id).sum(-1)
                of_rows = tiles.split((image_tokens // self.num_image_token).tolist())
                tiles = torch.cat([block for block in of_rows for _ in range(expand_size)])
            model_kwargs[name] = tiles
        return input_ids, model_kwargs

    def prepare_inputs_for_generation(
        self,
        input_ids,
        past_key_values=None,
        pixel_values=None,
        image_features=None,
        inputs_embeds=None,
        prompt_length=None,
        **kwargs,
    ):
        """The language model's own inputs; the images go with the step that has their tokens.

        Args:
            prompt_length: tokens in front of the first that may be generated. Prompt lookup guesses what follows by
                copying from the prompt; an image token among the guesses is no image, and never right.
        """
        inputs = self.language_model.prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, inputs_embeds=inputs_embeds, **kwargs
        )
        images = {"pixel_values": pixel_values, "image_features": image_features}
        is_first = cached_length(past_key_values) == 0
        if is_first:
            inputs.update(images)
        ids = inputs.get("input_ids")
        if ids is None or prompt_length is None or ids.shape[1] == 1:  # plain decoding: nothing to look at
            return inputs
        positions = torch.arange(input_ids.shape[1], device=ids.device)
        are_images = (input_ids == self.img_context_token_id) & (positions < prompt_length)
        are_new = are_images[:, -ids.shape[1] :]
        inputs["input_ids"] = ids.masked_fill((ids == self.img_context_token_id) & ~are_new, 0)
        if not is_first and are_new.any():
            # A cache of earlier turns, and new images: of all tiles in the prompt those that the cache does not have
            if len(ids) > 1:
                raise ValueError("A cache of earlier turns takes new images in one conversation at a time (batch 1).")
            tiles = int(are_images.sum()) // self.num_image_token
            known = int(are_images[:, : -ids.shape[1]].sum()) // self.num_image_token
            for name, value in images.items():
                inputs[name] = value[known:] if value is not None and len(value) == tiles else value
        return inputs


def upload(folder, repo_id=None, token=None, private=None, commit_message="Upload model", create_pr=False):
    """Put a folder on the Hub as it is, in a repository that is created if need be."""
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id or Path(folder).name, private=private, exist_ok=True).repo_id
    api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message, create_pr=create_pr)


def copy_repository_files(source, target, revision=None, cache_dir=None, subfolder=""):
    """Copy the code, and what `source` has of the tokenizer and processor files, into a saved checkpoint.

    Args:
        source: the repository that the model came from, a directory or a Hub id (only its local cache is read).
        target: the directory; files of these names that it has already stay.
        revision, cache_dir: the commit of a Hub repository, and the cache if it is not the usual one.
        subfolder: of the repository, where the model lies.
    """
    here = Path(__file__).resolve().parent
    origins = {name: here / name for name in CODE_FILES}
    for name in SUPPORT_FILES if source else ():
        is_local, path = Path(source).is_dir(), f"{subfolder}/{name}" if subfolder else name
        cached = None if is_local else try_to_load_from_cache(source, path, cache_dir=cache_dir, revision=revision)
        origins[name] = Path(source) / path if is_local else cached
    for name, origin in origins.items():
        destination = target / name
        # The cache answers with None or a marker object for a file that it does not have
        if isinstance(origin, (str, Path)) and Path(origin).is_file() and not destination.exists():
            destination.parent.mkdir(exist_ok=True)
            shutil.copyfile(origin, destination)
    missing = [name for name in ("tokenizer.json", "preprocessor_config.json") if not (target / name).exists()]
    if source and missing and not Path(source).is_dir():
        logger.warning(
            f"{target} has no {' and no '.join(missing)}: of {source} only what is in the cache is copied. Load "
            "tokenizer and processor from there once, and save_pretrained() them into it."
        )


def _check_inputs(input_ids, inputs_embeds, pixel_values, image_features):
    """See that a prompt is given once, and its images at most once."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Exactly one of input_ids and inputs_embeds must be given.")
    if inputs_embeds is not None and (pixel_values is not None or image_features is not None):
        raise ValueError("Images go with input_ids; inputs_embeds has their features already: see embed().")
    if pixel_values is not None and image_features is not None:
        raise ValueError("Give pixel_values or their features, not both.")


def _history(history, question, answer, conversation, mode):
    """The history with one more turn, which is replayed as it was generated: without thinking, if so."""
    replayed = conversation.skipped_thinking + answer if mode == "no-think" else answer
    return [*(history or []), (question, replayed)]


def _check_image_tokens(*tokens):
    """See that the model card's keywords name the tokens that the templates write: no others are supported."""
    expected = (IMAGE_START, IMAGE_END, IMAGE_CONTEXT)
    if tokens != expected:
        raise ValueError(f"The image tokens {tokens} were given; this model's are {expected}: leave the keywords out.")


def _concatenated(images):
    """(`ImageFeatures` of all, for each question the tiles of its images) of a list of `ImageFeatures` and None."""
    if any(not isinstance(entry, (ImageFeatures, type(None))) for entry in images):
        raise ValueError("images mixes encoded images with others: pass all of them through encode_images() first.")
    given = [entry for entry in images if entry is not None]
    features = ImageFeatures(torch.cat([entry.features for entry in given]), [n for e in given for n in e.num_patches])
    return features, [[] if entry is None else list(entry.num_patches) for entry in images]


def _checked_tiles(pixel_values, num_patches_list):
    """(pixel_values or None, tiles of each image), which agree."""
    tiles = 0 if pixel_values is None else len(pixel_values)
    if num_patches_list is None:
        num_patches_list = [tiles] if tiles else []
    num_patches_list = [int(count) for count in num_patches_list]
    if sum(num_patches_list) != tiles or any(count < 1 for count in num_patches_list):
        raise ValueError(
            f"num_patches_list={num_patches_list} stands for {sum(num_patches_list)} tiles but pixel_values has "
            f"{tiles}: give the number of tiles of each image, each at least 1."
        )
    return (pixel_values if tiles else None), num_patches_list


def _deal_out(num_patches_list, pixel_values, questions, histories):
    """The tiles of each image, for each question a list."""
    if pixel_values is None and not num_patches_list:
        return [[] for _ in questions]  # text only; an `<image>` in it is a word
    if num_patches_list is None:
        num_patches_list = [len(pixel_values)]
    if any(isinstance(entry, (list, tuple)) for entry in num_patches_list):
        if len(num_patches_list) != len(questions):
            raise ValueError(f"{len(questions)} questions but {len(num_patches_list)} entries in num_patches_list.")
        return [list(entry) if isinstance(entry, (list, tuple)) else [entry] for entry in num_patches_list]
    texts = [[q, *(earlier for earlier, _ in checked_turns(h))] for q, h in zip(questions, histories)]
    placeholders = [
        sum(getattr(text, "num_images", text.count(IMAGE_PLACEHOLDER)) for text in group) for group in texts
    ]
    if sum(placeholders) == len(num_patches_list) and all(num_patches_list):
        remaining = iter(num_patches_list)
        return [[next(remaining) for _ in range(count)] for count in placeholders]
    if len(num_patches_list) == len(questions):
        return [[count] if count else [] for count in num_patches_list]
    raise ValueError(
        f"num_patches_list has {len(num_patches_list)} images for {len(questions)} questions with {placeholders} "
        f"{IMAGE_PLACEHOLDER}: pass a list of lists, one list for each question."
    )


def _as_dict(generation_config):
    """The keywords in a generation config that is not a `GenerationConfig`.

    The dicts in it are copied, too: transformers 4.56 to 5.18 writes into `cache_config`.
    """
    if isinstance(generation_config, GenerationConfig) or generation_config is None:
        return {}
    return {name: dict(value) if isinstance(value, dict) else value for name, value in generation_config.items()}


def _thinking_budget(tokenizer, template, budget, max_new_tokens):
    """The processor that closes the thinking as the template does where it is skipped."""
    closing = encode_segments(tokenizer, [(template.skipped_thinking, True)])
    think_end_id = token_id(tokenizer, THINK_END)
    if think_end_id is None:
        raise ValueError(
            f"thinking_budget={budget}: the tokenizer has no token {THINK_END} that could close a thinking."
        )
    processor = ThinkingBudget(budget, closing, think_end_id, GENERATED_FROM)
    if max_new_tokens is not None and max_new_tokens <= budget + len(closing):
        raise ValueError(
            f"thinking_budget={budget} and max_new_tokens={max_new_tokens}: the thinking and the {len(closing)} tokens "
            "that close it leave no room for an answer; raise max_new_tokens or lower the budget."
        )
    return processor


def _generation_options(generation_config, tokenizer, template):
    """Keywords for `generate` and, if given as one, the `GenerationConfig`; stop and pad tokens filled in."""
    options = _as_dict(generation_config)
    config = generation_config if isinstance(generation_config, GenerationConfig) else None
    samples = options.get("num_return_sequences") or getattr(config, "num_return_sequences", None) or 1
    if samples != 1:
        raise ValueError(
            f"num_return_sequences={samples}: chat gives one answer to a question; use generate() for more."
        )
    for name in ("eos_token_id", "pad_token_id"):
        if options.get(name, 0) is None:
            del options[name]
    stops = [token_id(tokenizer, token) for token in template.stop_strings]
    stops = [stop for stop in stops if stop is not None] or [tokenizer.eos_token_id]
    if getattr(config, "eos_token_id", None) is None:
        options.setdefault("eos_token_id", stops)
    if getattr(config, "pad_token_id", None) is None:
        pad = tokenizer.pad_token_id
        options.setdefault("pad_token_id", stops[0] if pad is None else pad)
    else:
        options["pad_token_id"] = config.pad_token_id
    return options, config


def _ids(token_ids):
    """A set of ids from one, a list or None, as generation configs have them."""
    return set(token_ids) if isinstance(token_ids, (list, tuple, set)) else {token_ids}


def left_pad(rows, pad_token_id, device):
    """Lists of ids to (input_ids, attention_mask), each (rows, longest), padded on the left."""
    length = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), length), pad_token_id)
    attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        input_ids[index, length - len(row) :] = torch.tensor(row)
        attention_mask[index, length - len(row) :] = 1
    return input_ids.to(device), attention_mask.to(device)


def next_token_loss(logits, labels, num_items_in_batch=None):
    """Cross entropy of the next token, in fp32.

    Args:
        logits: (batch, length, vocabulary).
        labels: (batch, length); -100 is ignored.
        num_items_in_batch: divide the sum by this, as a trainer that accumulates gradients asks for, not by the
            number of labels in this batch.

    Returns:
        A scalar; where no label counts, zero (a mean over nothing would be NaN).

    Raises:
        ValueError: lengths that differ, as when logits were cut by `logits_to_keep`.
    """
    if logits.shape[1] != labels.shape[1]:
        raise ValueError(
            f"labels have length {labels.shape[1]} and logits {logits.shape[1]}: a loss needs logits_to_keep=0."
        )
    labels = labels[:, 1:].to(logits.device).flatten()
    total = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels, ignore_index=-100, reduction="sum")
    count = (labels != -100).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return total / (count.to(total.device) if torch.is_tensor(count) else count)
