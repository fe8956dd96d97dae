"""The choice of the clicked object: clicks, candidate masks, and GrabCut without weights."""

import itertools
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


TABLE, PLATE, CUP, LAMP = range(4)
"""Indices in MASKS: a table, a plate on it, a cup on the plate, and a lamp beside the table."""

MASKS = torch.stack(
    [
        rectangle(40, 0, 100, 120),
        rectangle(50, 20, 90, 80),
        rectangle(55, 40, 75, 60),
        rectangle(0, 90, 30, 110),
    ]
)
SCORES = torch.tensor([0.9, 0.8, 0.7, 0.6])


def masks_at(masks: torch.Tensor, points: tuple[tuple[float, float], ...]) -> torch.Tensor:
    """Tell which masks hold each point, bool [P, N]."""
    x, y = torch.tensor(points).long().reshape(-1, 2).unbind(1)
    return masks[:, y, x].T


def candidates(clicks: Clicks) -> list[tuple[int, ...]]:
    """Return the candidates for the clicks, each as indices in MASKS."""
    positive = masks_at(MASKS, clicks.positive)
    negative = masks_at(MASKS, clicks.negative)
    brush = None if clicks.brush is None else clicks.brush[0].numpy() >= 0.5
    choices = choose(pack(MASKS, SCORES), positive, negative, clicks.box, brush)
    return [choice.masks for choice in choices]


def test_a_point_chooses_the_smallest_object_under_it_and_then_the_larger_objects() -> None:
    assert candidates(Clicks(((50, 60),))) == [(CUP,), (PLATE,), (TABLE,)]
    assert candidates(Clicks(((25, 60),))) == [(PLATE,), (TABLE,)]


def test_a_negative_point_rules_out_the_objects_under_it() -> None:
    assert candidates(Clicks(((50, 60),), ((25, 60),))) == [(CUP,)]
    assert candidates(Clicks(((25, 60),), ((50, 60),))) == []


def test_points_on_different_objects_join_them() -> None:
    assert candidates(Clicks(((50, 60), (100, 10)))) == [(CUP, LAMP)]
    assert candidates(Clicks(((50, 60), (25, 60))))[0] == (PLATE,), (
        "an object that holds both points is not joined with another"
    )


def test_a_point_outside_all_objects_has_no_candidate() -> None:
    assert candidates(Clicks(((5, 5),))) == []
    assert candidates(Clicks(((50, 60), (5, 5)))) == []


def test_a_box_chooses_the_object_that_fills_it_and_an_empty_box_has_no_candidate() -> None:
    assert candidates(Clicks(box=(18, 48, 83, 92)))[0] == (PLATE,)
    assert candidates(Clicks(box=(38, 52, 63, 78)))[0] == (CUP,)
    assert candidates(Clicks(box=(0, 0, 30, 30))) == []


def test_a_rough_brush_chooses_the_object_that_it_covers() -> None:
    brush = rectangle(52, 36, 80, 66)[None].float()
    assert candidates(Clicks(brush=brush))[0] == (CUP,)
    scribble = rectangle(8, 95, 12, 105)[None].float()
    assert candidates(Clicks(brush=scribble)) == [(LAMP,)]


def test_no_clicks_choose_the_main_object() -> None:
    assert candidates(Clicks())[0] == (PLATE,)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    points=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 14)), min_size=1, max_size=4),
    negative=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 14)), max_size=3),
)
def test_every_candidate_holds_all_positive_points_and_no_negative_point(
    seed: int, points: list[tuple[int, int]], negative: list[tuple[int, int]]
) -> None:
    masks = torch.rand(12, 15, 20, generator=torch.Generator().manual_seed(seed)) < 0.4
    choices = choose(
        pack(masks, torch.rand(12)),
        masks_at(masks, tuple(points)),
        masks_at(masks, tuple(negative)),
    )
    areas = []
    for choice in choices:
        joined = masks[list(choice.masks)].any(0)
        assert all(joined[y, x] for x, y in points)
        assert not any(joined[y, x] for x, y in negative)
        areas.append(int(joined.sum()))
    assert areas == sorted(areas)


