import math

import cv2
import pytest
import torch
from support.images import disc, iou, smooth_picture
from torch import Tensor

from artmancer import fill as filling
from artmancer import mask_ops, region
from artmancer.color import to_linear
from artmancer.conditions import prepare, with_extra
from artmancer.draft import DraftEditor, balance
from artmancer.drift import drift
from artmancer.edit import edit
from artmancer.editor import EditRequest
from artmancer.errors import ArtMancerError
from artmancer.options import Sampling
from artmancer.progress import Progress
from artmancer.report import Report
from artmancer.variants import VARIANTS

needs_patchmatch = pytest.mark.skipif(
    filling.method() != "patchmatch", reason="pypatchmatch has no wheel for this Python"
)


class StandIn:
    """An editor that does to the crop what a test wants."""

    name = "stand-in"
    adapters = ()
    notes = ()

    def __init__(self, change, variant: str = "removal") -> None:
        self.change, self.variant = change, variant

    def edit(self, request: EditRequest, progress: Progress) -> Tensor:
        return self.change(request.conditions.crop.image)


def stripes(height: int, width: int) -> Tensor:
    rows = (torch.arange(height) // 6 % 2).float().view(1, -1, 1, 1)
    return (0.3 + 0.4 * rows).expand(1, height, width, 3).contiguous()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_leaves_every_bit_outside_the_mask(example, variant: str) -> None:
    photo, mask = example("coffee"), example("coffee_mask")
    conditions = prepare(
        photo, mask, reference=example("astronaut"), reference_mask=example("astronaut_patch_mask")
    )
    result = edit(DraftEditor(variant), conditions)
    outside = mask_ops.feather(mask, 16) == 0
    assert torch.equal(result.image[outside], photo[outside])
    assert not torch.equal(result.image[mask == 1], photo[mask == 1])
    assert result.report.editor == f"draft/{variant}"
    assert result.report.outside_psnr == math.inf


def test_more_pictures_come_after_the_recipes_in_their_shape(example) -> None:
    conditions = prepare(example("coffee"), example("coffee_mask"))
    height, width = conditions.crop.region.size
    wide = torch.full((1, height, 2 * width, 3), 0.25)
    more = with_extra(with_extra(conditions, wide), example("coffee"))
    assert list(more.images) == ["mask", "background", "object", "extra 1", "extra 2"]
    assert list(conditions.images) == ["mask", "background", "object"]
    first = more.images["extra 1"]
    assert first.shape == conditions.crop.image.shape
    assert torch.allclose(
        first[:, height // 4 + 2 : -height // 4 - 2], torch.tensor(0.25), atol=1e-5
    )
    assert torch.equal(first[:, : height // 4 - 2], torch.ones(1, height // 4 - 2, width, 3))
    fitting = with_extra(conditions, conditions.crop.image).images["extra 1"]
    assert torch.allclose(fitting, conditions.crop.image, atol=1e-5)
    result = edit(DraftEditor("white_balance"), more)
    assert result.report.conditions == tuple(more.images)
    assert torch.equal(result.image, edit(DraftEditor("white_balance"), conditions).image)


def test_an_extra_picture_is_one_or_as_many_as_there_are_photos(example) -> None:
    photos = torch.cat([example("coffee"), 1 - example("coffee")])
    conditions = prepare(photos, example("coffee_mask"))
    assert len(with_extra(conditions, example("astronaut")).images["extra 1"]) == 2
    both = with_extra(conditions, photos).images["extra 1"]
    assert torch.allclose(both[1, 100:120], 1 - both[0, 100:120], atol=0.1)
    for wrong, said in (
        (photos.repeat(2, 1, 1, 1), "batch of 4; expected 1, or 2"),
        (photos[..., :1], r"The extra image has shape \[2, 400, 600, 1\]"),
        (photos * torch.nan, "NaN"),
    ):
        with pytest.raises(ArtMancerError, match=said) as caught:
            with_extra(conditions, wrong)
        assert caught.value.code == "invalid_request"


def test_black_is_right_where_all_around_is_black() -> None:
    photo, mask = torch.zeros(1, 200, 240, 3), disc(200, 240, 100, 120, 20)
    photo[mask > 0] = 1
    grown = prepare(photo, mask, grow=4)
    assert not edit(DraftEditor("removal"), grown).image.any()


@pytest.mark.skipif(filling.method() != "patchmatch", reason="OpenCV smears")
def test_removal_continues_the_pattern_around_the_hole() -> None:
    photo, mask = stripes(200, 240), disc(200, 240, 100, 120, 35)
    spoiled = torch.where(mask.unsqueeze(-1) > 0, torch.tensor([1.0, 0.0, 0.0]), photo)
    result = edit(DraftEditor("removal"), prepare(spoiled, mask)).image
    assert (result - photo).abs().mean() < 0.02
    assert (result - photo)[mask > 0].abs().median() < 0.05


def test_removal_does_not_fetch_a_face_for_the_wall(example) -> None:
    photo, mask = example("astronaut"), example("astronaut_shuttle_mask")
    mask[:, 60:220, 345:375] = 1
    filled = filling.fill(photo, mask, 0, lambda *_: None)[mask == 1]
    assert ((filled[:, 0] - filled[:, 2]) > 0.25).float().mean() < 0.005, (
        "neither skin nor orange cloth"
    )


@pytest.mark.parametrize("side", [1, 2, 3])
def test_objects_a_pixel_or_two_thin_are_inserted(side: int) -> None:
    photo, mask = torch.rand(1, 200, 300, 3), torch.zeros(1, 200, 300)
    mask[:, 100 : 100 + side, 100:160] = 1
    result = edit(
        DraftEditor("insertion"),
        prepare(photo, mask, reference=torch.ones(1, 4, 240, 3)),
        match=False,
    ).image
    assert not torch.equal(result, photo)


def test_an_object_at_the_pictures_edge_is_whole() -> None:
    photo, mask = torch.full((1, 100, 100, 3), 0.5), torch.zeros(1, 100, 100)
    mask[:, 25:75, :50] = 1
    red = torch.tensor([1.0, 0.0, 0.0]).expand(1, 50, 50, 3)
    result = edit(DraftEditor("insertion"), prepare(photo, mask, reference=red), match=False).image
    found = region.bounds((result[0, ..., 0] - result[0, ..., 1] > 0.5).float())
    assert found.left <= 4 and found.right >= 46 and found.top <= 29 and found.bottom >= 71


def test_an_edit_that_is_not_finite_is_refused(example) -> None:
    spoil = StandIn(lambda crop: crop.clone().index_fill(1, torch.tensor([0]), torch.nan))
    with pytest.raises(ArtMancerError, match="stand-in returned NaN"):
        edit(spoil, prepare(example("coffee"), example("coffee_mask")))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"fill": torch.zeros(1, 10, 10, 3), "recipe": "background_mask_fill"}, "fill has shape"),
        ({"fill": torch.zeros(2, 400, 600, 3), "recipe": "background_mask_fill"}, "fill has shape"),
        ({"reference": torch.full((1, 8, 8, 3), torch.nan)}, "reference holds NaN"),
        (
            {"fill": torch.full((1, 400, 600, 3), torch.nan), "recipe": "background_mask_fill"},
            "fill holds NaN",
        ),
        ({"recipe": "soup"}, "recipe is 'soup'"),
        ({"resolution": "640"}, "resolution is '640'"),
    ],
)
def test_what_cannot_be_prepared_is_refused(example, given: dict, said: str) -> None:
    with pytest.raises(ArtMancerError, match=said):
        prepare(example("coffee"), example("coffee_mask"), **given)


