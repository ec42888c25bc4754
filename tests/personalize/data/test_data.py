"""Pictures: every orientation, mode and fault; latents and embeddings cached equal to uncached."""

import io
import os
import zlib

import numpy as np
import pytest
import torch
from photographs import photo
from PIL import Image
from rich.console import Console

from personalize.data.decode import MAX_PIXELS, ORIENTATION, open_rgb
from personalize.data.latents import CROPS, PromptCache, instance_set, make_pixels, resize_and_crop
from personalize.data.photos import scan
from toy2d.runs.files import UserError

# what a camera does to upright pixels so that the viewer's transposition k brings them back
UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def array(image):
    return np.asarray(image).astype(int)


def problem(folder, **options):
    """The one problem of a folder."""
    found = scan(folder, **options)
    assert len(found.problems) == 1, found
    with pytest.raises(UserError) as e:
        found.require()
    assert all(part in str(e.value) for part in found.problems[0])
    return found.problems[0]


# ---- pictures that are fine
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_every_exif_orientation_comes_out_upright(tmp_path, form, turn):
    upright, exif = photo(), Image.Exif()
    exif[ORIENTATION] = turn
    stored = upright.transpose(UNDO[turn]) if turn > 1 else upright
    options = {"lossless": True} if form == "WEBP" else {"quality": 100, "subsampling": 0}
    stored.save(tmp_path / "x.img", form, exif=exif, **({} if form == "PNG" else options))
    (record,) = scan(tmp_path).require()
    assert (record.width, record.height) == upright.size
    assert ("turned by EXIF" in record.notes) == (turn > 1)
    # JPEG at quality 100 rounds in YCbCr: a few levels
    assert abs(array(open_rgb(record.path)) - array(upright)).max() <= (8 if form == "JPEG" else 0)


def test_transparency_goes_onto_white(tmp_path):
    rgb = photo()
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, 96).astype(np.uint8), (80, 1)))
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    rgba.save(tmp_path / "a.png")
    a = array(alpha)[..., None] / 255
    expected = array(rgb) * a + 255 * (1 - a)
    assert abs(array(open_rgb(tmp_path / "a.png")) - expected).max() <= 1
    gray = rgb.convert("LA")
    gray.putalpha(alpha)
    gray.save(tmp_path / "b.png")
    palette = rgb.quantize(8)
    palette.save(tmp_path / "c.png", transparency=palette.getpixel((0, 0)))
    assert open_rgb(tmp_path / "c.png").getpixel((0, 0)) == (255, 255, 255)
    assert [r.notes for r in scan(tmp_path).require()] == [("onto white",)] * 3


def test_sixteen_bits_are_scaled_not_saturated(tmp_path):
    levels = np.linspace(0, 65535, 96 * 80).reshape(80, 96)
    Image.fromarray(levels.astype(np.uint16)).save(tmp_path / "x.png")
    (record,) = scan(tmp_path).require()
    assert "16 bit" in record.notes
    assert abs(array(open_rgb(record.path))[..., 0] - levels / 257).max() <= 0.51


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(tmp_path, mode):
    image = photo().convert(mode)
    image.save(tmp_path / ("x.jpg" if mode in ("CMYK", "YCbCr") else "x.png"), quality=100)
    opened = open_rgb(tmp_path / ("x.jpg" if mode in ("CMYK", "YCbCr") else "x.png"))
    assert opened.mode == "RGB"
    assert abs(array(opened) - array(image.convert("RGB"))).mean() <= 2


def test_a_phones_two_picture_jpeg_is_its_first_picture(tmp_path):
    photo().save(
        tmp_path / "x.jpg", "MPO", save_all=True, append_images=[photo(seed=1)], quality=100
    )
    (record,) = scan(tmp_path).require()
    assert record.format == "MPO"
    assert abs(array(open_rgb(record.path)) - array(photo())).mean() < 2


def test_content_decides_not_the_name(tmp_path):
    photo().save(tmp_path / "jpeg_inside.png", "JPEG")
    photo().save(tmp_path / "no_suffix", "PNG")
    assert [r.format for r in scan(tmp_path).require()] == ["JPEG", "PNG"]