def test_clicks_are_read_from_json() -> None:
    clicks = parse_clicks('{"points": [[3, 4], [5.5, 6]], "labels": [1, 0], "bbox": [9, 8, 1, 2]}')
    assert clicks.positive == ((3, 4),)
    assert clicks.negative == ((5.5, 6),)
    assert clicks.box == (1, 2, 9, 8)
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
def test_malformed_clicks_are_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ArtMancerError, match=r"^The clicks .* expected") as error:
        parse_clicks(text)
    assert error.value.code == "invalid_request"
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("selector", [GrabCut()], ids=["draft"])
def test_clicks_that_do_not_fit_the_image_are_refused(selector, example) -> None:
    photo = example("coffee")
    for clicks, message in (
        (Clicks(((600, 10),)), r"point \(600, 10\) lies outside the image of 600x400"),
        (Clicks((), ((-1, 10),)), "lies outside"),
        (Clicks(box=(700, 10, 800, 20)), "covers no pixel"),
        (Clicks(brush=torch.ones(1, 50, 50)), "brush mask is 50x50 but the image is 600x400"),
        (Clicks(brush=torch.zeros(1, 400, 600)), "black everywhere"),
    ):
        with pytest.raises(ArtMancerError, match=message):
            selector.select(photo, clicks)
    with pytest.raises(ArtMancerError, match=r"shape \[1, 400, 600, 4\]; expected"):
        selector.select(torch.cat([photo, photo[..., :1]], -1), Clicks())


def hand_made(name: str) -> torch.Tensor:
    return images.load_mask(HAND_MADE / f"{name}.png")


@pytest.mark.parametrize(
    ("photo", "mask", "clicks", "min_iou"),
    [
        ("coffee", "coffee_set", Clicks(box=(60, 10, 500, 395)), 0.95),
        ("coffee", "coffee_set", Clicks(((300, 200), (150, 250), (280, 60))), 0.7),
        ("astronaut", "astronaut_body", Clicks(((230, 350), (220, 110))), 0.6),
        ("chelsea", "chelsea_eye", Clicks(box=(130, 78, 212, 152)), 0.75),
        ("chelsea", "chelsea_eye", Clicks(((171, 115),)), 0.75),
    ],
)
def test_a_candidate_of_the_draft_model_agrees_with_the_mask_made_by_hand(
    photo: str, mask: str, clicks: Clicks, min_iou: float, example
) -> None:
    selector = GrabCut()
    count = selector.select(example(photo), clicks).count
    overlaps = [
        iou(selector.select(example(photo), clicks, number).mask, hand_made(mask))
        for number in range(count)
    ]
    assert max(overlaps) >= min_iou


def test_the_draft_model_follows_a_rough_brush(example) -> None:
    for photo, name in (("coffee", "coffee_cup"), ("astronaut", "astronaut_body")):
        brush = mask_ops.grow(hand_made(name), 10)
        mask = GrabCut().select(example(photo), Clicks(brush=brush)).mask
        assert iou(mask, hand_made(name)) >= 0.85


