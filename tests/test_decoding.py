"""Compiled decoding on a CPU: which products are rewritten, and that they stay the same."""

import threading

import pytest
import torch
import torch.nn.functional as F

from remote_code import decoding

# Compiled sums of some 32 products of the order of 1 are in another order than the library's:
# float32 gives them to about 1e-6.
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.mark.parametrize("device, torch_version, in_thread, expected", [
    ("cpu", (2, 15), False, ("default", True)), ("cpu", (2, 11), True, ("default", True)),
    ("cuda", (2, 15), True, None),  # transformers' own: CUDA graphs
    ("cuda", (2, 11), False, None),
    # before torch 2.13 they fail in a thread of Python's
    ("cuda", (2, 11), True, ("default", False)),
])  # fmt: skip
def test_how_a_static_cache_compiles(monkeypatch, device, torch_version, in_thread, expected):
    monkeypatch.setattr(decoding, "TORCH_VERSION", torch_version)
    asked, found = {"cache_implementation": "static"}, []

    def ask():
        keywords = decoding.with_compiled_decoding(asked, None, torch.device(device))
        config = keywords.get("compile_config")
        found.append(config and (config.mode, config.backend is decoding.cpu_backend))

    if in_thread:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    else:
        ask()
    assert found == [expected] and asked == {"cache_implementation": "static"}


class Doubled(torch.Tensor):
    """A weight with a type of its own, as quantized ones have."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(tensors, context, size, stride):
        return Doubled(tensors["inner"])

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments, keywords=None):
        plain = [2 * value.inner if isinstance(value, cls) else value for value in arguments]
        return function(*plain, **(keywords or {}))


def compile_counting(function, dynamic=False):
    """The function compiled without inductor, and how many products each graph had rewritten.

    The latter is a list, which gets a number for each graph that is compiled.
    """
    replaced = []

    def backend(graph_module, example_inputs):
        replaced.append(decoding.rewrite_vector_products(graph_module))
        return graph_module.forward

    torch._dynamo.reset()
    return torch.compile(function, backend=backend, dynamic=dynamic), replaced


LARGE = (1025, 1024)


@pytest.mark.parametrize("rows, weight, dtype, expected, reason", [
    ((1, 1), (48, 32), torch.float32, 1, "a token of one sequence"),
    ((1,), LARGE, torch.float32, 1, "float32 at any size"),
    ((), (48, 32), torch.float32, 1, "a vector"),
    ((2, 1), (48, 32), torch.float32, 0, "two sequences: the library reads the weights once"),
    ((1, 7), (48, 32), torch.float32, 0, "seven tokens of a prompt"),
    ((1, 1), (48, 32), torch.bfloat16, 1, "small: the call costs more than the product"),
    ((1, 1), LARGE, torch.bfloat16, 0, "half precision, large: the library is as fast"),
])  # fmt: skip
@pytest.mark.parametrize("with_bias", [False, True])
@torch.inference_mode()
def test_products_of_one_row_are_written_out(rows, weight, dtype, expected, reason, with_bias):
    torch.manual_seed(0)
    inputs = torch.randn(*rows, weight[1], dtype=dtype)
    weights, bias = (
        torch.randn(weight, dtype=dtype),
        torch.randn(weight[0], dtype=dtype) if with_bias else None,
    )
    product, replaced = compile_counting(F.linear)
    assert product(inputs, weights, bias).shape == (*rows, weight[0])
    assert replaced == [expected], reason
    exact = F.linear(inputs.double(), weights.double(), bias.double() if with_bias else None)
    # Without inductor each product is rounded to the dtype before the sum
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.5}[dtype]
    torch.testing.assert_close(
        product(inputs, weights, bias).double(), exact, atol=tolerance, rtol=tolerance
    )


@torch.no_grad()
def test_a_quantized_weight_keeps_its_own_product():
    torch.manual_seed(0)
    inputs, weights = torch.randn(1, 32), torch.randn(48, 32)
    product, replaced = compile_counting(F.linear)
    expected = F.linear(inputs, 2 * weights)
    torch.testing.assert_close(product(inputs, Doubled(weights)), expected, **CLOSE)
    assert replaced == [0]


@torch.inference_mode()
def test_a_length_that_changes_is_no_single_row():
    torch.manual_seed(0)
    weights = torch.randn(48, 32)
    product, replaced = compile_counting(F.linear, dynamic=True)
    for length in (5, 9):
        inputs = torch.randn(length, 32)
        torch.testing.assert_close(product(inputs, weights), F.linear(inputs, weights), **CLOSE)
    assert set(replaced) == {0}


@torch.inference_mode()
def test_inductor_compiles_what_was_written_out():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Linear(32, 48), torch.nn.SiLU(), torch.nn.Linear(48, 16, bias=False)
    )
    torch._dynamo.reset()
    compiled = torch.compile(layers, backend=decoding.cpu_backend)
    for rows in (1, 3):
        inputs = torch.randn(rows, 32)
        torch.testing.assert_close(compiled(inputs), layers(inputs), **CLOSE)
