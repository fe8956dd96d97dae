"""LaMa: fills of every size, holes of every size, cancel, and files that are none."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny_lama
from torch import Tensor
from torch.nn import Module, functional

from artmancer import lama, texture
from artmancer.errors import ArtMancerError
from artmancer.offload import Offloader
from artmancer.progress import no_progress

pytestmark = pytest.mark.usefixtures("spandrel")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lama.save(tmp_path_factory.mktemp("lama") / "big-lama.pt")


@pytest.fixture(scope="module")
def model(weights: Path) -> Iterator[lama.Lama]:
    with tiny_lama.small():
        yield lama.load(weights, Offloader("cpu"))


def photo(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


def rectangle(size: tuple[int, int], top: int, left: int, bottom: int, right: int) -> Tensor:
    hole = torch.zeros(size, dtype=torch.bool)
    hole[top:bottom, left:right] = True
    return hole


class Recorder(Module):
    """A network that fills with a color and keeps what it received.

    Attributes
    ----------
    calls : image [1, 3, h, w] and mask [1, 1, h, w] of each call
    """

    def __init__(self, color: float = 0.25) -> None:
        super().__init__()
        self.color = color
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        self.calls.append((image, mask))
        return torch.where(mask > 0, torch.full_like(image, self.color), image)


SIZES = [(1, 2), (3, 5), (16, 16), (17, 31), (64, 64), (97, 101), (40, 300)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("limit", [lama.MAX_PIXELS, 600])
def test_pixels_outside_the_hole_are_the_images_bit_for_bit(
    model: lama.Lama, size: tuple[int, int], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lama, "MAX_PIXELS", limit)
    image = photo(*size)
    hole = torch.rand(size, generator=torch.Generator().manual_seed(1)) < 0.3
    hole[0, 0], hole[-1, -1] = True, False
    before = image.clone()
    filled = model.fill(image, hole, 0, no_progress)
    assert torch.equal(image, before)
    assert filled.shape == image.shape
    assert torch.equal(filled[~hole], image[~hole])
    assert not torch.equal(filled[hole], image[hole])
    assert filled.min() >= 0 and filled.max() <= 1


@pytest.mark.parametrize("size", [(48, 64), (33, 47)])
def test_the_fill_is_spandrels_own(model: lama.Lama, weights: Path, size: tuple[int, int]) -> None:
    from spandrel import ModelLoader

    with tiny_lama.small():
        descriptor = ModelLoader().load_from_file(weights).eval()
    image, hole = photo(*size), rectangle(size, 10, 12, 30, 30)
    with torch.no_grad():
        expected = descriptor(image.permute(2, 0, 1)[None], hole[None, None].float())
    filled = model.fill(image, hole, 0, no_progress)
    assert torch.allclose(filled, expected[0].permute(1, 2, 0), atol=1e-6)


def test_both_kinds_of_files_give_the_same_fill(model: lama.Lama, tmp_path: Path) -> None:
    with tiny_lama.small():
        path = tiny_lama.save_state_dict(tmp_path / "weights.pt")
        other = lama.load(path, Offloader("cpu"))
    image, hole = photo(40, 40), rectangle((40, 40), 10, 10, 20, 20)
    assert torch.equal(
        model.fill(image, hole, 0, no_progress), other.fill(image, hole, 0, no_progress)
    )


@pytest.mark.parametrize("place", [(0, 0), (29, 40), (59, 80), (0, 80)])
def test_a_hole_of_one_pixel_is_filled(model: lama.Lama, place: tuple[int, int]) -> None:
    image, hole = photo(60, 81), torch.zeros(60, 81, dtype=torch.bool)
    hole[place] = True
    filled = model.fill(image, hole, 0, no_progress)
    assert (filled != image).any(-1).nonzero().tolist() == [list(place)]


def test_the_content_of_the_hole_has_no_effect(
    model: lama.Lama, monkeypatch: pytest.MonkeyPatch
) -> None:
    hole = rectangle((70, 90), 20, 20, 50, 60)
    image, other = photo(70, 90), photo(70, 90)
    other[hole] = 0.0
    for limit in (lama.MAX_PIXELS, 1000):
        monkeypatch.setattr(lama, "MAX_PIXELS", limit)
        fills = [model.fill(pixels, hole, 3, no_progress) for pixels in (image, other)]
        assert torch.equal(*fills)


def test_each_island_is_filled_with_its_surroundings_and_near_islands_together() -> None:
    network = Recorder()
    image = photo(400, 1600)
    hole = rectangle((400, 1600), 100, 100, 110, 120)
    hole |= rectangle((400, 1600), 100, 150, 110, 160)
    hole |= rectangle((400, 1600), 0, 1000, 40, 1200)
    filled = lama.Lama(network, Offloader("cpu")).fill(image, hole, 0, no_progress)
    assert (filled[hole] == 0.25).all()
    sizes = sorted(tuple(mask.shape[2:]) for _, mask in network.calls)
    # Margins of 64 pixels, and of half of 200; sides are rounded up to multiples of 8.
    assert sizes == [(10 + 128 + 6, 400), (144, 192)] or sizes == [(144, 192), (144, 400)]
    assert sum(int(mask.sum()) for _, mask in network.calls) >= int(hole.sum())


def test_a_speckled_hole_makes_few_boxes_that_do_not_overlap() -> None:
    generator = torch.Generator().manual_seed(0)
    hole = torch.rand(700, 900, generator=generator) < 0.001
    covered = torch.zeros(700, 900)
    boxes = list(lama._boxes(hole))
    for rows, columns in boxes:
        covered[rows, columns] += 1
    assert len(boxes) < 30
    assert covered.max() == 1
    assert covered[hole].min() == 1


@pytest.mark.parametrize(("size", "factor"), [((300, 200), 1), ((301, 200), 2), ((700, 500), 3)])
def test_a_box_above_the_limit_is_filled_at_the_smallest_whole_factor(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], factor: int
) -> None:
    monkeypatch.setattr(lama, "MAX_PIXELS", 60_000)
    network = Recorder()
    image, hole = photo(*size), rectangle(size, 64, 64, size[0] - 64, size[1] - 64)
    lama.Lama(network, Offloader("cpu")).fill(image, hole, 0, no_progress)
    ((pixels, _),) = network.calls
    expected = [math.ceil(math.ceil(side / factor) / 8) * 8 for side in size]
    assert list(pixels.shape[2:]) == expected
    # The oracle for a known pixel is the mean of its block.
    mean = image[:factor, :factor].mean((0, 1))
    assert torch.allclose(pixels[0, :, 0, 0], mean, atol=1e-6)


def energy(image: Tensor) -> float:
    """Return the mean square of the differences between neighbors: the strength of a texture."""
    return float((image[1:] - image[:-1]).square().mean())


def test_a_fill_at_a_lower_scale_has_the_texture_of_its_surroundings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lama, "MAX_PIXELS", 10_000)
    grain = 0.2 * (photo(240, 240) - 0.5)
    hole = rectangle((240, 240), 80, 80, 160, 160)
    network = lama.Lama(Recorder(0.5), Offloader("cpu"))
    filled = network.fill(0.5 + grain, hole, 0, no_progress)
    # White noise differs from its neighbor by twice its variance: 2 * 0.2^2 / 12.
    assert energy(filled[82:158, 82:158]) == pytest.approx(2 * 0.2**2 / 12, rel=0.25)
    # A smooth image stays smooth.
    smooth = network.fill(torch.full((240, 240, 3), 0.5), hole, 0, no_progress)
    assert energy(smooth) < 1e-10


def test_the_texture_comes_from_places_that_look_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lama, "MAX_PIXELS", 12_000)
    # Dark grain on the left, a bright plain on the right; the fill continues both.
    image = torch.full((240, 240, 3), 0.8)
    image[:, :120] = 0.2 + 0.2 * (photo(240, 120) - 0.5)

    class Halves(Module):
        def forward(self, image: Tensor, mask: Tensor) -> Tensor:
            fill = torch.full_like(image, 0.8)
            fill[..., : image.shape[3] // 2] = 0.2
            return torch.where(mask > 0, fill, image)

    hole = rectangle((240, 240), 80, 60, 160, 180)
    filled = lama.Lama(Halves(), Offloader("cpu")).fill(image, hole, 0, no_progress)
    grain, plain = filled[84:156, 64:108], filled[84:156, 132:176]
    assert energy(grain) > 0.5 * 2 * 0.2**2 / 12
    assert energy(plain) < 0.05 * energy(grain)


def test_textures_are_copied_in_whole_blocks_of_the_image() -> None:
    # Each block's details are those of one block around the hole, exactly.
    image, factor = photo(60, 60), 3
    hole = rectangle((20, 20), 8, 8, 13, 13)
    blocks = functional.avg_pool2d(image.permute(2, 0, 1)[None], factor)[0].permute(1, 2, 0)
    fill = torch.where(hole.unsqueeze(-1), torch.tensor(0.5), blocks)
    # Values stay inside 0..1, so that nothing is clipped.
    image, fill = 0.4 + 0.2 * image, 0.4 + 0.2 * fill
    result = texture.restore(fill, hole, image, factor, 0, lambda *_: None)
    base = texture.enlarge(fill, factor)
    details = texture._blocks(result - base, factor)[hole].flatten(1)
    known = texture._blocks(image - base, factor)[~hole].flatten(1)
    differences = (details[:, None] - known).abs().amax(-1)
    assert differences.amin(1).max() < 1e-6
    assert details.abs().max() > 0.01


def test_the_same_seed_gives_the_same_fill(
    model: lama.Lama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lama, "MAX_PIXELS", 1000)
    image, hole = photo(90, 90), rectangle((90, 90), 30, 30, 60, 60)
    fills = [model.fill(image, hole, seed, no_progress) for seed in (5, 5, 6)]
    assert torch.equal(fills[0], fills[1])
    assert not torch.equal(fills[0], fills[2])


@pytest.mark.parametrize("limit", [lama.MAX_PIXELS, 1000])
def test_cancel_at_any_call_leaves_nothing_behind(
    model: lama.Lama, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lama, "MAX_PIXELS", limit)
    image, hole = photo(80, 80), rectangle((80, 80), 30, 30, 50, 50)
    expected = model.fill(image, hole, 0, no_progress)
    calls = []

    def count(done: int, total: int, stage: str, latents: Tensor | None = None) -> None:
        assert 0 <= done < total
        calls.append(stage)

    model.fill(image, hole, 0, count)
    stages = set(calls)
    assert "filling with LaMa" in stages
    assert ("copying textures" in stages) == (limit == 1000)
    for stop in (0, 1, len(calls) // 2, len(calls) - 1):
        left = [stop]

        def cancel(*_: object, left: list[int] = left) -> None:
            if left[0] == 0:
                # As ComfyUI's own exception, which no `except Exception` may swallow.
                raise KeyboardInterrupt
            left[0] -= 1

        with pytest.raises(KeyboardInterrupt):
            model.fill(image, hole, 0, cancel)
        hooks = [module for module in model.network.modules() if module._forward_pre_hooks]
        assert not hooks
        assert torch.equal(model.fill(image, hole, 0, no_progress), expected)


def test_a_network_that_returns_nan_is_refused() -> None:
    network = lama.Lama(Recorder(np.nan), Offloader("cpu"))
    with pytest.raises(ArtMancerError, match="NaN") as caught:
        network.fill(photo(20, 20), rectangle((20, 20), 5, 5, 9, 9), 0, no_progress)
    assert caught.value.code == "generation_failed"


def test_too_little_memory_is_said_in_a_sentence() -> None:
    class Full(Module):
        def forward(self, image: Tensor, mask: Tensor) -> Tensor:
            raise torch.OutOfMemoryError

    with pytest.raises(ArtMancerError, match="too little memory for LaMa at 24x24") as caught:
        lama.Lama(Full(), Offloader("cpu")).fill(
            photo(20, 20), rectangle((20, 20), 5, 5, 9, 9), 0, no_progress
        )
    assert caught.value.code == "out_of_memory"


def test_the_network_and_its_inputs_are_on_the_offloaders_device() -> None:
    # torch's device "meta" stands for a GPU: it refuses to mix with the CPU, and has no values.
    loaded = []

    class Loader(Offloader):
        def load(self, model: Module, activations: int, progress: object) -> None:
            loaded.append(activations)
            model.to("meta")

    class Probe(Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, image: Tensor, mask: Tensor) -> Tensor:
            assert (image * self.scale * mask).device.type == "meta"
            return torch.full(image.shape, 0.5)

    filled = lama.Lama(Probe(), Loader("meta")).fill(
        photo(64, 64), rectangle((64, 64), 20, 20, 30, 30), 0, no_progress
    )
    assert filled.device.type == "cpu" and (filled[20:30, 20:30] == 0.5).all()
    assert loaded == [64 * 64 * lama.ACTIVATION_BYTES]


def test_the_network_runs_on_cuda() -> None:
    # Fake tensors check devices, types and shapes as on a GPU, on a machine without one.
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), torch.device("cuda"), tiny_lama.small():
        from spandrel.architectures.LaMa import LaMa

        network = LaMa(in_nc=4, out_nc=3).eval()
        filled = network(torch.rand(1, 3, 512, 768), torch.ones(1, 1, 512, 768))
    assert filled.shape == (1, 3, 512, 768)
    assert filled.device.type == "cuda" and filled.dtype == torch.float32


def refusal(path: Path) -> str:
    with tiny_lama.small(), pytest.raises(ArtMancerError) as caught:
        lama.load(path)
    message = str(caught.value)
    assert caught.value.code in ("generation_failed", "checkpoint_missing")
    assert "models fetch big-lama" in message and path.name in message
    assert "\n" not in message
    return message


def test_a_file_that_is_no_lama_is_refused_with_the_reason(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "big-lama.pt"
    assert "There is no big-lama.pt" in refusal(path)
    path.write_bytes(b"<html>404</html>")
    assert "not a zip archive" in refusal(path)
    path.write_bytes(weights.read_bytes()[:-5000])
    assert "incomplete" in refusal(path)
    torch.save({"model.0.weight": torch.ones(3, 3)}, path)
    assert "tensors are of another model" in refusal(path)
    tensors = torch.load(tiny_lama.save_state_dict(tmp_path / "all.pt"), weights_only=True)
    tensors.popitem()
    torch.save(tensors, path)
    assert "tensors are of another model" in refusal(path)


def test_a_lama_of_other_channels_is_refused(tmp_path: Path) -> None:
    from spandrel.architectures.LaMa import LaMa

    with tiny_lama.small():
        torch.save(LaMa(in_nc=4, out_nc=1).state_dict(), tmp_path / "mask.pt")
    assert "LaMa with 3 channels" in refusal(tmp_path / "mask.pt")


def test_a_file_with_code_is_refused_and_its_code_does_not_run(tmp_path: Path) -> None:
    import os

    class Command:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model.model.1.bn_l.running_mean": Command()}, tmp_path / "bomb.pt")
    assert "mkdir" in refusal(tmp_path / "bomb.pt")
    assert not (tmp_path / "ran").exists()


def test_without_spandrel_the_message_says_what_to_install(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ArtMancerError, match=r"pip install spandrel"):
        lama.load(weights)
