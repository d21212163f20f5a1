"""The same answers on other transformers versions; every minor version under `make compat`."""

import pytest

from tests import compat


@pytest.fixture(scope="module")
def reference():
    result, error = compat.check(compat.installed_version())
    assert result, error
    return result


# The oldest, the first that names classes in folders, and the first of the new major version.
ALWAYS = ("4.37.2", "4.53.3", "5.0.0")


@pytest.mark.parametrize("version", [
    version if version in ALWAYS else pytest.param(version, marks=pytest.mark.slow)
    for version in compat.DEFAULT_VERSIONS
])  # fmt: skip
def test_same_answers(version, reference):
    result, error = compat.check(version)
    assert result, error
    assert compat.same_answers(result, reference)
    # From 4.53 on auto_map can name a class in a folder
    assert (result["processor"] is not None) == (tuple(map(int, version.split(".")[:2])) >= (4, 53))


def test_the_reference_is_not_empty(reference):
    assert len(set(reference["answers"])) > 4 and reference["processor"]
