"""Conditioning images of each recipe, and the reference."""

import pytest
import torch
from support.images import disc
from torch import Tensor

from artmancer import region
from artmancer.conditions import Sources, condition, cut_out, edges, place, split
from artmancer.errors import ArtMancerError
from artmancer.recipes import RECIPES
from artmancer.region import Window


@pytest.fixture
def sources(example) -> Sources:
    crop = region.crop(example("coffee"), example("coffee_mask"))
    return Sources(crop, cut_out(example("astronaut"), example("astronaut_patch_mask")))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_gives_its_images_in_order_at_the_crops_size(
    sources: Sources, recipe: str
) -> None:
    images = split(sources, recipe)
    assert tuple(images) == RECIPES[recipe].conditions
    assert {tuple(image.shape) for image in images.values()} == {tuple(sources.crop.image.shape)}


def test_background_and_object_are_the_crop_outside_and_inside_the_mask(sources: Sources) -> None:
    images = split(Sources(sources.crop))
    assert torch.allclose(images["background"] + images["object"], sources.crop.image)
    assert torch.equal(images["mask"][..., 0], sources.crop.mask)
    assert (images["background"][sources.crop.mask == 1] == 0).all()


def test_transparent_pixels_are_no_part_of_the_object() -> None:
    image = torch.rand(1, 40, 60, 4)
    image[..., 3] = 0
    image[:, 10:30, 20:50, 3] = 0.5
    reference = cut_out(image, None)
    assert torch.equal(reference.image, image[:, 10:30, 20:50, :3])
    assert bool((reference.mask == 0.5).all())
    left = torch.zeros(1, 40, 60)
    left[..., :30] = 1
    assert cut_out(image, left).mask.shape == (1, 20, 10)
    with pytest.raises(ArtMancerError, match="mask of the reference is black everywhere"):
        cut_out(image[:, :5], None)


def test_a_reference_takes_the_place_of_the_object(sources: Sources) -> None:
    object_image = split(sources)["object"]
    assert not torch.equal(object_image, split(Sources(sources.crop))["object"])
    assert (object_image[0, 0, 0] == 0).all(), "black around the cut-out"


def test_the_fill_is_made_by_patchmatch_or_connected(sources: Sources) -> None:
    hole = sources.crop.mask > 0
    filled = split(sources, "background_mask_fill")["fill"]
    assert torch.equal(filled[~hole], sources.crop.image[~hole])
    assert not torch.equal(filled, sources.crop.image)
    connected = Sources(sources.crop, fill=torch.rand_like(sources.crop.image))
    assert torch.equal(split(connected, "background_mask_fill")["fill"], connected.fill)


def test_without_a_reference_its_recipe_gives_mask_and_background(sources: Sources) -> None:
    alone = Sources(sources.crop)
    images = split(alone, "reference_mask_background")
    assert list(images) == ["mask", "background"]
    assert torch.equal(images["mask"], split(alone)["mask"])
    assert torch.equal(images["background"], split(alone)["background"])
    with pytest.raises(ArtMancerError) as error:
        condition(alone, "stretched reference")
    assert error.value.code == "reference_missing"


def test_place_keeps_the_aspect_ratio_and_the_colors_at_the_edge() -> None:
    image = torch.zeros(1, 100, 100, 3)
    mask = disc(100, 100, 50, 50, 30)
    orange = torch.tensor([1.0, 0.5, 0.2])
    image[mask > 0] = orange
    placed = place(cut_out(image, mask), (200, 300), Window(20, 40, 180, 240))
    box = region.bounds((placed.mask[0] > 0.5).float())
    assert abs((box.bottom - box.top) - 160) <= 2
    assert abs((box.right - box.left) - 160) <= 2
    assert abs((box.left + box.right) / 2 - 140) <= 1
    edge = placed.image[placed.mask > 0.1]
    assert (edge - orange).abs().max() < 0.02, "no dark fringe"


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (torch.zeros(2, 8, 8, 3), None, "2 images; expected one"),
        (torch.zeros(1, 8, 8, 3), torch.ones(1, 9, 8), "but the reference is 8x8"),
        (torch.zeros(1, 8, 8, 3), torch.zeros(1, 8, 8), "mask of the reference is black"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused(
    image: Tensor, mask: Tensor | None, message: str
) -> None:
    with pytest.raises(ArtMancerError, match=message):
        cut_out(image, mask)


def test_edges_are_white_lines_where_brightness_jumps() -> None:
    image = torch.zeros(1, 40, 40, 3)
    image[:, :, 20:] = 1
    lines = edges(image)
    assert lines[:, :, 19:21].amax() == 1
    assert lines[:, :, :15].amax() == 0