@needs_patchmatch
def test_the_same_seed_gives_the_same_edit_and_a_batch_counts_up(example) -> None:
    photo, mask = example("astronaut"), example("astronaut_shuttle_mask")
    once = edit(DraftEditor("removal"), prepare(photo, mask), seed=5).image
    again = edit(DraftEditor("removal"), prepare(photo, mask), seed=5).image
    batch = edit(DraftEditor("removal"), prepare(photo.repeat(2, 1, 1, 1), mask), seed=4).image
    assert torch.equal(once, again)
    assert torch.equal(batch[1:], once) and not torch.equal(batch[:1], once)


def test_without_patchmatch_opencv_fills_the_hole(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(filling, "method", lambda: "telea")
    photo, mask = smooth_picture(120, 120, 100, 0), disc(120, 120, 60, 60, 12)
    spoiled = torch.where(mask.unsqueeze(-1) > 0, torch.zeros(3), photo)
    result = edit(DraftEditor("removal"), prepare(spoiled, mask)).image
    assert (result - photo)[mask > 0].abs().mean() < 0.05
    assert "smears" in caplog.text


def test_insertion_puts_the_reference_into_the_masks_box_in_its_own_colours(example) -> None:
    photo, mask = example("coffee"), example("coffee_mask")
    conditions = prepare(
        photo, mask, reference=example("astronaut"), reference_mask=example("astronaut_patch_mask")
    )
    result = edit(DraftEditor("insertion"), conditions).image
    red, green, blue = result[0, 300:340, 500:540].mean((0, 1))
    assert blue > red > green, "the patch is violet, the table under it is brown"


def test_words_alone_cannot_be_drawn_without_weights(example) -> None:
    with pytest.raises(ArtMancerError, match="cannot draw from words") as caught:
        edit(
            DraftEditor("insertion"),
            prepare(example("coffee"), example("coffee_mask")),
            prompt="a spoon",
        )
    assert caught.value.code == "reference_missing"


def test_a_whole_frame_cannot_be_removed(example) -> None:
    photo = example("chelsea")
    with pytest.raises(ArtMancerError, match="nothing to fill from"):
        edit(DraftEditor("removal"), prepare(photo, torch.ones(photo.shape[:3])))
    with pytest.raises(ArtMancerError) as caught:
        edit(DraftEditor("removal"), prepare(photo))
    assert caught.value.code == "mask_missing"


def test_thin_parts_of_an_object_stay_opaque() -> None:
    photo, mask = torch.full((1, 200, 200, 3), 0.9), torch.zeros(1, 200, 200)
    mask[:, 40:160, 40:160] = 1
    lamp = torch.zeros(1, 120, 120)
    lamp[:, :40] = lamp[:, :, 57:63] = 1  # a shade on a stem six pixels wide
    conditions = prepare(photo, mask, reference=torch.zeros(1, 120, 120, 3), reference_mask=lamp)
    result = edit(DraftEditor("insertion"), conditions, match=False).image
    assert result[0, 100:150, 99:101].max() < 0.15
    assert result[0, 100:150, 60:80].min() > 0.85


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ArtMancerError, match="None; expected one of insertion"):
        DraftEditor(None)


