"""Pixels: bit for bit the model card's, images as people have them, errors that name the file.

Bit equality holds on every processor here: PIL resizes bytes in integers, and scaling and
normalising are single operations on each value, which IEEE arithmetic rounds the same everywhere.
"""

import base64
import http.server
import io
import threading
import time
import urllib.parse

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessor

from benchmarks.model_card import model_card_functions
from preprocessor import image_loading, url_loading
from preprocessor.image_processing_skywork_chat import SkyworkImageProcessor
from tests import checkpoints

CARD = model_card_functions()
DAMAGED = checkpoints.DATA / "damaged"  # AVIF files with a few bytes changed
SIZES = [
    (1, 1),
    (1, 4000),
    (4000, 1),
    (37, 53),
    (448, 448),
    (640, 480),
    (481, 1023),
    (1500, 1100),
    (2000, 300),
]


def picture(width, height, mode="RGB", seed=0):
    rng = np.random.default_rng([seed, width, height])
    image = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA")
    if mode == "P":
        return image.convert("RGB").quantize(16)
    return image if mode == "RGBA" else image.convert(mode)


def save(image, folder, name="image.png", **options):
    path = folder / name
    image.save(path, **options)
    return str(path)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_pixel_values_are_the_model_cards(size, tmp_path):
    path = save(picture(*size), tmp_path)
    expected = CARD["load_image"](path, max_num=12)
    features = SkyworkImageProcessor()(path, return_tensors="pt")
    assert torch.equal(features["pixel_values"], expected)
    assert features["num_patches"].tolist() == [len(expected)]


