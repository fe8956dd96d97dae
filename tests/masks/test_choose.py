"""Which object is meant: prompts, the choice among masks, GrabCut without weights."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.images import disc, iou
from support.paths import ROOT

from artmancer import images, mask_ops
from artmancer.errors import ArtMancerError
from artmancer.masks.choose import choose, pack
from artmancer.masks.clicks import Clicks, parse_clicks
from artmancer.masks.grabcut import GrabCut

HAND_MADE = ROOT / "tests" / "assets" / "masks"


def rectangle(top: int, left: int, bottom: int, right: int) -> torch.Tensor:
    mask = torch.zeros(100, 120, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


# A table with a plate on it, a cup on the plate, and a lamp beside the table.
TABLE, PLATE, CUP, LAMP = (
    rectangle(40, 0, 100, 120),
    rectangle(50, 20, 90, 80),
    rectangle(55, 40, 75, 60),
    rectangle(0, 90, 30, 110),
)
MASKS, SCORES = torch.stack([TABLE, PLATE, CUP, LAMP]), torch.tensor([0.9, 0.8, 0.7, 0.6])


def holding(masks: torch.Tensor, points: tuple[tuple[float, float], ...]) -> torch.Tensor:
    """Which masks hold each point, bool [P, N]."""
    x, y = torch.tensor(points).long().reshape(-1, 2).unbind(1)
    return masks[:, y, x].T


def meant(prompt: Clicks) -> list[tuple[int, ...]]:
    points = [holding(MASKS, some) for some in (prompt.positive, prompt.negative)]
    brush = None if prompt.brush is None else prompt.brush[0].numpy() >= 0.5
    return [choice.masks for choice in choose(pack(MASKS, SCORES), *points, prompt.box, brush)]


def test_a_point_means_the_smallest_object_under_it_and_then_the_larger_ones() -> None:
    assert meant(Clicks(((50, 60),))) == [(2,), (1,), (0,)]
    assert meant(Clicks(((25, 60),))) == [(1,), (0,)]


def test_a_negative_point_rules_out_what_holds_it() -> None:
    assert meant(Clicks(((50, 60),), ((25, 60),))) == [(2,)]
    assert meant(Clicks(((25, 60),), ((50, 60),))) == []


def test_points_on_different_parts_are_joined() -> None:
    assert meant(Clicks(((50, 60), (100, 10)))) == [(2, 3)]
    assert meant(Clicks(((50, 60), (25, 60))))[0] == (1,), (
        "one that holds both is joined with nothing"
    )


def test_nothing_under_a_point_is_nothing_and_not_the_next_best() -> None:
    assert meant(Clicks(((5, 5),))) == []
    assert meant(Clicks(((50, 60), (5, 5)))) == []


def test_a_box_means_what_fills_it_and_nothing_where_nothing_is() -> None:
    assert meant(Clicks(box=(18, 48, 83, 92)))[0] == (1,)
    assert meant(Clicks(box=(38, 52, 63, 78)))[0] == (2,)
    assert meant(Clicks(box=(0, 0, 30, 30))) == []


def test_a_rough_brush_means_what_it_covers() -> None:
    brush = rectangle(52, 36, 80, 66)[None].float()
    assert meant(Clicks(brush=brush))[0] == (2,)
    scribble = rectangle(8, 95, 12, 105)[None].float()
    assert meant(Clicks(brush=scribble)) == [(3,)]


def test_without_a_prompt_the_main_object_is_meant() -> None:
    assert meant(Clicks())[0] == (1,)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    points=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 14)), min_size=1, max_size=4),
    negative=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 14)), max_size=3),
)
def test_what_is_chosen_holds_every_positive_point_and_no_negative_one(
    seed: int, points: list[tuple[int, int]], negative: list[tuple[int, int]]
) -> None:
    masks = torch.rand(12, 15, 20, generator=torch.Generator().manual_seed(seed)) < 0.4
    said = [holding(masks, tuple(some)) for some in (points, negative)]
    choices = choose(pack(masks, torch.rand(12)), *said)
    areas = []
    for choice in choices:
        joined = masks[list(choice.masks)].any(0)
        assert all(joined[y, x] for x, y in points) and not any(joined[y, x] for x, y in negative)
        areas.append(int(joined.sum()))
    assert areas == sorted(areas)


def test_a_prompt_is_read_from_json() -> None:
    said = parse_clicks('{"points": [[3, 4], [5.5, 6]], "labels": [1, 0], "bbox": [9, 8, 1, 2]}')
    assert said.positive == ((3, 4),) and said.negative == ((5.5, 6),) and said.box == (1, 2, 9, 8)
    assert parse_clicks("") == parse_clicks("{}") == Clicks()
    assert parse_clicks('{"points": [[1, 2]]}').positive == ((1, 2),)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"points": 3}',
        '{"points": [[1]]}',
        '{"points": [["a", 2]]}',
        '{"points": [[NaN, 2]]}',
        '{"points": [[true, 2]]}',
        '{"points": [[1, 2]], "labels": [1, 0]}',
        '{"points": [[1, 2]], "labels": [2]}',
        '{"bbox": [1, 2, 3]}',
        '{"bbox": "all"}',
        '{"box": [1, 2, 3, 4]}',
        json.dumps({"points": [[1, 2]] * 1001}),
        "[" * 500,
        pytest.param("[" * 100_000, id="deep"),
        pytest.param(f'{{"points": [[{10**400}, 2]]}}', id="beyond a float"),
        pytest.param(f'{{"bbox": [0, 0, 9, {"9" * 5000}]}}', id="beyond an integer"),
    ],
)
def test_a_malformed_prompt_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ArtMancerError, match=r"^The clicks .* expected") as caught:
        parse_clicks(text)
    assert caught.value.code == "invalid_request" and len(str(caught.value)) < 400


@pytest.mark.parametrize("selector", [GrabCut()], ids=["draft"])
def test_prompts_that_do_not_belong_to_the_picture_are_refused(selector, example) -> None:
    photo = example("coffee")
    for prompt, said in (
        (Clicks(((600, 10),)), r"point \(600, 10\) lies outside the image of 600x400"),
        (Clicks((), ((-1, 10),)), "lies outside"),
        (Clicks(box=(700, 10, 800, 20)), "covers no pixel"),
        (Clicks(brush=torch.ones(1, 50, 50)), "brush mask is 50x50 but the image is 600x400"),
        (Clicks(brush=torch.zeros(1, 400, 600)), "black everywhere"),
    ):
        with pytest.raises(ArtMancerError, match=said):
            selector.select(photo, prompt)
    with pytest.raises(ArtMancerError, match=r"shape \[1, 400, 600, 4\]; expected"):
        selector.select(torch.cat([photo, photo[..., :1]], -1), Clicks())


def hand_made(name: str) -> torch.Tensor:
    return images.load_mask(HAND_MADE / f"{name}.png")


@pytest.mark.parametrize(
    ("photo", "mask", "prompt", "least"),
    [
        ("coffee", "coffee_set", Clicks(box=(60, 10, 500, 395)), 0.95),
        ("coffee", "coffee_set", Clicks(((300, 200), (150, 250), (280, 60))), 0.9),
        ("astronaut", "astronaut_body", Clicks(((230, 350), (220, 110))), 0.75),
        ("chelsea", "chelsea_eye", Clicks(box=(130, 78, 212, 152)), 0.75),
    ],
)
def test_the_draft_model_cuts_out_what_a_hand_did(
    photo: str, mask: str, prompt: Clicks, least: float, example
) -> None:
    assert iou(GrabCut().select(example(photo), prompt).mask, hand_made(mask)) >= least


def test_the_draft_model_follows_a_rough_brush(example) -> None:
    for photo, name in (("coffee", "coffee_cup"), ("astronaut", "astronaut_body")):
        rough = mask_ops.grow(hand_made(name), 10)
        assert (
            iou(GrabCut().select(example(photo), Clicks(brush=rough)).mask, hand_made(name)) >= 0.85
        )


def wavy_disc(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A red disc with a wavy rim on green, IMAGE [1, H, W, 3] and MASK [1, H, W]."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    down, right = y - height / 2, x - width / 2
    waves = 1 + 0.12 * np.sin(14 * np.arctan2(down, right))
    inside = (np.hypot(down, right) <= 0.3 * height * waves).astype(np.float32)
    soft = torch.from_numpy(cv2.GaussianBlur(inside, (0, 0), 0.8))[None, ..., None]
    red, green = torch.tensor([0.85, 0.2, 0.15]), torch.tensor([0.15, 0.45, 0.3])
    return torch.lerp(green, red, soft), torch.from_numpy(inside)[None]


def rim(mask: torch.Tensor) -> np.ndarray:
    return (
        cv2.morphologyEx(
            mask[0].numpy().astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)
        )
        > 0
    )


def test_the_draft_models_edge_is_the_pictures_own_at_4k() -> None:
    image, disc = wavy_disc(2160, 3840)
    found = GrabCut().select(image, Clicks(((1920, 1080),)), 2).mask
    for one, other in ((found, disc), (disc, found)):
        off = cv2.distanceTransform(
            (~rim(other)).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
        )
        assert off[rim(one)].mean() <= 2


@pytest.mark.parametrize("thickness", [4, 14])
def test_the_draft_model_sees_a_thin_stroke(thickness: int) -> None:
    image, disc = wavy_disc(2048, 2048)
    stroke = torch.zeros(1, 2048, 2048)
    stroke[:, 1024 - thickness // 2 : 1024 + thickness // 2, 700:1350] = 1
    found = GrabCut().select(image, Clicks(brush=stroke)).mask
    assert found[stroke > 0].mean() > 0.95 and found[disc == 0].mean() < 0.001


@pytest.mark.parametrize("apart", [1, 3, 10, 40])
def test_the_draft_model_heeds_points_of_both_kinds_side_by_side(apart: int) -> None:
    image, disc = wavy_disc(1080, 1920)
    for x in (960, 960 + 324):  # in the disc, and at its rim
        found = GrabCut().select(image, Clicks(((x, 540),), ((x + apart, 540),))).mask
        assert found[0, 540, x] == 1 and found[0, 540, x + apart] == 0
    around = GrabCut().select(image, Clicks(((960, 540),), ((960 + apart, 540),)), 2).mask
    assert iou(around, disc) >= 0.9, "the rest of the object stays"


def test_the_draft_model_steps_through_candidates_and_repeats_itself(example) -> None:
    photo, click = example("coffee"), Clicks(((300, 200),))
    first, second = GrabCut().select(photo, click, 0), GrabCut().select(photo, click, 1)
    assert first.count == 3 and not torch.equal(first.mask, second.mask)
    assert torch.equal(GrabCut().select(photo, click, 3).mask, first.mask), (
        "counted round, and the same each time"
    )


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (100, 12000), (700, 40)])
def test_the_draft_model_takes_pictures_of_any_shape(size: tuple[int, int]) -> None:
    photo = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(1))
    try:
        found = GrabCut().select(photo, Clicks(((size[1] // 2, size[0] // 2),)))
    except ArtMancerError as error:
        assert error.code == "object_not_found"
    else:
        assert found.mask.shape == (1, *size)


def test_five_hundred_points_are_taken(example) -> None:
    points = tuple((float(x), 250.0) for x in np.linspace(150, 400, 500))
    assert GrabCut().select(example("coffee"), Clicks(points)).mask.any()


def test_refining_shapes_the_mask() -> None:
    mask = disc(100, 100, 50, 50, 20)
    mask[:, 5:8, 5:8] = 1
    mask[:, 48:52, 48:52] = 0
    assert mask_ops.fill_holes(mask)[0, 50, 50] == 1
    assert (
        mask_ops.drop_specks(mask, 10)[0, 6, 6] == 0 and mask_ops.drop_specks(mask, 9)[0, 6, 6] == 1
    )
    assert mask_ops.keep_largest(mask)[0, 6, 6] == 0 and mask_ops.keep_largest(mask)[0, 40, 50] == 1
    smaller = mask_ops.grow(mask_ops.fill_holes(mask), -5)
    assert smaller[0, 50, 67] == 0 and smaller[0, 50, 63] == 1
    shaped = mask_ops.shape(mask, border=3, largest=True, holes=True, fading=8)
    assert shaped[0, 50, 72] == 1 and 0 < shaped[0, 50, 77] < 1 and shaped[0, 6, 6] == 0
    notched = disc(100, 100, 50, 50, 30)
    notched[:, 49:51, 70:] = 0
    assert mask_ops.smooth(notched, 6)[0, 50, 75] == 1


def test_the_hand_made_masks_are_of_their_photos() -> None:
    for path in HAND_MADE.glob("*.png"):
        photo = ROOT / "workflows" / "examples" / f"{Path(path).stem.split('_')[0]}.png"
        assert Image.open(path).size == Image.open(photo).size
