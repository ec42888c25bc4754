"""What a notebook shows: a caption for those who cannot see it, nothing from elsewhere, and a
slider that moves without a kernel's help.
"""

import re

import pytest
from PIL import Image

from toy2d.figures.display import Picture, Slider, show
from toy2d.figures.style import plt


def test_a_figure_is_closed_and_carries_its_caption():
    figure, _ = plt.subplots()
    picture = show(figure, 'a "caption" <b>')
    assert figure.number not in plt.get_fignums()
    bundle = picture._repr_mimebundle_()
    assert bundle["text/plain"] == 'a "caption" <b>'
    assert 'alt="a &quot;caption&quot; &lt;b&gt;"' in bundle["text/html"]
    assert "<b>" not in bundle["text/html"]
    assert not re.search(r"(src|href)=.https?:", bundle["text/html"])


def slider() -> Slider:
    return Slider(
        "lambda", {str(i): show(Image.new("L", (2, 2), i), f"grey {i}") for i in range(3)}
    )


def test_live_the_slider_chooses_the_frame():
    made = slider()
    control, image = made.live().children
    assert control.label == "0"
    control.value = 2
    assert image.value == made.frames["2"].png


def test_static_one_frame_is_visible_and_all_are_there():
    page = slider().static_html()
    assert page.count("<img") == 3
    assert len(re.findall(r"<img[^>]* hidden>", page)) == 2
    assert "http" not in page


def test_no_frames_are_refused():
    with pytest.raises(ValueError, match="no pictures"):
        Slider("lambda", {})


def test_an_empty_picture_is_its_caption():
    assert "<img" not in Picture(b"", "not recorded")._repr_mimebundle_()["text/html"]