def test_order_is_by_name_and_other_files_are_listed(photos):
    (photos / ".hidden.jpg").write_bytes(b"x")
    (photos / ".ipynb_checkpoints").mkdir()
    (photos / "notes.md").write_text("mine")
    (photos / "film.mp4").write_bytes(b"0" * 100)
    (photos / "empty.dat").touch()
    (photos / "orphan.txt").write_text("caption of nothing")
    (photos / "loop").symlink_to("loop")
    photo().save(photos / "10.jpg")
    found = scan(photos)
    assert [r.path.name for r in found.require()] == ["0.jpg", "1.jpg", "10.jpg", "2.jpg", "3.jpg"]
    assert len(found.skipped) == 7
    assert "orphan.txt" in found.skipped


def test_the_same_picture_twice_is_said(photos):
    (photos / "copy.jpg").write_bytes((photos / "1.jpg").read_bytes())
    assert scan(photos).records[-1].notes == ("same picture as 1.jpg",)


def test_data_hash_follows_bytes_names_and_captions(photos):
    hashes = [scan(photos).hash(), scan(photos).hash()]
    (photos / "0.txt").write_text("a caption")
    hashes.append(scan(photos).hash())
    photo(seed=9).save(photos / "0.jpg")
    hashes.append(scan(photos).hash())
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


# ---- captions
def test_captions_stand_beside_their_pictures(photos):
    (photos / "0.txt").write_bytes("\ufeff a  sks dog\r\n in the snow \n".encode())
    (photos / "1.txt").write_text("ein schöner Hund 🐕", encoding="utf-8")
    found = scan(photos)
    assert [r.caption for r in found.require()] == [
        "a sks dog in the snow",
        "ein schöner Hund 🐕",
        None,
        None,
    ]
    assert found.skipped == []
    assert scan(photos, captions=False).records[0].caption is None


@pytest.mark.parametrize("data", [b"", b" \n", "schön".encode("latin-1"), b"a\0b", b"x" * 10_000])
def test_a_bad_caption_is_a_problem_of_its_picture(photos, data):
    (photos / "2.txt").write_bytes(data)
    name, why = problem(photos)
    assert name == "2.jpg"
    assert "2.txt" in why


def test_a_picture_without_any_prompt_is_refused(base, photos):
    (photos / "0.txt").write_text("a sks dog")
    records = scan(photos).require()
    with pytest.raises(UserError, match=r"1\.jpg, 2\.jpg, 3\.jpg"):
        instance_set(base, records, None, 64)
    assert instance_set(base, records, "a dog", 64).prompts == ["a sks dog", *["a dog"] * 3]


# ---- pictures that are not
def png_header(width, height):
    """A well-formed PNG that claims a size it does not hold: a bomb."""

    def chunk(kind, data):
        body = kind + data
        return len(data).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)

    size = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + data + chunk(b"IEND", b"")


def saved(form, image=None, **options):
    file = io.BytesIO()
    (image or photo()).save(file, form, **options)
    return file.getvalue()


