import os
import random

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here needs the network, and nothing may hang on it
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Under pytest-xdist (make test): a core and a copy of the remote code for each of the two workers
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HF_MODULES_CACHE"] = os.path.join(
        os.path.expanduser(os.environ.get("HF_HOME", "~/.cache/huggingface")), f"modules_{worker}"
    )

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.utils import logging

from tests import checkpoints

try:
    import hypothesis
except ImportError:  # the environment of vllm_check.py (make serving-test) is without it
    hypothesis = None

# tests/portable.py sets the number of threads, and the order of the tests.
torch.set_num_threads(int(os.environ.get("TEST_THREADS", 1 if worker else 2)))

# The same examples in every run: what fails on one machine can be looked at on another. Settings of
# a test (`@settings(...)`) start from this profile.
if hypothesis:
    hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
    hypothesis.settings.load_profile("repeatable")


# The files that take longest. They start first, so that both processes are busy to the end.
LONGEST_FILES = ("test_sft.py", "test_nano.py", "test_compat.py", "test_memory_plan.py")


def pytest_collection_modifyitems(items):
    """The longest files first, or another order of the tests, if one is asked for."""
    if "TEST_ORDER" in os.environ:
        random.Random(os.environ["TEST_ORDER"]).shuffle(items)
        return
    rank = {name: place for place, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(autouse=True)
def same_start_for_every_test():
    """No test depends on those before it: the same random numbers, and every warning can come.

    Tests that draw random inputs seed them as well, where they are drawn. `warning_once` of
    transformers' loggers remembers its messages for the whole process.
    """
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    logging.warning_once.cache_clear()


@pytest.fixture(scope="session")
def golden_path(tmp_path_factory):
    return checkpoints.golden_repository(tmp_path_factory.mktemp("golden") / "checkpoint")


@pytest.fixture(scope="session")
def golden_model(golden_path):
    model = AutoModel.from_pretrained(
        golden_path, torch_dtype=torch.float32, trust_remote_code=True
    ).eval()
    model.img_context_token_id = checkpoints.GOLDEN_IMAGE_TOKEN
    return model


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    return checkpoints.tiny_repository(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def nano_model():
    return AutoModel.from_pretrained(
        checkpoints.NANO, torch_dtype=torch.float32, trust_remote_code=True
    ).eval()


@pytest.fixture(scope="session")
def nano_standard():
    """The nano checkpoint in the class with transformers' own conventions."""
    return AutoModelForImageTextToText.from_pretrained(
        checkpoints.NANO, torch_dtype=torch.float32, trust_remote_code=True
    ).eval()


@pytest.fixture(scope="session")
def nano_tokenizer():
    return AutoTokenizer.from_pretrained(checkpoints.NANO, trust_remote_code=True)


@pytest.fixture(scope="session")
def nano_processor():
    return AutoProcessor.from_pretrained(checkpoints.NANO, trust_remote_code=True)


@pytest.fixture(scope="session")
def root_tokenizer():
    return AutoTokenizer.from_pretrained(checkpoints.ROOT, trust_remote_code=True)


@pytest.fixture(scope="session")
def root_config():
    return AutoConfig.from_pretrained(checkpoints.ROOT, trust_remote_code=True)
