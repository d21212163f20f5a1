"""llama.cpp on exported checkpoints: run by `make clients` with llama-cpp-python installed.

Against transformers in float32: the language model's logits and greedy text, the features of a
picture, and the tiles that a picture is cut into. The figures in docs/clients.md are printed here.
"""

import contextlib
import ctypes
import json
import shutil

import llama_cpp
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from llama_cpp import mtmd_cpp
from llama_cpp.llama_chat_format import MTMDChatHandler
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from export import gguf
from export.gguf_sizes import text_bytes, text_shapes
from memory import sizes
from remote_code import configuration_skywork_chat, modeling_skywork_chat
from tasks import samples
from tests import checkpoints

QUESTIONS = (
    "What is 3 + 4?",
    "Read this: 12 - 5. What is the answer?",
    "图 3 + 4? ½ of 7… it's we'LL  \n\n\t x1234.56",
)


def load(folder):
    """A checkpoint in float32 with its tokenizer."""
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, torch_dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    return model.eval(), tokenizer


def open_text(path, **settings):
    return llama_cpp.Llama(str(path), n_ctx=2048, n_threads=2, verbose=False, seed=0, **settings)


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """The folder of nano's files, in float32 and quantized."""
    folder = tmp_path_factory.mktemp("nano")
    gguf.export(checkpoints.NANO, folder, "f32", quantize="Q4_K_M")
    gguf.export(checkpoints.NANO, folder, "q8_0")
    return folder


@pytest.fixture(scope="module")
def reference():
    return load(checkpoints.NANO)


@pytest.mark.parametrize("question", QUESTIONS)
def test_text_becomes_the_same_tokens(nano, reference, question):
    ids = open_text(nano / "model-f32.gguf").tokenize(question.encode(), add_bos=True)
    assert ids == reference[1].encode(question)


def prompt_ids(tokenizer, question):
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer.encode(text, add_special_tokens=False)


def text_logits(llama, ids):
    llama.reset()
    llama.eval(ids)
    return torch.tensor(np.array(llama.scores[: len(ids)]))


# Distances relative to the spread of the logits. Both sides compute in float32, in another order.
@pytest.mark.parametrize("name, tolerance", [("f32", 1e-3), ("q8_0", 0.05), ("Q4_K_M", 0.4)])
def test_logits_of_the_language_model(nano, reference, name, tolerance):
    model, tokenizer = reference
    llama = open_text(nano / f"model-{name}.gguf", logits_all=True)
    distances = []
    for question in QUESTIONS:
        ids = prompt_ids(tokenizer, question)
        with torch.no_grad():
            expected = model.language_model(torch.tensor([ids])).logits[0]
        difference = text_logits(llama, ids) - expected
        distances.append((difference.norm() / (expected - expected.mean()).norm()).item())
    print(f"logits, {name}: relative distance {max(distances):.2e}")
    assert max(distances) < tolerance


def test_greedy_text_is_that_of_chat(nano, reference):
    """On calculations in words, which the model is sure of, so no two tokens are equally likely."""
    model, tokenizer = reference
    llama = open_text(nano / "model-f32.gguf")
    settings = {"max_new_tokens": 200, "do_sample": False}
    rng = np.random.default_rng(5)
    for _ in range(20):
        question = samples.bare_calculation(rng).question
        expected = model.chat(tokenizer, None, question, settings)
        reply = llama.create_chat_completion(
            [{"role": "user", "content": question}],
            max_tokens=200,
            temperature=0,
            repeat_penalty=1.0,
        )
        assert reply["choices"][0]["message"]["content"].strip() == expected.strip()


def test_sizes_from_the_shapes_are_those_of_llama_cpp(nano):
    shapes = text_shapes(sizes.load_config(checkpoints.NANO))
    tensors = GGUFReader(nano / "model-Q4_K_M.gguf").tensors
    assert text_bytes(shapes, "Q4_K_M") == sum(tensor.n_bytes for tensor in tensors)


# -- pictures --------------------------------------------------------------------------------------


