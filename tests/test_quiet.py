"""Noise of libraries is silenced by name; everything else is said."""

import logging
import subprocess
import sys
import warnings

import pytest

from tests import checkpoints
from tests.test_sft import arguments, samples  # noqa: F401  a fixture
from training import quiet


@pytest.mark.parametrize("message, category, is_said", [
    ("`gradient_checkpointing` is deprecated and will be removed", FutureWarning, False),
    ("`another_setting` is deprecated and will be removed", FutureWarning, True),
    ("no `gradient_checkpointing` is deprecated", UserWarning, True),  # not at its beginning
])  # fmt: skip
def test_warnings(message, category, is_said):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        quiet.silence_libraries()
        warnings.warn(message, category, stacklevel=1)
    assert bool(said) == is_said


@pytest.mark.parametrize("message, is_said", [
    ("<enum 'KernelPreference'> is an Enum subclass", False),
    ("something else", True),
])  # fmt: skip
def test_logs(caplog, message, is_said):
    logger = logging.getLogger("torch.utils._pytree")
    filters = list(logger.filters)
    with caplog.at_level(logging.WARNING):
        quiet.silence_libraries()
        logger.addHandler(caplog.handler)
        logger.warning(message)
    logger.removeHandler(caplog.handler)
    logger.filters = filters
    assert (message in caplog.text) == is_said


def test_a_training_says_nothing_that_a_user_cannot_use(samples, tmp_path):  # noqa: F811
    """Of a run of one step: a progress bar, the log, the summary."""
    flags = arguments(samples, tmp_path, max_steps=1)
    done = subprocess.run(
        [sys.executable, "-m", "training.sft", *flags],
        cwd=checkpoints.ROOT, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    lines = done.stderr.replace("\r", "\n").split("\n")
    noise = [line for line in lines if line.strip() and "it/s]" not in line and "s/it]" not in line]
    assert not [line for line in noise if "Warning" in line or "deprecated" in line], noise