def wavy_disc(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a red disc with a wavy rim on green: IMAGE [1, H, W, 3] and MASK [1, H, W]."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    down, right = y - height / 2, x - width / 2
    waves = 1 + 0.12 * np.sin(14 * np.arctan2(down, right))
    inside = (np.hypot(down, right) <= 0.3 * height * waves).astype(np.float32)
    soft = torch.from_numpy(cv2.GaussianBlur(inside, (0, 0), 0.8))[None, ..., None]
    red, green = torch.tensor([0.85, 0.2, 0.15]), torch.tensor([0.15, 0.45, 0.3])
    return torch.lerp(green, red, soft), torch.from_numpy(inside)[None]


def outline(mask: torch.Tensor) -> np.ndarray:
    """Return the pixels on both sides of a mask's edge, bool [H, W]."""
    inside = mask[0].numpy().astype(np.uint8)
    return cv2.morphologyEx(inside, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0


def mean_edge_distance(mask: torch.Tensor, other: torch.Tensor) -> float:
    """Return the mean distance in pixels from the edge of a mask to the edge of another."""
    distance = cv2.distanceTransform(
        (~outline(other)).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
    )
    return float(distance[outline(mask)].mean())


@pytest.mark.slow
def test_the_edge_of_the_draft_models_mask_lies_on_the_objects_edge_at_4k() -> None:
    image, disc = wavy_disc(2160, 3840)
    mask = GrabCut().select(image, Clicks(((1920, 1080),))).mask
    assert mean_edge_distance(mask, disc) <= 2
    assert mean_edge_distance(disc, mask) <= 2


@pytest.mark.parametrize("thickness", [4, 14])
def test_the_draft_model_accepts_a_thin_brush_stroke(thickness: int) -> None:
    image, disc = wavy_disc(2048, 2048)
    stroke = torch.zeros(1, 2048, 2048)
    stroke[:, 1024 - thickness // 2 : 1024 + thickness // 2, 700:1350] = 1
    mask = GrabCut().select(image, Clicks(brush=stroke)).mask
    assert mask[stroke > 0].mean() > 0.95
    assert mask[disc == 0].mean() < 0.001


@pytest.mark.slow
@pytest.mark.parametrize("distance", [1, 3, 10, 40])
def test_the_draft_model_separates_a_positive_point_from_a_negative_point_beside_it(
    distance: int,
) -> None:
    image, disc = wavy_disc(1080, 1920)
    center = 960
    rim = center + 324
    for x in (center, rim):
        mask = GrabCut().select(image, Clicks(((x, 540),), ((x + distance, 540),))).mask
        assert mask[0, 540, x] == 1
        assert mask[0, 540, x + distance] == 0
    clicks = Clicks(((center, 540),), ((center + distance, 540),))
    mask = GrabCut().select(image, clicks).mask
    assert iou(mask, disc) >= 0.9, "the rest of the object stays"


def test_the_candidates_of_the_draft_model_differ_in_size_and_start_again_after_the_last(
    example,
) -> None:
    photo, click, selector = example("coffee"), Clicks(((300, 200),)), GrabCut()
    count = selector.select(photo, click).count
    selections = [selector.select(photo, click, number) for number in range(count + 1)]
    assert count > 1
    assert torch.equal(selections.pop().mask, selections[0].mask), "after the last the first"
    scores = [selection.score for selection in selections]
    assert scores == sorted(scores, reverse=True), "the likeliest first"
    areas = sorted(float(selection.mask.sum()) for selection in selections)
    assert all(large > 1.3 * small for small, large in itertools.pairwise(areas))


def test_a_click_on_a_speck_is_not_answered_with_the_speck() -> None:
    image, body = wavy_disc(400, 600)
    image[0, 195:198, 300:303] = 1
    assert iou(GrabCut().select(image, Clicks(((301, 196),))).mask, body) >= 0.95


def test_the_draft_model_finds_a_small_object_in_a_large_photo() -> None:
    noise = torch.randn(1, 1500, 2000, 3, generator=torch.Generator().manual_seed(3))
    ball = disc(1500, 2000, 900, 1400, 15)
    photo = torch.lerp(
        torch.tensor([0.3, 0.5, 0.3]), torch.tensor([0.9, 0.3, 0.1]), ball[..., None]
    )
    found = GrabCut().select((photo + 0.02 * noise).clamp(0, 1), Clicks(((1403, 897),)))
    assert iou(found.mask, ball) >= 0.8


def test_the_score_of_an_object_that_is_small_in_its_box_is_lower() -> None:
    image, _ = wavy_disc(400, 600)
    tight = GrabCut().select(image, Clicks(box=(150, 50, 450, 350)))
    image, body = wavy_disc(100, 150)
    wide = image[:, :1, :1].expand(1, 400, 600, 3).clone()
    wide[:, 150:250, 225:375] = image
    loose = GrabCut().select(wide, Clicks(box=(100, 20, 500, 380)))
    assert iou(loose.mask[:, 150:250, 225:375], body) >= 0.85
    assert loose.score < tight.score


def test_the_draft_model_finds_no_object_where_colors_only_fade() -> None:
    fading = torch.linspace(0, 1, 400)[None, None, :, None].expand(1, 300, 400, 3)
    with pytest.raises(ArtMancerError, match="finds no object there"):
        GrabCut().select(fading.contiguous(), Clicks(((200, 150),)))


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.3])
def test_the_draft_model_says_so_where_it_finds_only_the_clicked_dot(spread: float) -> None:
    noise = torch.randn(1, 300, 400, 3, generator=torch.Generator().manual_seed(3))
    with pytest.raises(ArtMancerError, match="finds no object there"):
        GrabCut().select((0.5 + spread * noise).clamp(0, 1), Clicks(((200, 150),)))


def test_an_object_thinner_than_a_pixel_is_no_empty_success() -> None:
    photo = torch.full((1, 900, 1200, 3), 0.5)
    photo[0, 449:452, 600] = photo[0, 450, 599:602] = 1
    with pytest.raises(ArtMancerError, match="finds no object there"):
        GrabCut().select(photo, Clicks(box=(590, 440, 611, 461)))


def test_the_draft_model_keeps_its_answers(example, monkeypatch: pytest.MonkeyPatch) -> None:
    photo, selector = example("coffee"), GrabCut()
    clicks, box = Clicks(((300, 200),)), Clicks(box=(60, 10, 500, 395))
    answers = [selector.select(photo, clicks), selector.select(photo, box)]
    monkeypatch.delattr(cv2, "grabCut")
    # Undo and redo compute nothing again, also for an equal photo that was loaded again.
    again = [selector.select(photo.clone(), asked) for asked in (clicks, box)]
    for answer, other in zip(answers, again, strict=True):
        assert torch.equal(answer.mask, other.mask)
        assert (answer.score, answer.count) == (other.score, other.count)
    assert torch.equal(selector.select(photo, clicks, answers[0].count).mask, answers[0].mask)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (100, 12000), (700, 40)])
