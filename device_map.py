"""Which module goes on which GPU: vision tower, projector, embeddings and head on the first, decoder layers over all.

    model = AutoModel.from_pretrained(path, device_map="split", trust_remote_code=True)

does it for the GPUs of the machine; `split_layers` and `build_device_map` are pure functions of sizes in bytes, for
planning without any.
"""

import math

import torch

FIRST_GPU_MODULES = (
    "vision_model",
    "mlp1",
    "language_model.model.embed_tokens",
    "language_model.model.norm",
    "language_model.model.rotary_emb",
    "language_model.lm_head",
)
LAYERS = "language_model.model.layers"
# The model card's split_model() names these, which no version of the model has had
NAMES_OF_OTHER_MODELS = ("language_model.model.tok_embeddings", "language_model.output")
GIB = 2**30
RESERVED_SHARE = 0.1  # of a GPU, for activations and cache


def split_layers(layer_sizes, first_size, memory):
    """How many consecutive layers each GPU holds, so that the fullest GPU is as empty as possible.

    A GPU's share is what it holds over what it has. Layers are given one by one to the GPU whose share they raise
    least, which is optimal for layers of one size, as those of a Qwen2 are.

    Args:
        layer_sizes: bytes of each decoder layer.
        first_size: bytes of everything else, all of it on the first GPU.
        memory: usable bytes of each GPU.

    Returns:
        A list of counts, one for each GPU, which add up to the number of layers.

    Raises:
        ValueError: no GPU, or a model that does not fit.
    """
    if not memory:
        raise ValueError("No GPU to split the model over: memory is empty. Load with device_map='cpu' or none at all.")
    largest = max(layer_sizes)
    loads, counts = [first_size] + [0] * (len(memory) - 1), [0] * len(memory)
    if first_size > memory[0]:
        raise ValueError(
            f"GPU 0 has {memory[0] / GIB:.1f} GiB to use but the vision tower, projector, embeddings and head take "
            f"{first_size / GIB:.1f} GiB: put the largest GPU first (CUDA_VISIBLE_DEVICES) or load quantized."
        )
    for _ in layer_sizes:
        fitting = [gpu for gpu, load in enumerate(loads) if load + largest <= memory[gpu]]
        if not fitting:
            total = first_size + sum(layer_sizes)
            raise ValueError(
                f"The model takes {total / GIB:.1f} GiB and does not fit the {sum(memory) / GIB:.1f} GiB of "
                f"{len(memory)} GPUs ({', '.join(f'{size / GIB:.1f}' for size in memory)}) in whole layers of "
                f"{largest / GIB:.2f} GiB: add GPUs, load quantized, or use device_map='auto' to offload."
            )
        gpu = min(fitting, key=lambda index: (loads[index] + largest) / memory[index])
        loads[gpu] += largest
        counts[gpu] += 1
    return counts


def build_device_map(counts, offload_vision=False):
    """A device map of transformers for the result of `split_layers`: layers in order, all else on GPU 0.

    Args:
        offload_vision: the vision tower's weights stay in host memory; accelerate brings each module's to the GPU for
            as long as it computes.
    """
    device_map = dict.fromkeys(FIRST_GPU_MODULES, 0)
    if offload_vision:
        device_map["vision_model"] = "cpu"
    gpus = [gpu for gpu, count in enumerate(counts) for _ in range(count)]
    device_map.update({f"{LAYERS}.{layer}": gpu for layer, gpu in enumerate(gpus)})
    return device_map


def module_sizes(model, layer_bytes=2, other_bytes=2, offload_vision=False):
    """(bytes of each decoder layer, bytes of all else) of a model, which may be on the meta device.

    Args:
        offload_vision: leave the vision tower out.
        layer_bytes, other_bytes: bytes of a parameter in the decoder layers, which quantization shrinks, and elsewhere.
    """

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    layers = [count(layer) for layer in model.language_model.model.layers]
    others = count(model) - sum(layers) - (count(model.vision_model) if offload_vision else 0)
    return [math.ceil(layer_bytes * layer) for layer in layers], other_bytes * others


def free_memory(reserve=RESERVED_SHARE):
    """Bytes of every visible GPU that weights may take: what is free, less a share for activations and cache."""
    return [int(torch.cuda.mem_get_info(gpu)[0] * (1 - reserve)) for gpu in range(torch.cuda.device_count())]


def clean_device_map(device_map, num_layers):
    """A user's device map without the names that this model does not have.

    The model card's `split_model()` names two modules of other models and more layers than there are; and it may leave
    out the rotary embedding, which has no weights but, from transformers 4.48, a place of its own.
    """
    cleaned = {
        name: device
        for name, device in device_map.items()
        if name not in NAMES_OF_OTHER_MODELS and not _is_surplus_layer(name, num_layers)
    }
    embeddings = cleaned.get("language_model.model.embed_tokens")
    if embeddings is not None:
        cleaned.setdefault("language_model.model.rotary_emb", embeddings)
    return cleaned


def _is_surplus_layer(name, num_layers):
    index = name[len(LAYERS) + 1 :].split(".")[0] if name.startswith(f"{LAYERS}.") else ""
    return index.isdigit() and int(index) >= num_layers
