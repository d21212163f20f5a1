"""What other programs do with a loaded model: pickles, Trainer's counts, compilation, copies.

The programs themselves run where they are installed; here is what they ask of the classes.
"""

import pickle
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModel, AutoModelForImageTextToText, Trainer, TrainingArguments

from tests import checkpoints


def load(kind):
    return kind.from_pretrained(
        checkpoints.NANO, torch_dtype=torch.float32, trust_remote_code=True
    ).eval()


@pytest.fixture(params=[AutoModel, AutoModelForImageTextToText], ids=["chat", "standard"])
def model(request):
    return load(request.param)


def text_batch(*rows):
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


class TestPickling:
    """Spawned workers, joblib and Ray send models as pickles, and torch.save(model) writes one."""

    def test_a_loaded_model(self, model, tmp_path):
        ids = torch.tensor([[5, 6, 7]])
        with torch.no_grad():
            expected = model(input_ids=ids).logits
            assert torch.equal(pickle.loads(pickle.dumps(model))(input_ids=ids).logits, expected)
            torch.save(model, tmp_path / "model.pt")
            again = torch.load(tmp_path / "model.pt", weights_only=False)
            assert torch.equal(again(input_ids=ids).logits, expected)

    def test_two_loads_give_one_class(self, model):
        kind = AutoModel if hasattr(model, "chat") else AutoModelForImageTextToText
        assert type(load(kind)) is type(model)
        assert getattr(sys.modules[type(model).__module__], type(model).__name__) is type(model)


class TestTrainingWithoutImages:
    """A step of text alone gives a gradient, of zero, to whatever of the vision part trains."""

    @pytest.mark.parametrize("trained", ["mlp1", "vision_model", "mlp1 and language_model"])
    def test_gradients(self, model, trained):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in trained.split())
        model.train()
        model(**text_batch([5, 6, 7, 8])).loss.backward()
        for name, parameter in model.named_parameters():
            if name.startswith(("mlp1", "vision_model")):
                is_reached = parameter.requires_grad and "decoder_only" not in name
                assert (parameter.grad is not None) == is_reached, name
                assert parameter.grad is None or not parameter.grad.any()
            elif parameter.requires_grad:
                assert parameter.grad is not None, name

    def test_no_gradient_is_made_up(self, model):
        """Where nothing of the vision part trains, and while generating."""
        model.train()
        for part in (model.vision_model, model.mlp1):
            part.requires_grad_(False)
        inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
        with torch.no_grad():
            expected = model(**inputs).logits
        assert torch.equal(model(**inputs).logits, expected)
        model.generate(**inputs, max_new_tokens=2)

    def test_a_plain_trainer(self, model, tmp_path):
        """With the projector alone, whose loss needs a gradient in every step."""
        model.requires_grad_(False)
        model.mlp1.requires_grad_(True)
        rows = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}] * 2
        arguments = TrainingArguments(
            str(tmp_path), max_steps=1, use_cpu=True, report_to=[], save_strategy="no"
        )
        Trainer(model, arguments, train_dataset=rows).train()

    def test_ddp_with_a_process_without_images(self, model, tmp_path):
        """DDP waits for a gradient of every parameter that trains."""
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
        )
        try:
            parallel = DistributedDataParallel(model.train())
            for _ in range(2):  # "Expected to have finished reduction" comes in the second step
                parallel(**text_batch([5, 6, 7, 8])).loss.backward()
        finally:
            torch.distributed.destroy_process_group()


def test_trainer_counts_labels_and_tokens_of_both_classes_alike(tmp_path):
    """A label at the first position has no loss, and images are no tokens."""
    rows = [
        {"input_ids": [5, 6, 7, 8], "labels": [5, 6, -100, -100]},
        {"input_ids": [8, 7, 6, 5], "labels": [8, 7, 6, 5]},
    ]
    states = []
    for kind in (AutoModel, AutoModelForImageTextToText):
        arguments = TrainingArguments(
            str(tmp_path), max_steps=1, per_device_train_batch_size=2, use_cpu=True, report_to=[],
            save_strategy="no", include_num_input_tokens_seen="all", logging_steps=1,
        )  # fmt: skip
        trainer = Trainer(load(kind), arguments, train_dataset=rows)
        trainer.train()
        states.append(trainer.state)
    chat, standard = states
    assert chat.num_input_tokens_seen == standard.num_input_tokens_seen == 8
    assert chat.log_history[0]["loss"] == standard.log_history[0]["loss"]
    # by hand: the mean over the labels that a position before them predicts, 1 and 3 of them
    model = load(AutoModel)
    ids = torch.tensor([row["input_ids"] for row in rows])
    labels = torch.tensor([row["labels"] for row in rows])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten())
    assert chat.log_history[0]["loss"] == pytest.approx(expected.item(), abs=1e-3)


