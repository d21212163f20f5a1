"""Model, processor and image processor under transformers' own tests; run by tests/mixins.py.

Each test passes, is skipped by transformers itself, or stands in a table with the reason why it
does not apply.
"""

import unittest
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoImageProcessor

from preprocessor import image_processing_skywork_chat, processing_skywork_chat
from remote_code import configuration_skywork_chat, modeling_skywork_chat
from tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from tests.test_processing_common import MODALITY_TEST_SPECS, ProcessorTesterMixin

NANO = Path(image_processing_skywork_chat.__file__).parents[1] / "nano"

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
    "test_apply_chat_template_tool_calls_no_content": (
        "the model was not taught to call tools, so the template refuses them by name"
    ),
    "test_chat_template_message_objects": (
        "a template gets the places of images, not their addresses; that message objects are read "
        "is in tests/test_processor.py"
    ),
    "test_call_arguments_default_none": (
        "a rule for transformers' own code: keywords of the processor are in its signature here"
    ),
    "test_call_arguments_not_in_attributes": "as the rule before",
    "test_call_arguments_not_in_processor_kwargs": "as the rule before",
    "test_subprocessor_defaults_preserved_by_kwargs_0_images": (
        "padding and its length are given in a call; the tokenizer's own are not read"
    ),
    "test_call_numpy_4_channels": "pictures are RGB, and the mean is a setting of the processor",
    "test_new_models_require_torchvision_backend": "a rule for models in transformers itself",
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


# The tests load without trust_remote_code; a class that is registered is no remote code.
AutoConfig.register("skywork_chat", configuration_skywork_chat.SkyworkChatConfig)
AutoImageProcessor.register(
    configuration_skywork_chat.SkyworkChatConfig,
    image_processing_skywork_chat.SkyworkImageProcessor,
)
# The setting of images whose way through the processor is tested: pictures of 400 × 30 become two
# tiles and a thumbnail, and one tile without it. The tests' own, rescale_factor, is none here.
MODALITY_TEST_SPECS["images"]["init_time_kwargs"] = {"max_dynamic_patch": 2}


class ProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    """The processor of nano, with one tile for each picture unless a test says otherwise."""

    processor_class = processing_skywork_chat.SkyworkChatProcessor
    model_id = str(NANO)

    @classmethod
    def _setup_from_pretrained(cls, model_id):
        processor = cls.processor_class.from_pretrained(model_id)
        processor.image_processor.max_dynamic_patch = 1
        return processor

    @classmethod
    def _setup_test_attributes(cls, processor):
        """Where an image belongs is marked by a word in the text, not by the image token."""
        cls.image_token = "<image>"

    def _check_modality_outputs(self, inputs, modality):
        assert modality == "images" and len(inputs["pixel_values"]) % 3 == 0


class ImageTester(ImageProcessingTester):
    """Tiles of 112 pixels, one for each picture, as the tests count them."""

    def _get_image_processing_classes(self):
        return {"pil": image_processing_skywork_chat.SkyworkImageProcessor}

    def prepare_image_processor_dict(self):
        return {"size": 112, "max_dynamic_patch": 1}

    def expected_output_image_shape(self, images):
        return 3, 112, 112


class ImageProcessorTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ImageTester
