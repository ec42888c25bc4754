"""A drawing that stands in for the artwork: a disc of one colour."""

from PIL import Image, ImageDraw


def disc(colour) -> Image.Image:
    drawing = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(drawing).ellipse((8, 8, 56, 56), fill=colour)
    return drawing