class TestForwardKeywords:
    def test_inputs_of_other_models_are_refused(self, model):
        """loss_weight comes from InternVL's collator, and changed nothing here without a word."""
        with pytest.raises(ValueError, match=r"forward\(\) has no loss_weight: the loss counts"):
            model(**text_batch([5, 6, 7]), loss_weight=torch.ones(3))

    def test_unknown_ones_are_named_once(self, model, caplog):
        for _ in range(2):
            model(**text_batch([5, 6, 7]), loss_wieght=1)
        assert caplog.text.count("does not know loss_wieght") == 1

    def test_those_of_decoders_and_processors_are_taken(self, model, caplog):
        batch = text_batch([5, 6, 7])
        model(**batch, cache_position=torch.arange(3), token_type_ids=None, mm_token_type_ids=None)
        assert "does not know" not in caplog.text


class TestCompilationAndExport:
    def test_one_graph(self, model):
        """No break in the graph, images or not."""
        torch._dynamo.reset()
        pixels = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
        ids = torch.tensor([[5, *[1023] * 32, 6]])
        inputs = {"input_ids": ids, "pixel_values": pixels, "use_cache": False}
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        with torch.no_grad():
            expected = model(**inputs).logits
            torch.testing.assert_close(compiled(**inputs).logits, expected, atol=1e-4, rtol=1e-4)

    def test_the_vision_part_with_any_number_of_tiles(self, model):
        """Exported with two tiles it takes twenty."""

        class Vision(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self, pixel_values):
                return self.model.extract_feature(pixel_values)

        def pixels(count):
            return torch.randn(count, 3, 112, 112, generator=torch.Generator().manual_seed(count))

        tiles = torch.export.Dim("tiles", min=1, max=64)
        with torch.no_grad():
            exported = torch.export.export(
                Vision(), (pixels(2),), dynamic_shapes={"pixel_values": {0: tiles}}
            ).module()
            traced = torch.jit.trace(Vision(), pixels(2))
            expected = model.extract_feature(pixels(20))
            # chunks of one tile there, all tiles here: other shapes, so up to rounding
            for vision in (exported, traced):
                torch.testing.assert_close(vision(pixels(20)), expected, atol=1e-4, rtol=1e-4)


SCRIPT = """
import sys
from transformers import AutoModel, AutoTokenizer
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
print(model.chat(tokenizer, sys.argv[2], "Calculate.", {"max_new_tokens": 4, "do_sample": False}))
"""


@pytest.mark.parametrize("how", ["copied", "zipped"])
def test_nano_is_a_repository_wherever_it_is_copied(tmp_path, how):
    folder = tmp_path / "elsewhere"
    if how == "copied":
        shutil.copytree(checkpoints.NANO, folder, symlinks=True)
    else:
        archive = shutil.make_archive(str(tmp_path / "nano"), "zip", checkpoints.NANO)
        zipfile.ZipFile(archive).extractall(folder)
    image = checkpoints.ROOT / "examples" / "image1.jpg"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(image)],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("I read")


def test_image_features_as_transformers_gives_them(model):
    """The features of `extract_feature`, with what the vision tower computed on the way."""
    pixels = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model.get_image_features(pixels, output_hidden_states=True)
        features = model.extract_feature(pixels)
        as_tuple = model.get_image_features(pixels, return_dict=False)
    # one tile either way: the same kernels on the same shapes
    assert torch.equal(output.pooler_output, features)
    assert torch.equal(as_tuple[1], features)
    vision = model.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    assert output.last_hidden_state.shape == (1, 1 + patches, vision.hidden_size)
    assert len(output.hidden_states) == 1 + vision.num_hidden_layers
