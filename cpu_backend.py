"""A `torch.compile` backend for decoding on CPUs: inductor, with the products of a single row written out.

At batch 1 every token reads all weights once, so a product can be as fast as memory is. torch's library calls for a
single row are far from that (17 of 48 GB/s in float32 on two cores of an AMD EPYC, torch 2.15), and each costs more
than the product itself where the matrix is small. As a multiplication and a sum inductor compiles it to one loop over
the rows of the weight, on all cores.
"""

import torch
from torch._subclasses.fake_tensor import FakeTensor

# Elements of a weight up to which half-precision products are written out; the library's are as fast from there on
SMALL_WEIGHT = 1 << 20


def _is_single_row(rows, weight):
    """Whether `rows` (..., in) is a single row, and its product with `weight` (out, in) is better written out."""
    if not (isinstance(rows, FakeTensor) and isinstance(weight, FakeTensor)):  # quantized weights have their own types
        return False
    if not all(isinstance(size, int) and size == 1 for size in rows.shape[:-1]):  # a dynamic size is never 1
        return False
    return weight.dtype == torch.float32 or weight.numel() <= SMALL_WEIGHT


def write_out_single_rows(graph_module):
    """Replace every `linear` of a single row in a dynamo graph by a multiplication and a sum, in place.

    Returns:
        how many were replaced.
    """
    graph, replaced = graph_module.graph, 0
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not torch.nn.functional.linear:
            continue
        arguments = dict(zip(("input", "weight", "bias"), node.args)) | node.kwargs
        rows, weight, bias = arguments["input"], arguments["weight"], arguments.get("bias")
        if not _is_single_row(rows.meta.get("example_value"), weight.meta.get("example_value")):
            continue
        with graph.inserting_before(node):
            products = graph.call_function(torch.mul, (graph.call_function(torch.unsqueeze, (rows, -2)), weight))
            sums = graph.call_function(torch.sum, (products, -1))
            if bias is not None:
                sums = graph.call_function(torch.add, (sums, bias))
        node.replace_all_uses_with(sums)
        graph.erase_node(node)
        replaced += 1
    graph_module.recompile()
    return replaced


def cpu_backend(graph_module, example_inputs):
    """As the backend "inductor", after `write_out_single_rows`; for `torch.compile(backend=...)`."""
    write_out_single_rows(graph_module)
    return torch._dynamo.lookup_backend("inductor")(graph_module, example_inputs)
