import torch
from PIL import Image

from fewstep.artifacts.pictures import image_grid, picture, save_png, scatter
from fewstep.data.facts import DataFacts

DIGITS = DataFacts(name="digits", shape=(1, 8, 8), num_classes=10, low=-1.0, high=1.0)
MIXTURE = DataFacts(name="mixture", shape=(2,), num_classes=4, low=-1.5, high=1.5)


def test_small_images_are_enlarged_by_a_whole_number_with_their_pixels_intact():
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    grid = image_grid(images, num_columns=2)
    assert grid.size == (2 * 48 + 6, 2 * 48 + 6)  # 6 times 8 pixels, 2 between and around
    first = grid.crop((2, 2, 50, 50)).resize((8, 8), Image.Resampling.NEAREST).convert("L")
    assert list(first.tobytes()) == images[0].flatten().tolist()


def test_large_and_coloured_images_stay_as_they_are():
    assert image_grid(torch.zeros(3, 3, 64, 64, dtype=torch.uint8), num_columns=3).size == (3 * 66 + 2, 68)


def test_points_are_drawn_where_they_are():
    points = torch.tensor([[0.5, 0.5], [9.0, 0.0]])
    plot = scatter(points, torch.tensor([0, 1]), low=-1.0, high=1.0)
    assert plot.size == (160, 160)
    assert plot.getpixel((120, 40)) != (255, 255, 255)  # a quarter from the right, a quarter from the top
    assert plot.getpixel((40, 120)) == (255, 255, 255)


def test_the_facts_pick_the_picture():
    labels = torch.arange(4)
    assert picture(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), labels, DIGITS, 4).size == (4 * 50 + 2, 52)
    assert picture(torch.zeros(4, 2), labels, MIXTURE, 4).size == (480, 480)


def test_a_saved_picture_leaves_nothing_else_behind(tmp_path):
    save_png(Image.new("L", (80, 8), 9), tmp_path / "samples" / "grid.png")
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["grid.png"]
    assert Image.open(tmp_path / "samples" / "grid.png").getpixel((5, 5)) == 9
