"""The vision tower: golden files, variants against plain arithmetic, attention, training."""

import pytest
import torch
from torch import nn

from remote_code import configuration_skywork_chat, modeling_intern_vit, modeling_skywork_chat
from tests import checkpoints

vit = modeling_intern_vit


def small(**changes):
    """A tower of 16 patches with random weights, the same ones in every call."""
    torch.manual_seed(0)
    values = {
        "hidden_size": 40, "num_attention_heads": 5, "num_hidden_layers": 3,
        "intermediate_size": 64, "image_size": 56, "patch_size": 14, "initializer_range": 0.2,
        "initializer_factor": 0.5,
    }  # fmt: skip
    return vit.SkyworkVisionModel(
        configuration_skywork_chat.SkyworkVisionConfig(**{**values, **changes})
    ).eval()


def random_tiles(count, side=56):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, side, side, generator=generator)


def plain_forward(model, pixel_values):
    """The tower written out with materialised attention, straight from its description."""
    config, state = model.config, model.state_dict()
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads

    def norm(x, name):
        weight = state[f"{name}.weight"]
        if config.norm_type == "rms_norm" or name.endswith(("q_norm", "k_norm")):
            return weight * x / (x.pow(2).mean(-1, keepdim=True) + config.layer_norm_eps).sqrt()
        return nn.functional.layer_norm(
            x, weight.shape, weight, state[f"{name}.bias"], config.layer_norm_eps
        )

    patches = (
        pixel_values.unfold(2, 14, 14)
        .unfold(3, 14, 14)
        .permute(0, 2, 3, 1, 4, 5)
        .flatten(3)
        .flatten(1, 2)
    )
    kernel = state["embeddings.patch_embedding.weight"].flatten(1)
    x = patches @ kernel.T + state["embeddings.patch_embedding.bias"]
    x = torch.cat([state["embeddings.class_embedding"].expand(len(x), -1, -1), x], 1)
    x = x + state["embeddings.position_embedding"]
    for index in range(config.num_hidden_layers):
        prefix = f"encoder.layers.{index}"
        joint = norm(x, f"{prefix}.norm1") @ state[f"{prefix}.attn.qkv.weight"].T
        if config.qkv_bias:
            joint = joint + state[f"{prefix}.attn.qkv.bias"]
        q, k, v = joint.split(config.hidden_size, -1)
        if config.qk_normalization:
            q, k = norm(q, f"{prefix}.attn.q_norm"), norm(k, f"{prefix}.attn.k_norm")
        mixed = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            weights = (q[..., part] @ k[..., part].transpose(1, 2) / size**0.5).softmax(-1)
            mixed.append(weights @ v[..., part])
        mixed = (
            torch.cat(mixed, -1) @ state[f"{prefix}.attn.proj.weight"].T
            + state[f"{prefix}.attn.proj.bias"]
        )
        x = x + mixed * state[f"{prefix}.ls1"]
        hidden = (
            norm(x, f"{prefix}.norm2") @ state[f"{prefix}.mlp.fc1.weight"].T
            + state[f"{prefix}.mlp.fc1.bias"]
        )
        hidden = (
            nn.functional.gelu(hidden) @ state[f"{prefix}.mlp.fc2.weight"].T
            + state[f"{prefix}.mlp.fc2.bias"]
        )
        x = x + hidden * state[f"{prefix}.ls2"]
    return x