def test_white_balance_removes_a_cast_and_keeps_texture() -> None:
    random = torch.Generator().manual_seed(0)
    gray = torch.rand(1, 300, 2000, 1, generator=random).mul(0.5).add(0.2).expand(-1, -1, -1, 3)
    cast = (gray * torch.tensor([1.1, 1.0, 0.8])).clamp(0, 1)
    result = edit(DraftEditor("white_balance"), prepare(cast))
    assert result.report.crop_size[1] < 2000, "edited smaller than the picture"
    assert (result.image.amax(-1) - result.image.amin(-1)).mean() < 0.02
    detail = [picture[0, :, 1:, 1] - picture[0, :, :-1, 1] for picture in (cast, result.image)]
    assert torch.corrcoef(torch.stack([one.flatten() for one in detail]))[0, 1] > 0.999


def test_white_balance_strength_is_a_share(example) -> None:
    photo = example("chelsea")
    mask = torch.ones(photo.shape[:3])
    assert (balance(photo, mask, 0.0) - photo).abs().max() < 1e-4
    half, full = (balance(photo, mask, strength) - photo for strength in (0.5, 1.0))
    assert 0.3 < half.abs().mean() / full.abs().mean() < 0.7


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (33, 2)])
def test_the_smallest_pictures_are_edited_or_refused_with_a_reason(size: tuple[int, int]) -> None:
    photo = torch.rand(1, *size, 3)
    mask = torch.zeros(1, *size)
    mask[:, 0, 0] = 1
    edit(DraftEditor("white_balance"), prepare(photo))
    edit(DraftEditor("insertion"), prepare(photo, mask, reference=torch.rand(1, 9, 9, 3)))
    try:
        edit(DraftEditor("removal"), prepare(photo, mask))
    except ArtMancerError as error:
        assert "nothing to fill from" in str(error)


def test_progress_is_told_and_can_cancel(example) -> None:
    told: list[tuple[int, int, str]] = []
    conditions = prepare(example("astronaut"), example("astronaut_shuttle_mask"))
    edit(DraftEditor("removal"), conditions, progress=lambda *step: told.append(step))
    assert (0, 1, "filling") in told and told[-1] == (1, 1, "stitching")

    def cancel(done: int, total: int, stage: str) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        edit(DraftEditor("removal"), conditions, progress=cancel)
    edit(DraftEditor("removal"), conditions)