@pytest.mark.parametrize("smooth, most", [(True, 3), (False, 32)], ids=["picture", "white noise"])
@pytest.mark.parametrize("size", [*SIZES, (1023, 481)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_fast_resize_is_close(size, smooth, most, tmp_path):
    image = (
        picture(max(1, size[0] // 8), max(1, size[1] // 8)).resize(size)
        if smooth
        else picture(*size)
    )
    path = save(image, tmp_path)
    exact = SkyworkImageProcessor()(path)["pixel_values"]
    fast = SkyworkImageProcessor(fast_resize=True)(path)["pixel_values"]
    assert torch.equal(fast, SkyworkImageProcessor()(path, fast_resize=True)["pixel_values"])
    # Another resize: torch's, whose rounding differs from PIL's by levels of 255
    levels = (fast - exact).abs() * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) * 255
    assert fast.shape == exact.shape and levels.max() <= most and levels.mean() <= 0.6


@pytest.mark.parametrize("fast", [False, True], ids=["exact", "fast_resize"])
@pytest.mark.parametrize("dtype, expected", [
    (torch.bfloat16, torch.bfloat16),
    ("bfloat16", torch.bfloat16),
    ("torch.float16", torch.float16),
    (torch.float64, torch.float64),
    (None, torch.float32),
])  # fmt: skip
def test_pixel_values_in_another_dtype(dtype, expected, fast, tmp_path):
    """As the model card's snippet does it: float32, then `.to(dtype)`."""
    path = save(picture(1000, 600), tmp_path)
    values = SkyworkImageProcessor()(path, dtype=dtype, fast_resize=fast)["pixel_values"]
    float32 = (
        SkyworkImageProcessor(fast_resize=True)(path)["pixel_values"]
        if fast
        else CARD["load_image"](path)
    )
    assert values.dtype == expected and torch.equal(values, float32.to(expected))
    with torch.inference_mode():
        assert torch.equal(
            SkyworkImageProcessor()(path, dtype=dtype, fast_resize=fast)["pixel_values"], values
        )


@pytest.mark.parametrize("dtype, return_tensors, message", [
    ("int8", "pt", "dtype='int8' is no floating dtype"),
    ("bf16", "pt", "dtype='bf16' is no floating dtype"),
    (np.float32, "pt", "is no floating dtype of torch; expected torch.bfloat16"),
    (torch.bfloat16, "np", "numpy has no torch.bfloat16; take return_tensors='pt'"),
])  # fmt: skip
def test_a_dtype_that_cannot_be(dtype, return_tensors, message):
    with pytest.raises(ValueError, match=message):
        SkyworkImageProcessor()(picture(100, 100), dtype=dtype, return_tensors=return_tensors)


@pytest.mark.parametrize("max_num", [1, 4, 6])
def test_other_numbers_of_tiles(max_num, tmp_path):
    path = save(picture(300, 500), tmp_path)
    ours = SkyworkImageProcessor(max_dynamic_patch=max_num, size=112)(path)["pixel_values"]
    assert torch.equal(ours, CARD["load_image"](path, input_size=112, max_num=max_num))
    called = SkyworkImageProcessor(size=112)(path, max_dynamic_patch=max_num)["pixel_values"]
    assert torch.equal(ours, called)


@pytest.mark.parametrize("mode, name, reason", [
    ("P", "image.png", "palette"),
    ("RGBA", "image.png", "alpha, dropped as the model card does"),
    ("LA", "image.png", "grey with alpha"),
    ("L", "image.png", "grey"),
    ("1", "image.png", "one bit"),
    ("CMYK", "image.jpg", "printing colours"),
    ("YCbCr", "image.jpg", "JPEG's own"),
    ("RGB", "image.webp", "WebP"),
    ("P", "image.gif", "GIF"),
    ("RGB", "image.bmp", "BMP"),
    ("RGB", "image.tiff", "TIFF"),
])  # fmt: skip
def test_every_mode_is_the_model_cards(mode, name, reason, tmp_path):
    path = save(picture(90, 70, mode), tmp_path, name)
    ours = SkyworkImageProcessor()(path)["pixel_values"]
    assert torch.equal(ours, CARD["load_image"](path)), reason


def test_animation_gives_its_first_frame(tmp_path):
    frames = [picture(40, 40, "P", seed) for seed in range(3)]
    path = save(frames[0], tmp_path, "image.gif", save_all=True, append_images=frames[1:])
    image = Image.open(path)
    image.seek(2)
    ours = SkyworkImageProcessor()(image)["pixel_values"]
    assert torch.equal(ours, CARD["load_image"](path))


def test_alpha_over_white(tmp_path):
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert image_loading.open_image(clear).getpixel((0, 0)) == (255, 0, 0)
    assert image_loading.open_image(clear, alpha="white").getpixel((0, 0)) == (255, 255, 255)
    palette = save(Image.new("P", (8, 8), 0), tmp_path, transparency=0)
    assert image_loading.open_image(palette, alpha="white").getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(ValueError, match="alpha='black'"):
        image_loading.open_image(clear, alpha="black")


def test_sixteen_bits_are_scaled_where_the_model_card_clips(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    path = save(Image.fromarray(values), tmp_path)
    assert [image_loading.open_image(path).getpixel((x, 0))[0] for x in range(4)] == [
        0,
        1,
        128,
        255,
    ]
    assert [Image.open(path).convert("RGB").getpixel((x, 0))[0] for x in range(4)] == [
        0,
        255,
        255,
        255,
    ]
    # 8-bit values in a 16-bit file stay
    small = save(Image.fromarray(values % 256), tmp_path, "small.png")
    assert [image_loading.open_image(small).getpixel((x, 0))[0] for x in range(4)] == [
        0,
        1,
        128,
        255,
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_unless_switched_off(orientation, tmp_path):
    image = picture(60, 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(image, tmp_path, "image.png", exif=exif)
    turned = {5, 6, 7, 8}
    assert image_loading.open_image(path).size == ((40, 60) if orientation in turned else (60, 40))
    as_card = SkyworkImageProcessor(apply_exif_orientation=False)(path)["pixel_values"]
    assert torch.equal(as_card, CARD["load_image"](path))
    if orientation == 6:
        # The camera was turned right: the stored left column is the upright top row
        assert image_loading.open_image(path).getpixel((39, 0)) == image.getpixel((0, 0))


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


SOURCES = (
    "path", "Path", "file URL", "file URL with a host", "file URL in capitals", "data URL",
    "base64", "bytes", "bytearray", "memoryview", "BytesIO", "BytesIO, read to its end",
    "open file",
    "datasets, bytes", "datasets, path", "array", "float array", "double array", "tensor",
    "float tensor", "bfloat16 tensor with a gradient", "PIL",
)  # fmt: skip


@pytest.mark.parametrize("kind", SOURCES)
def test_sources_give_the_same_pixels(kind, tmp_path):
    image = picture(50, 30)
    path = save(image, tmp_path)
    data = encoded(image)
    source = {
        "path": path, "Path": tmp_path / "image.png", "file URL": f"file://{path}", "bytes": data,
        "data URL": "data:image/png;base64," + base64.b64encode(data).decode(),
        "base64": base64.b64encode(data).decode(), "array": np.array(image),
        "tensor": torch.from_numpy(np.array(image)).permute(2, 0, 1), "PIL": image,
        "file URL with a host": f"file://localhost{path}", "file URL in capitals": f"FILE://{path}",
        "bytearray": bytearray(data), "memoryview": memoryview(data), "BytesIO": io.BytesIO(data),
        "BytesIO, read to its end": at_its_end(io.BytesIO(data)),
        "datasets, bytes": {"bytes": data, "path": None},
        "datasets, path": {"bytes": None, "path": path},
        "open file": open(path, "rb"),  # noqa: SIM115
        "float array": np.array(image, np.float32) / 255, "double array": np.array(image) / 255,
        "float tensor": torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255,
        "bfloat16 tensor with a gradient": (
            torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        ).bfloat16().requires_grad_(),
    }[kind]  # fmt: skip
    expected = np.array(image).astype(int)
    found = np.array(image_loading.open_image(source)).astype(int)
    # bfloat16 has 8 bits of precision, so its numbers near 1 are half a grey level off
    assert np.abs(found - expected).max() <= (1 if "bfloat16" in kind else 0)
    if kind == "open file":
        source.close()


def at_its_end(file):
    file.seek(0, io.SEEK_END)
    return file


def test_an_open_file_keeps_its_position():
    file = io.BytesIO(encoded(picture(5, 5)))
    file.seek(7)
    image_loading.open_image(file)
    assert file.tell() == 7


def test_a_batch_is_several_images():
    batch = torch.randint(0, 256, (3, 3, 30, 40), dtype=torch.uint8)
    features = SkyworkImageProcessor(size=112)(batch)
    assert len(features["num_patches"]) == 3
    assert torch.equal(
        features["pixel_values"], SkyworkImageProcessor(size=112)(list(batch))["pixel_values"]
    )


@pytest.mark.parametrize("mode, values, grey", [
    ("F", 0.5, 128),  # grey in [0, 1], which PIL's own conversion makes black
    ("F", 128.9, 128),
    ("La", (100, 255), 100),
    ("RGBa", (100, 100, 100, 255), 100),
])  # fmt: skip
def test_rare_modes_of_pil(mode, values, grey):
    image = Image.new(mode, (4, 4), values)
    assert image_loading.open_image(image).getpixel((0, 0)) == (grey,) * 3


@pytest.mark.parametrize("source, words", [
    (np.full((4, 4, 3), 2.0), "values of 0 to 1, and this one has 0 to 2"),
    (np.full((4, 4, 3), -0.5), "has -0.5 to 0"),
    (np.full((4, 4, 3), np.nan), "values of 0 to 1"),
    (np.zeros((4, 4, 3), np.int64), "not int64"),
    (Image.new("F", (4, 4), -3.0), "-3 to 0"),
    (Image.new("F", (4, 4), 300.0), "0 to 300|300 to 300"),
    (io.StringIO("text"), "open as text"),
    ("", "empty path"),
    ("file://elsewhere/a.png", "a file of another host"),
    ({"file_id": "7"}, "expected a url, bytes or a path"),
])  # fmt: skip
def test_values_and_sources_that_cannot_be_images_are_named(source, words):
    with pytest.raises(ValueError, match=words):
        image_loading.open_image(source)


@pytest.mark.parametrize("name", sorted(path.name for path in DAMAGED.iterdir()))
def test_whatever_a_decoder_raises_is_the_files_error(name):
    """Mutated files, on which Pillow's decoders raise RuntimeError and others."""
    with pytest.raises(ValueError, match=name):
        image_loading.open_image(DAMAGED / name)


def test_formats_that_nobody_needs_are_not_decoded(tmp_path):
    path = save(picture(20, 20), tmp_path, "image.sgi")
    with pytest.raises(ValueError, match=r"image\.sgi: not an image of a format that is read"):
        SkyworkImageProcessor()(path)
    assert len(SkyworkImageProcessor(image_formats=["PNG", "SGI"])(path)["pixel_values"]) == 1
    assert len(SkyworkImageProcessor()(Image.open(path))["pixel_values"]) == 1


class Server(http.server.BaseHTTPRequestHandler):
    """What may wait at an URL: an image, a redirect, an answer without end, or a slow one."""

    image = encoded(Image.new("RGB", (50, 30)))

    def do_GET(self):
        path = urllib.parse.unquote(self.path)
        if path == "/missing.png":
            self.send_error(404)
            return
        if path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/image.png")
            self.end_headers()
            return
        self.send_response(200)
        if path == "/stated":
            self.send_header("Content-Length", str(10**12))
        elif path == "/cut.png":
            self.send_header("Content-Length", str(len(self.image) + 1))
        self.end_headers()
        try:
            if path == "/endless":
                while True:
                    self.wfile.write(bytes(2**16))
            elif path == "/slow":
                for _ in range(100):
                    self.wfile.write(b"a")
                    time.sleep(0.1)
            else:
                self.wfile.write(self.image)
        except OSError:  # the client has gone, as it should
            return

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    """Its address on this machine."""
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize("url", ["/image.png", "/redirect", "/a b.png", "/bild-ä.png?größe=1#图"])
def test_urls_are_downloaded(server, url):
    for base in (server, server.replace("http", "HTTP")):
        assert image_loading.open_image(base + url, allow_internal_urls=True).size == (50, 30)


@pytest.mark.parametrize("url, words", [
    ("/missing.png", r"missing\.png: could not be downloaded \(HTTP Error 404"),
    ("/stated", "1000000000000 bytes, and at most 1048576 are read"),
    ("/endless", "more than the 1048576 bytes"),
    ("/slow", "no answer within 1 s"),
    ("/cut.png", "ended after"),
])  # fmt: skip
def test_downloads_have_an_end(server, url, words):
    """A largest size, and a deadline for all of it rather than for each byte."""
    start = time.monotonic()
    with pytest.raises(ValueError, match=words):
        url_loading.download(server + url, allow_internal=True, seconds=1, largest=2**20)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("url", [
    "{server}/image.png", "http://localhost:{port}/image.png", "http://[::1]:{port}/image.png",
    "http://0.0.0.0:{port}/", "http://2130706433:{port}/", "http://[::ffff:127.0.0.1]:{port}/",
    "http://169.254.169.254/latest/meta-data",
])  # fmt: skip
def test_internal_addresses_are_refused_unless_allowed(server, url):
    port = server.rsplit(":", 1)[1]
    with pytest.raises(ValueError, match=r"internal address .*allow_internal_urls=True"):
        image_loading.open_image(url.format(server=server, port=port))


def test_a_redirect_to_an_internal_address_is_refused(server, monkeypatch):
    """Here the first address counts as public, as a stranger's server would be."""
    checked = []
    check = url_loading._check_address

    def check_the_second(address, host):
        checked.append(address)
        if len(checked) > 2:  # the name's address, and the connection's
            check(address, host)

    monkeypatch.setattr(url_loading, "_check_address", check_the_second)
    with pytest.raises(ValueError, match="internal address"):
        url_loading.download(f"{server}/redirect")


@pytest.mark.parametrize(
    "url", ["http://", "http://[::1", "https:///a.png", "http://a b/", "http://x:y/"]
)
def test_malformed_urls_are_named(url):
    with pytest.raises(ValueError, match="could not be downloaded"):
        image_loading.open_image(url)


def test_urls_reach_the_processor_when_allowed(server):
    with pytest.raises(ValueError, match="internal address"):
        SkyworkImageProcessor()(f"{server}/image.png")
    features = SkyworkImageProcessor()(f"{server}/image.png", allow_internal_urls=True)
    expected = SkyworkImageProcessor()(io.BytesIO(Server.image))
    assert torch.equal(features["pixel_values"], expected["pixel_values"])


def _write(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name, data, error, words", [
    ("cut.png", encoded(picture(200, 200))[:5000], ValueError, "damaged or incomplete"),
    ("empty.png", b"", ValueError, "empty"),
    ("text.png", b"this is not an image, whatever its name says", ValueError, "not an image"),
    ("half.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF", ValueError, "half.jpg"),
])  # fmt: skip
def test_unreadable_files_are_named(name, data, error, words, tmp_path):
    path = _write(tmp_path / name, data)
    with pytest.raises(error) as raised:
        SkyworkImageProcessor()([picture(5, 5), str(path)])
    assert name in str(raised.value) and words in str(raised.value)


def test_missing_files_directories_and_wrong_types_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no/such\.png"):
        image_loading.open_image("no/such.png")
    # As long as base64, which is ASCII
    with pytest.raises(FileNotFoundError, match=r"图.*no such image file"):
        image_loading.open_image("图" * 60 + ".png")
    with pytest.raises(ValueError, match=r"data:image/png;base64.*not valid base64"):
        image_loading.open_image("data:image/png;base64,图")
    with pytest.raises(ValueError, match="a directory"):
        image_loading.open_image(tmp_path)
    with pytest.raises(TypeError, match="not int"):
        image_loading.open_image(7)
    with pytest.raises(ValueError, match="No image"):
        SkyworkImageProcessor()([None, []])


def test_bombs_are_named(tmp_path, monkeypatch):
    path = save(Image.new("1", (3000, 3000)), tmp_path, "bomb.png")
    # Nine times the limit; twice is PIL's error
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(ValueError, match=r"bomb\.png: too many pixels"):
        image_loading.open_image(path)


def test_a_pil_image_of_a_truncated_file_is_named(tmp_path):
    path = _write(tmp_path / "cut.png", encoded(picture(200, 200))[:5000])
    with pytest.raises(ValueError, match=r"cut\.png"):
        image_loading.open_image(Image.open(path))


def test_one_pil_image_may_be_used_several_times(tmp_path):
    path = save(picture(900, 900), tmp_path)
    image, other = Image.open(path), Image.open(path)
    processor = SkyworkImageProcessor(size=112, max_dynamic_patch=6)
    features = processor([image, other, image, image])
    assert torch.equal(features["pixel_values"], processor(path)["pixel_values"].repeat(4, 1, 1, 1))


def test_the_callers_image_keeps_its_frame(tmp_path):
    frames = [picture(40, 40, "P", seed) for seed in range(3)]
    image = Image.open(
        save(frames[0], tmp_path, "image.gif", save_all=True, append_images=frames[1:])
    )
    image.seek(2)
    image_loading.open_image(image)
    assert image.tell() == 2


def test_a_damaged_exif_block_is_no_damaged_image(tmp_path):
    image = picture(40, 30)
    path = save(image, tmp_path, exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xffjunk")
    assert torch.equal(SkyworkImageProcessor()(path)["pixel_values"], CARD["load_image"](path))


@pytest.mark.parametrize("side", [10, 100, 300])
def test_short_base64_is_no_path(side):
    """Black pictures: from a hundred to a thousand characters, which no file name can have."""
    image = Image.new("RGB", (side, side))
    assert image_loading.open_image(base64.b64encode(encoded(image)).decode()).size == (side, side)


def test_many_images_equal_single_ones():
    images = [picture(100 + 37 * index, 300) for index in range(7)]
    processor = SkyworkImageProcessor(size=112, max_dynamic_patch=6)
    together = processor([images[:2], None, [], images[2:]])
    alone = [processor(image)["pixel_values"] for image in images]
    assert torch.equal(together["pixel_values"], torch.cat(alone))
    assert together["num_patches"].tolist() == [len(tiles) for tiles in alone]
    as_numpy = processor(images, return_tensors="np")["pixel_values"]
    assert isinstance(as_numpy, np.ndarray) and np.array_equal(
        as_numpy, together["pixel_values"].numpy()
    )


@pytest.mark.parametrize("options, tiles", [
    ({"crop_to_patches": False}, 1), ({"crop_to_patches": True}, 7), ({"use_thumbnail": False}, 6),
    ({"max_dynamic_patch": 2}, 3), ({"min_dynamic_patch": 12, "max_dynamic_patch": 12}, 13),
])  # fmt: skip
def test_options_of_a_call(options, tiles):
    assert SkyworkImageProcessor(max_dynamic_patch=6)(picture(600, 400), **options)[
        "num_patches"
    ].tolist() == [tiles]


@pytest.mark.parametrize("changes, name", [
    ({"min_dynamic_patch": 3, "max_dynamic_patch": 2}, "min_dynamic_patch=3"),
    ({"size": {"height": 448, "width": 224}}, "square"),
])  # fmt: skip
def test_impossible_settings_are_named(changes, name):
    with pytest.raises(ValueError, match=name):
        SkyworkImageProcessor(**changes)


def test_the_repository_loads_as_ours_and_as_clips(tmp_path):
    ours = AutoImageProcessor.from_pretrained(checkpoints.ROOT, trust_remote_code=True)
    assert (type(ours).__name__, ours.size, ours.max_dynamic_patch) == (
        "SkyworkImageProcessor",
        448,
        12,
    )
    clip = CLIPImageProcessor.from_pretrained(checkpoints.ROOT)
    pixels = clip(images=picture(448, 448), return_tensors="pt")["pixel_values"]
    # CLIP's processor scales and normalises by other operations
    torch.testing.assert_close(
        pixels, ours(picture(448, 448))["pixel_values"], atol=1e-5, rtol=1e-5
    )
    ours.save_pretrained(tmp_path)
    again = AutoImageProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert again.to_dict() == ours.to_dict()
    assert torch.equal(
        again(picture(60, 90))["pixel_values"], ours(picture(60, 90))["pixel_values"]
    )


@pytest.mark.parametrize(
    "keywords", [{"max_dynamic_patches": 4}, {"size": 224}], ids=["a slip", "not of a call"]
)
def test_unknown_keywords_are_errors(keywords):
    with pytest.raises(TypeError, match=f"{next(iter(keywords))}=.*expected min_dynamic_patch"):
        SkyworkImageProcessor()(picture(20, 20), **keywords)
    # What transformers' callers add
    SkyworkImageProcessor()(picture(20, 20), device="cpu", size=None)


def test_channels_first_arrays_are_named():
    with pytest.raises(
        ValueError, match=r"array of shape \(3, 40, 50\): expected \(height, width\)"
    ):
        SkyworkImageProcessor()(np.zeros((3, 40, 50), np.uint8))
    assert (
        len(SkyworkImageProcessor()(torch.zeros(3, 40, 50, dtype=torch.uint8))["pixel_values"]) >= 1
    )


@pytest.mark.parametrize("settings", [
    {"image_std": [0.2, 0, 0.2]}, {"image_std": [0.2, "0.2", 0.2]}, {"image_std": 0.5},
    {"image_mean": [0.5, 0.5]}, {"size": 0}, {"size": "448"}, {"size": -448},
])  # fmt: skip
def test_settings_that_would_give_no_pixels_are_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        SkyworkImageProcessor(**settings)