VARIANTS = [
    pytest.param({}, id="6B: RMSNorm, q/k norm, no qkv bias"),
    pytest.param(
        {"norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True},
        id="300M: LayerNorm, bias",
    ),
    pytest.param({"norm_type": "layer_norm", "qkv_bias": True}, id="LayerNorm with q/k norm"),
    pytest.param({"qk_normalization": False}, id="RMSNorm without q/k norm"),
]


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flash_attention_2"])
def test_variants_equal_the_description(changes, implementation):
    """flash_attention_2 on a CPU takes the path of tensors that its kernels do not accept.

    The kernels add up in another order than the description. The values reach 30, and float32 gives
    sums of such values to about 1e-5.
    """
    model = small(**changes)
    torch.manual_seed(0)
    for parameter in model.parameters():  # also those that start at one or zero
        parameter.data = torch.randn_like(parameter) * 0.3
    model.config._attn_implementation = implementation
    pixel_values = random_tiles(2)
    with torch.no_grad():
        torch.testing.assert_close(
            model(pixel_values).last_hidden_state,
            plain_forward(model, pixel_values),
            atol=1e-4,
            rtol=1e-4,
        )


def test_golden_outputs(golden_model):
    inputs, expected = checkpoints.golden("inputs"), checkpoints.golden("expected")
    with torch.no_grad():
        output = golden_model.vision_model(inputs["pixel_values"])
        larger = golden_model.vision_model(inputs["pixel_values_84px"])
    for ours, theirs in (
        (output.last_hidden_state, expected["vision_last_hidden_state"]),
        (output.pooler_output, expected["vision_pooler_output"]),
        (larger.last_hidden_state, expected["vision_last_hidden_state_84px"]),
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_num_layers_is_a_prefix_and_computes_no_more():
    """Bit for bit: the layers that are computed are the same kernels on the same values."""
    model, pixel_values, calls = small(), random_tiles(1), []
    for index, layer in enumerate(model.encoder.layers):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    with torch.no_grad():
        full = model(pixel_values, output_hidden_states=True)
        assert len(full.hidden_states) == 4 and full.attentions is None
        for count in range(4):
            calls.clear()
            partial = model(pixel_values, num_layers=count).last_hidden_state
            assert torch.equal(partial, full.hidden_states[count]) and calls == list(range(count))


@pytest.mark.parametrize("select_layer", [-1, -2, 1, 0])
def test_select_layer_uses_that_hidden_state(select_layer):
    config = configuration_skywork_chat.SkyworkChatConfig(
        **checkpoints.tiny_config(select_layer=select_layer)
    )
    torch.manual_seed(0)
    model = modeling_skywork_chat.SkyworkChatModel(config).eval()
    pixel_values, calls = random_tiles(1, side=448), []
    with torch.no_grad():
        states = model.vision_model(pixel_values, output_hidden_states=True).hidden_states
        for layer in model.vision_model.encoder.layers:
            layer.register_forward_hook(lambda *_: calls.append(1))
        features = model.extract_feature(pixel_values)
        patches = states[select_layer][:, 1:].unflatten(1, (32, 32))
        expected = model.mlp1(model.pixel_shuffle(patches).flatten(1, 2))
    torch.testing.assert_close(features, expected)
    assert len(calls) == (select_layer if select_layer >= 0 else 3 + select_layer)


def test_attention_weights_are_given_in_eager_mode():
    model = small()
    model.config._attn_implementation = "eager"
    attentions = model(random_tiles(2), output_attentions=True).attentions
    assert [tuple(weights.shape) for weights in attentions] == [(2, 5, 17, 17)] * 3
    torch.testing.assert_close(attentions[0].sum(-1), torch.ones(2, 5, 17))


def test_gradient_checkpointing_gives_the_same_gradients():
    model, pixel_values = small(), random_tiles(2)

    def gradients():
        model.train().zero_grad()
        model(pixel_values).last_hidden_state.square().sum().backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain = gradients()
    model.gradient_checkpointing_enable()
    assert model.encoder.gradient_checkpointing
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name])


def test_stochastic_depth_drops_whole_tiles_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = vit.StochasticDepth(0.25).train()
    branch = torch.ones(4000, 3, 2)
    dropped = drop(branch)
    per_tile = dropped.flatten(1)
    # All of a tile or nothing: one factor for each tile, so that its values are equal bit for bit
    assert torch.equal(per_tile.min(1).values, per_tile.max(1).values)
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 4 / 3]))
    assert abs(dropped.mean().item() - 1) < 0.05
    assert torch.equal(drop.eval()(branch), branch)
    rates = [layer.drop_path.rate for layer in small(drop_path_rate=0.2).encoder.layers]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.parametrize("shape, reason", [
    ((2, 3, 56), "no tile axis"),
    ((2, 4, 56, 56), "four channels"),
    ((2, 3, 57, 56), "not a multiple of 14"),
    ((2, 3, 0, 56), "no pixels"),
])  # fmt: skip
def test_wrong_shapes_are_named(shape, reason):
    with pytest.raises(ValueError, match=r"multiples of patch_size=14") as error:
        small()(torch.zeros(shape))
    assert str(shape) in str(error.value), reason


def test_exactly_one_input():
    with pytest.raises(ValueError, match="Exactly one"):
        small()()


def test_pixel_shuffle_orders():
    """v2 keeps rows first; v1 is its transpose. Patch (row, column) is numbered 10·row + column."""
    config = configuration_skywork_chat.SkyworkChatConfig(**checkpoints.tiny_config())
    with torch.device("meta"):
        model = modeling_skywork_chat.SkyworkChatModel(config)
    numbers = (10 * torch.arange(4).view(4, 1) + torch.arange(4)).view(1, 4, 4, 1)
    model.config.ps_version = "v2"
    assert model.pixel_shuffle(numbers)[0].tolist() == [
        [[0, 1, 10, 11], [2, 3, 12, 13]],
        [[20, 21, 30, 31], [22, 23, 32, 33]],
    ]
    shuffled = model.pixel_shuffle(numbers)
    model.config.ps_version = "v1"
    assert torch.equal(model.pixel_shuffle(numbers), shuffled.transpose(1, 2))