BAD = {
    "empty.jpg": b"",
    "text.png": b"not a picture",
    "half.jpg": saved("JPEG")[:900],
    "half.png": saved("PNG")[:-2000],
    "half.webp": saved("WEBP")[:-300],
    "gif_inside.png": saved("GIF"),
    "picture.gif": saved("GIF"),
    "picture.tiff": saved("TIFF"),
    "picture.bmp": saved("BMP"),
    "picture.heic": b"\0\0\0\x18ftypheic" + b"\0" * 100,
    "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "animated.png": saved("PNG", save_all=True, append_images=[photo(seed=1)]),
    "animated.webp": saved("WEBP", save_all=True, append_images=[photo(seed=1)]),
    "bomb.png": png_header(20_000, 20_000),
    "larger_bomb.png": png_header(2**20, 2**20),
    "no_rows.png": png_header(64, 64),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_is_a_problem_with_its_reason(tmp_path, name):
    (tmp_path / name).write_bytes(BAD[name])
    assert problem(tmp_path)[0] == name
    with pytest.raises(UserError, match=name):
        open_rgb(tmp_path / name)


def test_all_problems_are_reported_at_once(photos):
    for name, data in BAD.items():
        (photos / name).write_bytes(data)
    (photos / "broken_link.jpg").symlink_to("nowhere")
    os.mkfifo(photos / "pipe.jpg")
    (photos / "3.txt").write_bytes(b"\xff")
    found = scan(photos)
    assert {name for name, _ in found.problems} == {*BAD, "broken_link.jpg", "pipe.jpg", "3.jpg"}
    assert len(found.records) == 3
    with Console(width=100, record=True, file=io.StringIO()) as console:
        console.print(found.table())
    text = console.export_text()
    assert all(name[:12] in text for name in BAD)
    assert "3 pictures, 20 problems" in text


def test_random_bytes_behind_a_real_header_never_crash(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(60):
        good = bytearray(BAD["half.webp"] if k % 3 == 0 else saved(["JPEG", "PNG"][k % 2]))
        for place in rng.integers(0, len(good), 20):
            good[place] = rng.integers(0, 256)
        (tmp_path / f"{k}.jpg").write_bytes(good)
    found = scan(tmp_path)
    assert len(found.records) + len(found.problems) == 60


def test_the_limit_lets_a_phones_108_megapixels_pass():
    assert 12_000 * 9_000 < MAX_PIXELS < 20_000 * 20_000


def test_names_are_data_and_never_markup(tmp_path):
    name = "[bold red]x[/] [link=http://a]{{7*7}}.jpg"
    (tmp_path / name.replace("/", "_")).write_bytes(b"")
    with Console(width=200, record=True, file=io.StringIO()) as console:
        console.print(scan(tmp_path).table())
    assert name.replace("/", "_")[:20] in console.export_text()


def test_names_that_are_no_text_or_command_the_terminal_are_printed_harmlessly(tmp_path):
    photo().save(tmp_path / "a\x1b[31m\x07.png")
    (tmp_path / "a\x1b[31m\x07.txt").write_text("caption \x1b]0;owned\x07")
    photo().save(tmp_path / os.fsdecode(b"\xff\xfe.png"))
    found = scan(tmp_path)
    assert len(found.require()) == 2
    assert len(found.hash()) == 16
    file = io.TextIOWrapper(io.BytesIO(), "utf-8")
    Console(file=file, width=200).print(found.table())
    file.flush()
    assert b"\x1b" not in file.buffer.getvalue()


@pytest.mark.parametrize(("side", "note"), [(8, None), (40, "enlarged x1.6"), (64, "")])
def test_too_small_is_refused_and_small_is_said(tmp_path, side, note):
    photo(side, 2 * side).save(tmp_path / "x.png")
    if note is None:
        assert "too small" in problem(tmp_path, resolution=64)[1]
    else:
        (record,) = scan(tmp_path, resolution=64).require()
        assert ", ".join(record.notes) == note


def test_no_folder_and_no_pictures_are_refused(tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        scan(tmp_path / "absent")
    assert "no pictures" in problem(tmp_path)[1]
    (tmp_path / "dog").mkdir()
    assert "(dog) are not searched" in problem(tmp_path)[1]


# ---- pixels
def test_pixels_are_the_rgb_levels_between_minus_one_and_one(tmp_path):
    image = photo(64, 64)
    image.save(tmp_path / "x.png")
    (record,) = scan(tmp_path).require()
    pixels = make_pixels(record, 64)
    assert torch.equal(
        ((pixels + 1) * 127.5).round().permute(1, 2, 0).int(), torch.from_numpy(array(image)).int()
    )
    assert torch.equal(make_pixels(record, 64, flip=True), pixels.flip(-1))


def test_crop_positions_walk_along_the_longer_side_and_pad_keeps_all():
    wide = Image.fromarray(np.tile(np.arange(0, 192, dtype=np.uint8), (64, 1))).convert("RGB")
    lefts = [
        float((resize_and_crop(wide, 64, "random", position=p)[0, 0, 0] + 1) * 127.5)
        for p in (0, 0.5, 1)
    ]
    assert lefts == pytest.approx([0, 64, 128], abs=1e-4)
    assert torch.equal(
        resize_and_crop(wide, 64, "center"), resize_and_crop(wide, 64, "random", position=0.5)
    )
    padded = resize_and_crop(wide, 64, "pad")
    assert padded.shape == (3, 64, 64)
    assert (padded[:, :20] == 1).all()
    assert (padded[:, -20:] == 1).all()
    assert (padded[0, 32].diff() > 0).all()
    tall = wide.transpose(Image.Transpose.TRANSPOSE)
    assert torch.equal(resize_and_crop(tall, 64, "center"), resize_and_crop(wide, 64, "center").mT)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (63, 65), (101, 57)])
@pytest.mark.parametrize("crop", ["center", "random", "pad"])
def test_any_size_fits(size, crop):
    pixels = resize_and_crop(
        photo(*size) if min(size) > 1 else Image.new("RGB", size), 32, crop, position=1.0
    )
    assert pixels.shape == (3, 32, 32)
    assert pixels.abs().max() <= 1


# ---- caches
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", ["center", "random", "pad"])
def test_cached_latents_equal_uncached_to_the_bit(base, photos, crop, flip):
    records = scan(photos).require()
    plain = instance_set(base, records, "a sks dog", 64, crop, flip)
    cached = instance_set(base, records, "a sks dog", 64, crop, flip).cache()
    for seed, indices in enumerate([[0], [3, 1], [2, 2, 0]]):
        a, prompts = plain.draw(indices, torch.Generator().manual_seed(seed))
        b, _ = cached.draw(indices, torch.Generator().manual_seed(seed))
        assert torch.equal(a, b)
        assert prompts == ["a sks dog"] * len(indices)


def test_a_draw_is_the_pictures_own_posterior_sample(base, photos):
    """Without augmentation: mean + std eps of its pixels, eps after the variant's draw."""
    records = scan(photos).require()
    x0, _ = instance_set(base, records, "p", 64).draw([2], torch.Generator().manual_seed(5))
    rng = torch.Generator().manual_seed(5)
    torch.randint(1, (), generator=rng)
    mean, std = base.posterior(make_pixels(records[2], 64)[None])
    expected = mean + std * torch.randn(mean.shape, generator=rng)
    torch.testing.assert_close(x0, expected, rtol=1e-6, atol=1e-6)


def test_the_variants_are_every_flip_at_every_position_once(base, photos):
    record = scan(photos).require()[3]
    pictures = instance_set(base, [record], "p", 64, "random", random_flip=True)
    ours = [pictures._posterior(0, v)[0] for v in range(pictures.variants)]
    frames = [(f, k / (CROPS - 1)) for f in (False, True) for k in range(CROPS)]
    for mean, (flip, position) in zip(ours, frames, strict=True):
        expected, _ = base.posterior(make_pixels(record, 64, "random", flip, position)[None])
        assert torch.equal(mean, expected[0])
    assert len({tuple(m.flatten().tolist()) for m in ours}) == 2 * CROPS


@pytest.mark.parametrize(
    ("size", "flip", "times"),
    [((80, 80), False, 1), ((80, 80), True, 2), ((200, 80), False, CROPS), ((82, 80), True, 6)],
)
def test_what_shows_the_same_part_is_encoded_once(base, tmp_path, size, flip, times):
    """A square photo has one crop; one of 82 x 80 pixels, 66 x 64 when resized, has three."""
    folder = tmp_path / "p"
    folder.mkdir()
    photo(*size).save(folder / "a.png")
    pictures = instance_set(base, scan(folder).require(), "p", 64, "random", flip)
    asked, encode = [], pictures._posterior
    pictures._posterior = lambda i, v: (asked.append(v), encode(i, v))[1]
    pictures.cache()
    assert len(asked) == times
    for v in range(pictures.variants):
        assert torch.equal(pictures.latents(0, v)[0], encode(0, v)[0])


def test_flips_and_crops_are_all_drawn_and_equally_often(base, photos):
    pictures = instance_set(base, scan(photos).require(), "p", 64, "random", random_flip=True)
    seen = []
    pictures._posterior = lambda i, v: (seen.append(v), (torch.zeros(1), torch.ones(1)))[1]
    pictures.draw([0] * 9000, torch.Generator().manual_seed(0))
    counts = np.bincount(seen, minlength=2 * CROPS)
    # each count is binomial(9000, 1/18): mean 500, standard deviation 21.7; 5 of them
    assert abs(counts - 500).max() < 5 * 21.7


def test_cached_prompts_are_rows_of_the_encoder_and_need_it_no_more(base, model):
    texts = ["a sks dog", "a dog", "a sks dog"]
    cached = PromptCache(model).add(texts)
    model.pipeline.text_encoder.forward = None  # a second call would fail
    cond = cached(texts)
    alone = torch.cat([base.encode_prompts([t])["encoder_hidden_states"] for t in texts])
    assert torch.equal(cond["encoder_hidden_states"], alone)
    fresh = PromptCache(base, cache=False)(texts)["encoder_hidden_states"]
    # a batch of three against three of one: sums in another order
    torch.testing.assert_close(fresh, alone, rtol=1e-5, atol=1e-5)
