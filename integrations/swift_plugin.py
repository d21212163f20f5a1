"""Skywork-R1V for ms-swift 4, as a model and a template of its own.

    swift sft --external_plugins integrations/swift_plugin.py --model Skywork/Skywork-R1V-38B ...
    swift infer --external_plugins integrations/swift_plugin.py --model Skywork/Skywork-R1V-38B

Prompts are those of `chat()`: the template opens the thinking, so an answer to train on is
"thinking</think>answer". A `<think>` in front of it is taken off. The environment variables
INPUT_SIZE (pixels of a tile) and MAX_NUM (tiles of an image) of ms-swift default to the
checkpoint's own values here.
"""

from __future__ import annotations

import os

from swift.model import Model, ModelArch, ModelGroup, ModelMeta, register_model
from swift.model.models.internlm import InternVLLoader
from swift.template import StdTemplateInputs, TemplateMeta, register_template
from swift.template.templates.internvl import Internvl2Template

NAME = "skywork_r1v"
BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
THINK_START = "<think>"


class SkyworkTemplate(Internvl2Template):
    """InternVL's images in the prompt of DeepSeek-R1."""

    def init_env_args(self) -> None:
        """Take the size and number of tiles from the checkpoint, unless the environment says."""
        super().init_env_args()
        if "INPUT_SIZE" not in os.environ:
            self.input_size = self.config.force_image_size
        if "MAX_NUM" not in os.environ:
            self.max_num = self.config.max_dynamic_patch

    def _preprocess_inputs(self, inputs: StdTemplateInputs) -> None:
        super()._preprocess_inputs(inputs)
        for message in inputs.messages:
            if message["role"] == "assistant" and isinstance(message["content"], str):
                message["content"] = message["content"].removeprefix(THINK_START).lstrip("\n")


register_template(
    TemplateMeta(
        NAME,
        prefix=[BEGIN],
        system_prefix=[BEGIN + "{{SYSTEM}}"],
        prompt=["<｜User｜>\n{{QUERY}}<｜Assistant｜><think>\n"],
        chat_sep=[END],
        suffix=[END],
        template_cls=SkyworkTemplate,
    )
)
register_model(
    ModelMeta(
        NAME,
        [ModelGroup([Model("Skywork/Skywork-R1V-38B", "Skywork/Skywork-R1V-38B")])],
        InternVLLoader,
        template=NAME,
        model_arch=ModelArch.internvl,
        architectures=["SkyworkR1VChatModel"],
        is_multimodal=True,
        tags=["vision"],
    )
)
