"""The standard class under transformers' own tests of models; run by tests/mixins.py.

Each test passes, is skipped by transformers itself, or stands in a table with the reason why it
does not apply.
"""

import unittest

import pytest

from remote_code import configuration_skywork_chat, modeling_skywork_chat
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor

IMAGE_TOKEN = 3
END = 2
# Tests that do not apply, and why.
NOT_APPLICABLE = {
    "test_generation_tester_mixin_inheritance": (
        "the source distribution has no GenerationTesterMixin to inherit from"
    ),
    "test_multimodal_outputs_are_returned": (
        "forward() gives no image_outputs: get_image_features() has what the vision tower computed"
    ),
}


class Tester:
    """Tiny shapes: one tile for each row, which is one token."""

    is_training = True
    batch_size = 7  # transformers fills smaller batches with random ids, image tokens among them
    seq_length = 7
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return configuration_skywork_chat.SkyworkChatConfig(
            vision_config={
                "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 37,
                "num_hidden_layers": 2, "image_size": 28, "patch_size": 14, "drop_path_rate": 0.0,
            },
            llm_config={
                "architectures": ["Qwen2ForCausalLM"], "hidden_size": 32, "intermediate_size": 37,
                "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                "vocab_size": 99, "max_position_embeddings": 64, "bos_token_id": 1,
                "eos_token_id": END, "pad_token_id": END,
            },
            image_token_id=IMAGE_TOKEN, ps_version="v2", template="skywork-r1v",
        )  # fmt: skip

    def prepare_config_and_inputs_for_common(self):
        ids = ids_tensor([self.batch_size, self.seq_length], 90) + 4  # neither image nor end
        ids[:, 1] = IMAGE_TOKEN
        inputs = {
            "input_ids": ids,
            "attention_mask": ids.new_ones(ids.shape),
            "pixel_values": floats_tensor([self.batch_size, 3, 28, 28]),
        }
        return self.get_config(), inputs


class StandardClassTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (modeling_skywork_chat.SkyworkChatForConditionalGeneration,)
    additional_model_inputs = ("pixel_values",)
    _is_composite = True

    def setUp(self):
        self.model_tester = Tester(self)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """transformers knows from a list of its own models which take labels."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels:
            inputs["labels"] = inputs["input_ids"].clone()
        return inputs


@pytest.fixture(autouse=True)
def named_reasons(request):
    """Skip what does not apply, by its reason."""
    name = request.node.name
    if name in NOT_APPLICABLE:
        pytest.skip(NOT_APPLICABLE[name])