def test_the_draft_model_accepts_images_of_any_shape(size: tuple[int, int]) -> None:
    photo = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(1))
    try:
        result = GrabCut().select(photo, Clicks(((size[1] // 2, size[0] // 2),)))
    except ArtMancerError as error:
        assert error.code == "object_not_found"
    else:
        assert result.mask.shape == (1, *size)


def test_the_draft_model_accepts_five_hundred_points(example) -> None:
    points = tuple((float(x), 250.0) for x in np.linspace(150, 400, 500))
    assert GrabCut().select(example("coffee"), Clicks(points)).mask.any()


def test_masks_are_refined_by_holes_specks_size_and_edge() -> None:
    mask = disc(100, 100, 50, 50, 20)
    mask[:, 5:8, 5:8] = 1
    mask[:, 48:52, 48:52] = 0
    assert mask_ops.fill_holes(mask)[0, 50, 50] == 1
    # The speck has nine pixels.
    assert mask_ops.drop_specks(mask, 10)[0, 6, 6] == 0
    assert mask_ops.drop_specks(mask, 9)[0, 6, 6] == 1
    largest = mask_ops.keep_largest(mask)
    assert largest[0, 6, 6] == 0
    assert largest[0, 40, 50] == 1
    smaller = mask_ops.grow(mask_ops.fill_holes(mask), -5)
    assert smaller[0, 50, 67] == 0
    assert smaller[0, 50, 63] == 1
    shaped = mask_ops.shape(mask, border=3, largest=True, holes=True, fading=8)
    assert shaped[0, 50, 72] == 1
    assert 0 < shaped[0, 50, 77] < 1
    assert shaped[0, 6, 6] == 0
    notched = disc(100, 100, 50, 50, 30)
    notched[:, 49:51, 70:] = 0
    assert mask_ops.smooth(notched, 6)[0, 50, 75] == 1


def test_the_masks_made_by_hand_have_the_size_of_their_photos() -> None:
    for path in HAND_MADE.glob("*.png"):
        photo = ROOT / "workflows" / "examples" / f"{Path(path).stem.split('_')[0]}.png"
        assert Image.open(path).size == Image.open(photo).size