def checkpoint_with_tower(folder, **vision_config):
    """Nano with another vision tower of random weights, in bf16."""
    shutil.copytree(checkpoints.NANO, folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"].update(vision_config)
    (folder / "config.json").write_text(json.dumps(config))
    weights = {
        name: tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if name.startswith("language_model.")
    }
    with torch.device("meta"):
        model = modeling_skywork_chat.SkyworkChatModel(
            configuration_skywork_chat.SkyworkChatConfig(**config)
        )
    generator = torch.Generator().manual_seed(0)
    for name, tensor in sorted(model.state_dict().items()):
        if name in weights:
            continue
        spread = 1 / max(tensor.shape[-1], 1) ** 0.5 if tensor.dim() > 1 else 0.1
        value = spread * torch.randn(tensor.shape, generator=generator, dtype=torch.bfloat16)
        is_scale = tensor.dim() == 1 and not name.endswith("bias")
        weights[name] = 1 + value if is_scale else value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@contextlib.contextmanager
def pictures_in(folder, dtype):
    """llama.cpp's context for pictures, with the two files of a folder."""
    llama = open_text(folder / f"model-{dtype}.gguf")
    handler = MTMDChatHandler(str(folder / f"mmproj-{dtype}.gguf"), verbose=False)
    handler._init_mtmd_context(llama)
    yield handler.mtmd_ctx
    llama.close()


def image_chunks(context, image):
    """The parts of a picture as llama.cpp cuts it; whoever asks for the next one frees the last."""
    pixels = np.ascontiguousarray(image.convert("RGB"))
    bitmap = mtmd_cpp.mtmd_bitmap_init(
        image.width, image.height, pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    )
    text = mtmd_cpp.mtmd_input_text()
    text.text = mtmd_cpp.mtmd_default_marker()
    text.text_len = len(text.text)
    text.add_special = False
    text.parse_special = True
    chunks = mtmd_cpp.mtmd_input_chunks_init()
    bitmaps = (mtmd_cpp.mtmd_bitmap_p_ctypes * 1)(bitmap)
    assert mtmd_cpp.mtmd_tokenize(context, chunks, ctypes.byref(text), bitmaps, 1) == 0
    for index in range(mtmd_cpp.mtmd_input_chunks_size(chunks)):
        chunk = mtmd_cpp.mtmd_input_chunks_get(chunks, index)
        if mtmd_cpp.mtmd_input_chunk_get_type(chunk) == mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_IMAGE:
            yield chunk
    mtmd_cpp.mtmd_input_chunks_free(chunks)
    mtmd_cpp.mtmd_bitmap_free(bitmap)


def their_features(context, image, width):
    """The features of a picture's tokens by llama.cpp, tokens × width."""
    found = []
    for chunk in image_chunks(context, image):
        assert mtmd_cpp.mtmd_encode_chunk(context, chunk) == 0
        count = mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk) * width
        values = np.ctypeslib.as_array(mtmd_cpp.mtmd_get_output_embd(context), (count,))
        found.append(torch.tensor(values.copy()).reshape(-1, width))
    return torch.cat(found)


def distance_of_features(folder, out, dtype):
    """How far the features of one tile are apart, relative to how far those of tokens are."""
    model, _ = load(folder)
    image = Image.open(checkpoints.ROOT / "examples" / "images" / "counting_3.png")
    image = image.convert("RGB").resize((112, 112))
    pixels = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)(
        images=[image], return_tensors="pt"
    )["pixel_values"]
    with torch.no_grad():
        expected = model.extract_feature(pixels.float()).reshape(-1, 256)
    gguf.export(folder, out, dtype)
    with pictures_in(out, dtype) as context:
        found = their_features(context, image, 256)
    difference = (found - expected).norm() / (expected - expected.mean(0)).norm()
    return difference.item()


@pytest.mark.parametrize("name, tower, dtype, low, high", [
    # InternViT-300M normalizes by LayerNorm, as llama.cpp does; what differs is GELU by tanh.
    ("LayerNorm", {"norm_type": "layer_norm", "qk_normalization": False}, "f32", 0, 0.02),
    # InternViT-6B in width, depth and heads; a narrow MLP keeps it within this machine.
    (
        "RMSNorm at 3200 × 45",
        {"hidden_size": 3200, "num_hidden_layers": 45, "num_attention_heads": 25,
         "intermediate_size": 64},
        "bf16", 0, 0.05,
    ),
    # Nano itself: llama.cpp computes LayerNorm where the model has RMSNorm.
    ("nano", None, "f32", 0.3, 100),
])  # fmt: skip
def test_features_of_a_tile(tmp_path, name, tower, dtype, low, high):
    folder = checkpoints.NANO
    if tower is not None:
        folder = checkpoint_with_tower(tmp_path / "checkpoint", **tower)
    distance = distance_of_features(folder, tmp_path / "out", dtype)
    print(f"features, {name}: relative distance {distance:.2e}")
    assert low <= distance < high


# Pictures of nano's tile size of 112 pixels, with the tiles of `select_grid` and of llama.cpp, the
# thumbnail among them. llama.cpp takes the grid that keeps most pixels, and never enlarges.
@pytest.mark.parametrize("size, ours, theirs", [
    ((112, 112), 1, 1),
    ((100, 50), 3, 1),  # smaller than a tile: llama.cpp does not enlarge
    ((224, 112), 3, 3),
    ((300, 300), 5, 5),
    ((800, 400), 3, 7),
    ((1000, 1000), 5, 5),
])  # fmt: skip
def test_tiles_of_a_picture(nano, size, ours, theirs):
    image = Image.new("RGB", size)
    processor = AutoImageProcessor.from_pretrained(checkpoints.NANO, trust_remote_code=True)
    assert len(processor(images=[image])["pixel_values"]) == ours
    with pictures_in(nano, "f32") as context:
        assert len(list(image_chunks(context, image))) == theirs


def test_how_often_the_tiles_agree(nano):
    """A figure for docs/clients.md: pictures of 50 to 1,000 pixels a side."""
    processor = AutoImageProcessor.from_pretrained(checkpoints.NANO, trust_remote_code=True)
    sides = np.random.default_rng(0).integers(50, 1001, (100, 2))
    images = [Image.new("RGB", (int(width), int(height))) for width, height in sides]
    ours = [len(processor(images=[image])["pixel_values"]) for image in images]
    with pictures_in(nano, "f32") as context:
        theirs = [len(list(image_chunks(context, image))) for image in images]
    equal = sum(a == b for a, b in zip(ours, theirs))
    print(f"tiles: {equal} of 100 pictures have the same number; {sum(ours)} ours, {sum(theirs)}")
    assert 0 < equal < 100