def test_colours_are_matched_at_the_rim_unless_told_not_to(example) -> None:
    photo, mask = example("coffee"), example("coffee_mask")
    darker = StandIn(lambda crop: crop * 0.8)
    matched, raw = (
        edit(darker, prepare(photo, mask), match=match).image for match in (True, False)
    )
    inside = mask == 1
    assert (matched - photo)[inside].abs().mean() < 0.02 < (raw - photo)[inside].abs().mean()


def test_the_report_measures_what_the_editor_did_outside(example) -> None:
    photo, mask = example("coffee"), example("coffee_mask")
    noisy = edit(StandIn(lambda crop: (crop + 0.01).clamp(0, 1)), prepare(photo, mask)).report
    assert noisy.outside_psnr_raw == pytest.approx(40, abs=0.5) and noisy.outside_psnr == math.inf
    assert noisy.drift_px == pytest.approx(0, abs=0.05)
    moved = edit(StandIn(lambda crop: crop.roll(3, 2)), prepare(photo, mask, context=3)).report
    assert moved.drift_px == pytest.approx(3, abs=0.3) and moved.realigned and not noisy.realigned
    assert set(noisy.seconds) == {"crop", "split", "edit", "stitch"} and noisy.peak_memory > 2**20


@pytest.mark.parametrize("shift", [(0.5, 0.0), (1.5, -2.25), (0.0, 4.0)])
def test_drift_is_found_to_sub_pixel(example, shift: tuple[float, float]) -> None:
    photo = example("astronaut")
    matrix = torch.tensor([[1, 0, shift[0]], [0, 1, shift[1]]]).numpy()
    moved = cv2.warpAffine(
        photo[0].numpy(), matrix, (512, 512), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    outside = disc(512, 512, 250, 250, 90) == 0
    found = drift(torch.from_numpy(moved).unsqueeze(0), photo, outside)
    assert found[0] == pytest.approx(shift[::-1], abs=0.05)


def test_an_edit_that_moved_is_moved_back_before_it_is_stitched(example) -> None:
    photo, mask = example("astronaut"), disc(512, 512, 250, 250, 60)
    conditions = prepare(photo, mask, context=3)
    inside = mask == 1

    def moves(crop: torch.Tensor) -> torch.Tensor:
        matrix = torch.tensor([[1, 0, 1.5], [0, 1, -0.75]]).numpy()
        size = crop.shape[2], crop.shape[1]
        return torch.from_numpy(
            cv2.warpAffine(
                crop[0].numpy(),
                matrix,
                size,
                flags=cv2.INTER_CUBIC,
                borderMode=cv2.BORDER_REPLICATE,
            )
        )[None].clamp(0, 1)

    result = edit(StandIn(moves), conditions, match=False)
    assert result.report.realigned and result.report.drift_px == pytest.approx(
        math.hypot(1.5, 0.75), abs=0.05
    )
    left = (result.image - photo)[inside].abs().mean()
    before = (
        (moves(conditions.crop.image) - conditions.crop.image)[conditions.crop.mask == 1]
        .abs()
        .mean()
    )
    assert left < before / 5


@pytest.mark.parametrize("resolution", ["native", "512"])
def test_a_shadow_beside_the_mask_is_found_and_stitched_if_asked(example, resolution: str) -> None:
    photo, mask = example("coffee"), disc(400, 600, 200, 300, 40)
    shade = disc(400, 600, 215, 350, 28) * (1 - mask)
    conditions = prepare(photo, mask, context=3, feather=4, resolution=resolution)
    darker = region.crop_like(photo * (1 - 0.4 * shade.unsqueeze(-1)), conditions.crop.region)
    editor = StandIn(lambda crop: darker)
    cut, whole = (edit(editor, conditions, widen=widen) for widen in (False, True))
    found, truth = cut.spill > 0.5, (shade > 0) & (mask_ops.feather(mask, 4) == 0)
    assert float((found & truth).sum() / (found | truth).sum()) > 0.8
    assert cut.report.spill > 0.01 and not cut.report.widened and whole.report.widened
    assert torch.equal(cut.image[truth], photo[truth])
    assert (whole.image - photo)[found & truth].mean() < -0.05
    far = mask_ops.feather(((shade + mask) > 0).float(), 14) == 0
    assert torch.equal(whole.image[far], photo[far])


@pytest.mark.parametrize("feather", [0, 16, 32])
def test_no_stripe_of_a_shadow_is_left_between_mask_and_spill(feather: int) -> None:
    ground, mask = torch.full((1, 300, 400, 3), 0.8), disc(300, 400, 150, 150, 40)
    shade = disc(300, 400, 150, 220, 50)
    photo = ground * (1 - 0.35 * shade.unsqueeze(-1))  # the removal takes the shadow along
    conditions = prepare(photo, mask, context=4, feather=feather)
    clean = region.crop_like(ground, conditions.crop.region)
    result = edit(StandIn(lambda crop: clean), conditions, match=False, widen=True)
    left = (result.image - ground).abs().amax(-1)[0]
    assert left[150, 192:255].max() < 0.02


@pytest.mark.parametrize(("y", "x"), [(150, 110), (150, 290), (60, 200), (240, 200)])
def test_what_spills_to_the_crops_edge_is_stitched_as_far_as_the_crop_goes(y: int, x: int) -> None:
    ground, mask = torch.full((1, 300, 400, 3), 0.8), disc(300, 400, 150, 200, 40)
    conditions = prepare(ground, mask)
    dark = region.crop_like(
        ground * (1 - 0.3 * disc(300, 400, y, x, 60)[..., None]), conditions.crop.region
    )
    result = edit(StandIn(lambda crop: dark), conditions, match=False, widen=True)
    assert result.report.spill > 0 and (result.image - ground).min() < -0.1
    top, left = conditions.crop.region.corners[0]
    box = region.Window(top, left, top, left).clip(region.Window(0, 0, 300, 400))
    assert torch.equal(result.image[:, : box.top], ground[:, : box.top])


def test_what_changes_past_the_pictures_end_is_no_spill() -> None:
    photo, mask = torch.full((1, 100, 400, 3), 0.8), disc(100, 400, 50, 200, 30)
    conditions = prepare(photo, mask, context=3)
    top = -conditions.crop.region.corners[0][0]
    assert top > 0

    def paints_the_padding(crop: Tensor) -> Tensor:
        edited = crop.clone()
        edited[:, :top] = 0.2
        return edited

    result = edit(StandIn(paints_the_padding), conditions, match=False, widen=True)
    assert result.report.spill == 0 and torch.equal(result.image, photo)


def test_a_shadow_is_found_where_the_colours_were_fitted_at_the_rim_too(example) -> None:
    photo, mask = example("coffee"), disc(400, 600, 340, 480, 40)
    shade = disc(400, 600, 352, 524, 32) * (1 - mask)
    conditions = prepare(photo, mask, context=3, feather=4)
    ball = torch.lerp(photo, torch.tensor([0.2, 0.35, 0.6]).expand_as(photo), mask[..., None])
    drawn = region.crop_like(ball * (1 - 0.5 * shade[..., None]), conditions.crop.region)
    result = edit(StandIn(lambda crop: drawn, "insertion"), conditions)
    assert iou(result.spill.round(), (shade > 0) * (mask_ops.feather(mask, 4) == 0).float()) > 0.7


def test_a_change_of_colour_alone_spills_too() -> None:
    photo, mask = torch.full((1, 300, 400, 3), 0.5), disc(300, 400, 150, 200, 40)
    conditions = prepare(photo, mask, context=3)
    tint = torch.tensor([0.1, 0.0, -0.1]) * disc(300, 400, 150, 250, 40)[..., None]
    tinted = region.crop_like(photo + tint, conditions.crop.region)
    result = edit(StandIn(lambda crop: tinted), conditions, match=False)
    assert result.report.spill > 0.01


def test_a_white_balance_that_is_held_outside_the_mask_is_made_inside(example) -> None:
    photo, mask = example("coffee"), disc(400, 600, 200, 300, 40)
    conditions = prepare(photo, mask, context=3)
    gains = torch.tensor([0.8, 1.0, 1.2])
    feathered = conditions.crop.feathered.unsqueeze(-1) > 0

    def balances(crop: Tensor) -> Tensor:
        return torch.where(feathered, (crop * gains).clamp(0, 1), crop)

    result = edit(StandIn(balances, "white_balance"), conditions)
    wanted = (photo * gains).clamp(0, 1)
    left = (result.image - wanted)[mask == 1].abs().mean()
    assert left < 0.1 * (photo - wanted)[mask == 1].abs().mean()


def test_each_picture_of_a_batch_is_moved_back_by_itself(example) -> None:
    photo, mask = example("astronaut"), disc(512, 512, 250, 250, 60)
    flat = torch.full_like(photo, 0.5)

    def moves(crop: Tensor) -> Tensor:
        return torch.cat([crop[:1].roll(2, 2), crop[1:]])

    alone = edit(StandIn(moves), prepare(photo, mask, context=3), match=False)
    for second in (flat, photo):
        both = prepare(torch.cat([photo, second]), mask, context=3)
        result = edit(StandIn(moves), both, match=False)
        assert result.report.realigned and result.report.drift_px == alone.report.drift_px
        assert torch.equal(result.image[:1], alone.image)
        assert torch.equal(result.image[1:], second)


def test_what_a_vae_does_to_every_pixel_is_no_change(example) -> None:
    photo, mask = example("coffee"), disc(400, 600, 200, 300, 40)
    noise = 0.03 * torch.randn(1, 400, 600, 3, generator=torch.Generator().manual_seed(0))
    conditions = prepare(photo, mask, context=3)
    noisy = region.crop_like((photo + noise).clamp(0, 1), conditions.crop.region)
    result = edit(StandIn(lambda crop: noisy), conditions)
    assert result.report.spill == 0 and not result.spill.any()


def test_noise_has_no_drift_to_tell() -> None:
    walls = [
        0.5 + 0.005 * torch.randn(1, 256, 256, 3, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 2)
    ]
    assert drift(walls[0], walls[1], torch.ones(1, 256, 256, dtype=torch.bool)) == [None]


def test_prompt_seed_and_sampling_reach_the_editor(example) -> None:
    asked = []

    class Listener(StandIn):
        def edit(self, request: EditRequest, progress: Progress) -> Tensor:
            asked.append((request.prompt, request.seed, request.sampling))
            return request.conditions.crop.image

    conditions = prepare(example("coffee"), example("coffee_mask"))
    edit(Listener(None), conditions, prompt="p", seed=3, sampling=Sampling(steps=7, cfg=2.5))
    assert asked == [("p", 3, Sampling(steps=7, cfg=2.5))]


def test_grow_and_fill_and_context_change_what_the_editor_sees(example) -> None:
    photo, mask = example("coffee"), example("coffee_mask")
    plain = prepare(photo, mask)
    assert prepare(photo, mask, grow=20).crop.mask.sum() > plain.crop.mask.sum()
    assert prepare(photo, mask, context=3).crop.region.size > plain.crop.region.size
    given = torch.rand_like(photo)
    shown = prepare(photo, mask, fill=given, recipe="background_mask_fill")
    assert torch.equal(shown.images["fill"], region.crop_like(given, shown.crop.region))


def test_white_balance_judges_what_the_mask_covers(example) -> None:
    photo = torch.full((1, 64, 128, 3), 0.5)
    photo[:, :, :64] *= torch.tensor([1.2, 1.0, 0.8])
    photo[:, :, 64:] *= torch.tensor([0.8, 1.0, 1.2])
    mask = torch.zeros(1, 64, 128)
    mask[:, :, :64] = 1
    balanced = balance(photo, mask, 1.0)[:, :, :64]
    assert (balanced.amax(-1) - balanced.amin(-1)).max() < 0.01
    linear = to_linear(photo[:, :, :64]).mean((0, 1, 2)), to_linear(balanced).mean((0, 1, 2))
    weights = torch.tensor([0.2126, 0.7152, 0.0722])
    assert float(weights @ linear[0]) == pytest.approx(float(weights @ linear[1]), rel=0.02), (
        "its luminance stays"
    )


def test_a_red_wall_stays_red() -> None:
    wall = torch.tensor([0.8, 0.1, 0.1]).expand(1, 64, 64, 3)
    balanced = balance(wall, torch.ones(1, 64, 64), 1.0)[0, 0, 0]
    assert balanced[0] > 2 * balanced[1]


def test_where_hardly_anything_is_outside_there_is_no_drift_to_tell(example) -> None:
    photo = example("chelsea")
    assert drift(photo, photo, torch.zeros(photo.shape[:3], dtype=torch.bool)) == [None]


def test_the_report_is_json_without_infinities() -> None:
    report = Report(
        "e",
        "removal",
        (),
        "r",
        ("a",),
        1,
        (2, 3),
        (0, 0, 2, 3),
        {"edit": 1.0},
        5,
        math.inf,
        math.inf,
        None,
        False,
        0.0,
        False,
    )
    assert report.as_dict()["outside_psnr"] == "infinite"
    assert report.as_dict()["drift_px"] is None
