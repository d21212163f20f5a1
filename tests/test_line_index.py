"""The index beside a JSONL file: made once, by one process, and trusted only when it is whole."""

import json
import threading

import pytest

from tests.test_data import encoder, images, parts, turn, write  # noqa: F401  fixtures
from training.line_index import IndexFiles
from training.rows import SampleError
from training.sources import ConversationFile

BYTES_OF_A_LINE = 16


def index_files(tmp_path, is_first=True):
    return IndexFiles(tmp_path / "elsewhere", is_first, wait=lambda: None)


class Lines:
    """Checks and measures lines, and remembers which."""

    def __init__(self, bad=()):
        self.bad = set(bad)
        self.checked = []
        self.measured = []

    def check(self, line):
        self.checked.append(line)
        if line.strip() in self.bad:
            raise SampleError("bad")

    def measure(self, line):
        self.measured.append(line)
        return len(line)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"first\n\nsecond\nthird, the last")
    return path


def test_lines_are_checked_and_measured_once(tmp_path, data):
    files = index_files(tmp_path)
    lines = Lines()
    made = files.get(data, {}, lines.check, lines.measure)
    again = files.get(data, {}, lines.check, lines.measure)
    assert lines.checked == lines.measured == [b"first\n", b"second\n", b"third, the last"]
    for index in (made, again):
        assert index.offsets.tolist() == [0, 7, 14]
        assert index.numbers.tolist() == [1, 3, 4]
        assert index.lengths.tolist() == [6, 7, 15]


@pytest.mark.parametrize("change", [
    lambda data: data.write_bytes(data.read_bytes() + b"\nmore"),  # another size
    lambda data: data.write_bytes(b"FIRST\n\nsecond\nthird, the last"),  # another time
])  # fmt: skip
def test_a_changed_file_is_looked_at_again(tmp_path, data, change):
    files = index_files(tmp_path)
    files.get(data, {}, Lines().check, None)
    change(data)
    lines = Lines()
    files.get(data, {}, lines.check, None)
    assert len(lines.checked) >= 3


def test_other_settings_are_another_index(tmp_path, data):
    files = index_files(tmp_path)
    for max_tiles in (6, 12):
        lines = Lines()
        files.get(data, {"max_tiles": max_tiles}, lines.check, lines.measure)
        assert len(lines.measured) == 3


def test_broken_lines_are_looked_at_again_and_no_others(tmp_path, data):
    files = index_files(tmp_path)
    broken = files.get(data, {}, Lines(bad=[b"second"]).check, Lines().measure)
    assert [line.number for line in broken.broken] == [3] and broken.numbers.tolist() == [1, 4]
    still = Lines(bad=[b"second"])
    assert files.get(data, {}, still.check, still.measure).broken == broken.broken
    assert still.checked == [b"second\n"] and still.measured == []
    mended = Lines()
    index = files.get(data, {}, mended.check, mended.measure)
    assert mended.checked == [b"second\n"]
    assert index.numbers.tolist() == [1, 3, 4] and index.lengths.tolist() == [6, 7, 15]


def test_an_index_that_was_cut_anywhere_is_made_again(tmp_path, data):
    files = index_files(tmp_path)
    whole = files.get(data, {}, Lines().check, Lines().measure)
    written = tmp_path / ".data.jsonl.index.npz"
    content = written.read_bytes()
    for size in range(len(content)):
        written.write_bytes(content[:size])
        found = files.get(data, {}, Lines().check, Lines().measure)
        assert found.numbers.tolist() == whole.numbers.tolist(), f"cut at byte {size}"
        assert found.content == whole.content, f"cut at byte {size}"


def test_where_data_cannot_be_written_the_index_is_elsewhere(tmp_path, data, monkeypatch):
    """Root may write anywhere, so the error is put in the place of a read-only storage's."""
    from training import line_index

    write_index = line_index._write_index

    def refuse_beside_data(place, key, index):
        if place.parent == tmp_path:
            raise OSError(30, "Read-only file system")
        write_index(place, key, index)

    monkeypatch.setattr(line_index, "_write_index", refuse_beside_data)
    files = index_files(tmp_path)
    files.get(data, {}, Lines().check, None)
    lines = Lines()
    files.get(data, {}, lines.check, None)
    assert lines.checked == []
    assert [path.name[8:] for path in (tmp_path / "elsewhere").iterdir()] == [
        ".data.jsonl.index.npz"
    ]


def test_other_processes_wait_for_the_first_and_check_nothing(tmp_path, data):
    barrier = threading.Barrier(2)
    found = {}
    others = Lines()

    def start_other():
        files = IndexFiles(tmp_path / "elsewhere", False, barrier.wait)
        found["other"] = files.get(data, {}, others.check, others.measure)

    other = threading.Thread(target=start_other)
    other.start()
    first = IndexFiles(tmp_path / "elsewhere", True, barrier.wait)
    found["first"] = first.get(data, {}, Lines().check, Lines().measure)
    other.join(timeout=30)
    assert others.checked == others.measured == []
    assert found["other"].lengths.tolist() == found["first"].lengths.tolist()


def test_lines_take_16_bytes_that_workers_share(parts, images):  # noqa: F811
    rows = [{"image": "wide.png", "conversations": turn("<image>\nWhat?", "3")}] * 10
    read = ConversationFile([write(images / "a.jsonl", rows)], encoder(parts), needs_lengths=True)
    arrays = [read._offsets, read._line_numbers, read._lengths]
    assert all(array.is_shared() for array in arrays)
    assert sum(array.nbytes for array in arrays) == BYTES_OF_A_LINE * len(read)


def test_lengths_are_those_of_the_encoded_samples(parts, images):  # noqa: F811
    """For every form of a sample, also where it is too long for all of its tiles."""
    rows = [
        {"conversations": turn("Text alone", "yes")},
        {"image": "large.png", "conversations": turn("<image>\nWhat?", "a</think>b")},
        {
            "images": ["wide.png", "square.png"],
            "conversations": turn("<image>\n<image>\nWhich?", "The first.") + turn("Why?", "So."),
        },
    ]
    path = write(images / "data.jsonl", rows)
    for max_length in (2000, 60):
        read = ConversationFile([path], encoder(parts, max_length), needs_lengths=True)
        for number in range(3):
            sample = read.encode_line(number)
            found = max_length if sample is None else len(sample["input_ids"])
            assert read.length(number) == found
    with pytest.raises(ValueError, match="needs_lengths"):
        ConversationFile([path], encoder(parts)).length(0)


def test_the_index_file_says_what_it_is_for(tmp_path, data):
    index_files(tmp_path).get(data, {"image_root": "there"}, Lines().check, None)
    import numpy as np

    stored = np.load(tmp_path / ".data.jsonl.index.npz")
    key = json.loads(stored["described"].tobytes())["key"]
    assert key["image_root"] == "there" and key["bytes"] == data.stat().st_size
