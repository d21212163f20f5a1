"""Skywork-R1V for LLaMA-Factory 0.9: its training command with this model's template and parts.

    python integrations/llama_factory_plugin.py train.yaml
    torchrun --nproc-per-node 8 integrations/llama_factory_plugin.py train.yaml

train.yaml is LLaMA-Factory's own, with `template: skywork_r1v` and `trust_remote_code: true`.
`freeze_vision_tower`, `freeze_multi_modal_projector` and `freeze_language_model` work. The template
opens the thinking, so an answer to train on is "thinking</think>answer"; a `<think>` in front of it
is taken off. LLaMA-Factory makes pictures smaller than `image_max_pixels` (589,824 unless set)
before they are tiled.
"""

from __future__ import annotations

from typing import Any

from llamafactory.data.formatter import EmptyFormatter, StringFormatter
from llamafactory.data.mm_plugin import get_mm_plugin
from llamafactory.data.template import Template, register_template
from llamafactory.model.model_utils.visual import _register_composite_model
from llamafactory.train.tuner import run_exp

NAME = "skywork_r1v"
THINK_START = "<think>"


class SkyworkTemplate(Template):
    """A template whose prompt opens the thinking."""

    def _encode(
        self, tokenizer: Any, messages: list[dict[str, str]], *rest: Any
    ) -> list[list[int]]:
        prepared = []
        for message in messages:
            content = message["content"]
            if message["role"] == "assistant":
                content = content.removeprefix(THINK_START).lstrip("\n")
            prepared.append({**message, "content": content})
        return super()._encode(tokenizer, prepared, *rest)


register_template(
    name=NAME,
    format_user=StringFormatter(slots=["<｜User｜>\n{{content}}<｜Assistant｜><think>\n"]),
    format_prefix=EmptyFormatter(slots=[{"bos_token"}]),
    mm_plugin=get_mm_plugin(name="intern_vl", image_token="<image>", video_token="<video>"),
    template_class=SkyworkTemplate,
)
_register_composite_model(
    model_type="skywork_chat",
    projector_keys=["mlp1"],
    vision_model_keys=["vision_model"],
    language_model_keys=["language_model"],
)

if __name__ == "__main__":
    run_exp()
