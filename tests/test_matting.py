"""Background removal with the real u2netp. Where it cannot be downloaded, its tests are skipped."""

import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from support import rembg_weights
from support.comfyui import ComfyUI, Event, Run
from support.images import disc
from support.paths import EXAMPLES, ROOT
from torch import Tensor

from artmancer import images, mask_ops, matting
from artmancer.errors import ArtMancerError
from artmancer.folders import comfyui_folder
from artmancer.matting import MODELS, Remover

pytestmark = pytest.mark.usefixtures("compiled_rembg")

ROUNDING = 1.01 / 255
"""Largest difference of a value that was rounded down to 8 bits."""

RED_CHANNEL = rembg_weights.onnx("Identity")
"""An ONNX model of u2netp's shape."""


@pytest.fixture(scope="session")
def weights() -> Path:
    """Return a folder with u2netp.onnx."""
    folder = rembg_weights.fetch()
    if folder is None:
        pytest.skip("u2netp.onnx could not be downloaded")
    return folder


@pytest.fixture(scope="module")
def remover(weights: Path) -> Remover:
    """A remover with u2netp, which sees each picture once: the tests share a few, and each takes
    the model most of a second.
    """
    remover = Remover("u2netp", matting.find([weights], "u2netp"))
    remover.cut_out(torch.zeros(1, 8, 8, 3))
    session = remover.sessions["auto"]
    predict = session.predict
    seen: dict[Any, list[Any]] = {}

    def predict_once(picture: Any) -> list[Any]:
        key = (picture.mode, picture.size, picture.tobytes())
        if key not in seen:
            seen[key] = predict(picture)
        return seen[key]

    session.predict = predict_once
    return remover


@pytest.fixture
def red_channel(tmp_path: Path) -> Path:
    """A file u2netp.onnx in place of the real one: it finds what is red, in no time."""
    path = tmp_path / "u2netp.onnx"
    path.write_bytes(RED_CHANNEL)
    return path


RED = torch.tensor([0.9, 0.1, 0.1])
GREEN = torch.tensor([0.1, 0.8, 0.1])


def red_disc_on_green() -> Tensor:
    """Return an IMAGE [1, 200, 200, 3] of a disc with a soft edge."""
    mask = mask_ops.feather(disc(200, 200, 100, 100, 50), 12)
    size = (1, 200, 200, 3)
    return torch.lerp(GREEN.expand(size), RED.expand(size), mask.unsqueeze(-1))


@pytest.mark.slow
@pytest.mark.parametrize("alpha_matting", [False, True])
def test_the_astronaut_is_cut_out(example, remover: Remover, alpha_matting: bool) -> None:
    mask = remover.cut_out(example("astronaut"), alpha_matting=alpha_matting).mask[0]
    assert mask[60:130, 180:260].mean() > 0.98, "the face"
    assert mask[300:500, 100:230].mean() > 0.98, "the suit"
    assert mask[:180, 320:].max() < 0.1, "the shuttle"
    assert mask[:120, :100].max() < 0.1, "the wall"
    assert 0.45 < mask.mean() < 0.65


def test_soft_edges_stay_soft_as_in_rembg(example, remover: Remover) -> None:
    import rembg

    photo = example("chelsea")
    mask = remover.cut_out(photo).mask
    expected = rembg.remove(
        images.to_pil(photo[0]), session=remover.sessions["auto"], only_mask=True
    )
    assert torch.equal(mask[0], torch.from_numpy(np.array(expected)).float() / 255)
    assert ((mask > 0.1) & (mask < 0.9)).float().mean() > 0.05
    assert len(mask.unique()) > 200


@pytest.mark.slow
def test_alpha_matting_gives_rembgs_result(example, remover: Remover) -> None:
    import rembg

    photo = example("coffee")
    cutout = remover.cut_out(photo, alpha_matting=True)
    pil_image = rembg.remove(
        images.to_pil(photo[0]), session=remover.sessions["auto"], alpha_matting=True
    )
    expected = torch.from_numpy(np.array(pil_image)).float() / 255
    # rembg rounds down.
    assert (cutout.mask[0] - expected[..., 3]).abs().max() < ROUNDING
    edge = (cutout.mask[0] > 0.05) & (cutout.mask[0] < 0.95)
    assert (cutout.image[0] - expected[..., :3])[edge].abs().max() < ROUNDING
    assert cutout.unrefined == ()


@pytest.mark.slow
def test_large_images_are_matted_at_a_smaller_size_and_upsampled(
    example, remover: Remover, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = example("coffee")
    full_size = remover.cut_out(photo, alpha_matting=True).mask
    monkeypatch.setattr(matting, "MAX_MATTING_PIXELS", photo[0, ..., 0].numel() // 4)
    guided = remover.cut_out(photo, alpha_matting=True).mask
    guided_error = (guided - full_size).abs().mean()
    assert guided_error < 0.007
    assert ((guided == 0) | (guided == 1)).float().mean() > 0.85
    monkeypatch.setattr(
        mask_ops,
        "guided_upsample",
        lambda alpha, small, large: cv2.resize(alpha, large.shape[1::-1]),
    )
    bilinear = remover.cut_out(photo, alpha_matting=True).mask
    assert guided_error < 0.95 * (bilinear - full_size).abs().mean()


def test_the_backgrounds_color_is_removed_from_the_edge_only(remover: Remover) -> None:
    image = red_disc_on_green()
    plain = remover.cut_out(image, alpha_matting=True, decontaminate=False)
    clean = remover.cut_out(image, alpha_matting=True, decontaminate=True)
    assert torch.equal(plain.mask, clean.mask)
    assert torch.equal(plain.image, image)
    edge = (clean.mask > 0.3) & (clean.mask < 0.9)
    assert edge.sum() > 100
    assert (clean.image - RED)[edge].abs().mean() < 0.1 * (plain.image - RED)[edge].abs().mean()
    inside = clean.mask == 1
    assert inside.any()
    assert torch.equal(clean.image[inside], image[inside])


def test_a_cutout_on_a_color_and_with_alpha(example, remover: Remover) -> None:
    cutout = remover.cut_out(example("coffee"))
    with_alpha = cutout.with_alpha()
    assert torch.equal(with_alpha[..., :3], cutout.image)
    assert torch.equal(with_alpha[..., 3], cutout.mask)
    on_blue = cutout.over(matting.color(" #0080ff "))
    assert torch.equal(on_blue[cutout.mask == 1], cutout.image[cutout.mask == 1])
    assert torch.equal(on_blue[0, 0, 0], torch.tensor([0, 128, 255]) / 255)
    with pytest.raises(
        ArtMancerError, match="The color is 'octarine'; expected a name such as white, or #rrggbb"
    ):
        matting.color("octarine")


@pytest.mark.slow
def test_a_batch_gives_the_result_of_each_of_its_images(example, remover: Remover) -> None:
    photo = example("astronaut")
    photos = (photo, photo.flip(2))
    batch = remover.cut_out(torch.cat(photos))
    for index, image in enumerate(photos):
        alone = remover.cut_out(image)
        assert torch.equal(batch.mask[index], alone.mask[0])
        assert torch.equal(batch.image[index], alone.image[0])


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 2), (3, 3), (15, 1200)])
@pytest.mark.parametrize("alpha_matting", [False, True])
def test_the_smallest_and_longest_images(
    remover: Remover, size: tuple[int, int], alpha_matting: bool
) -> None:
    image = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(0))
    cutout = remover.cut_out(image, alpha_matting=alpha_matting)
    assert cutout.mask.shape == (1, *size)
    assert cutout.image.shape == image.shape
    assert cutout.mask.isfinite().all()
    assert cutout.image.isfinite().all()
    assert cutout.mask.min() >= 0
    assert cutout.mask.max() <= 1


def test_alpha_matting_keeps_a_mask_in_which_nothing_is_certain(remover: Remover) -> None:
    image = torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    cutout = remover.cut_out(image.repeat(2, 1, 1, 1), alpha_matting=True)
    assert cutout.unrefined == (0, 1)
    assert torch.equal(cutout.mask, remover.cut_out(image).mask.repeat(2, 1, 1))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 8, 8, 4), "The image has shape"),
        (torch.zeros(8, 8, 3), "The image has shape"),
        (torch.zeros(0, 8, 8, 3), "The image has shape"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "expected float32"),
        (torch.full((1, 8, 8, 3), torch.nan), "NaN or infinite"),
    ],
)
def test_an_invalid_image_is_refused(image: Tensor, message: str) -> None:
    with pytest.raises(ArtMancerError, match=message):
        Remover("u2netp", Path("nowhere.onnx")).cut_out(image)


def test_values_outside_the_range_are_clipped_for_the_model(example, remover: Remover) -> None:
    photo = (example("coffee") - 0.5) * 1.2 + 0.5
    assert torch.equal(remover.cut_out(photo).mask, remover.cut_out(photo.clamp(0, 1)).mask)


@pytest.mark.slow
def test_progress_is_reported_and_can_cancel_within_alpha_matting(example, weights: Path) -> None:
    remover = Remover("u2netp", matting.find([weights], "u2netp"))
    reports: list[tuple[int, int, str]] = []
    photo = example("coffee").repeat(2, 1, 1, 1)
    remover.cut_out(photo, alpha_matting=True, progress=lambda *report: reports.append(report))
    assert reports[0] == (0, 2, "loading u2netp (takes a minute the first time)")
    stages = ["removing the background", "alpha matting", "cleaning the edge's colors"]
    assert list(dict.fromkeys(reports[1:])) == [
        (index, 2, stage) for index in (0, 1) for stage in stages
    ]
    # Reported before the solution, and at each step of the solution.
    assert reports.count((0, 2, "alpha matting")) > 3

    cancelled_stages: list[str] = []

    def cancel(done: int, total: int, stage: str) -> None:
        cancelled_stages.append(stage)
        if cancelled_stages.count("alpha matting") == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        remover.cut_out(photo, alpha_matting=True, progress=cancel)
    assert cancelled_stages.count("alpha matting") == 3
    remover.cut_out(photo)


def test_everybody_may_use_the_default_model() -> None:
    default = MODELS[matting.DEFAULT]
    assert default.free
    assert default.license in ("Apache-2.0", "MIT")
    assert not MODELS["bria-rmbg"].free


def test_models_files_and_checksums_are_those_of_rembgs_downloads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import pooch
    from rembg.sessions import sessions

    downloads: list[tuple[str, str]] = []

    def record(url: str, checksum: str, **options: object) -> None:
        downloads.append((url, checksum))

    monkeypatch.setattr(pooch, "retrieve", record)
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    for name, model in MODELS.items():
        sessions[name].download_models()
        assert downloads.pop() == (f"{matting._RELEASE}/{model.file}", model.checksum)


def test_a_model_under_another_models_name_is_named_rightly(
    example, weights: Path, tmp_path: Path
) -> None:
    path = tmp_path / "bria-rmbg.onnx"
    path.write_bytes((weights / "u2netp.onnx").read_bytes())
    cutout = Remover("bria-rmbg", path).cut_out(example("astronaut"))
    assert (cutout.model, cutout.as_dict()["licence"]) == ("u2netp", "Apache-2.0")
    assert matting.choose([tmp_path]) == "bria-rmbg", "a file that everybody may use"
    path.write_bytes(b"another model")
    assert matting.recognize(path, "bria-rmbg") == "bria-rmbg"


def test_models_are_found_in_several_folders_under_either_name(tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    first, second = folders
    assert matting.installed(folders) == []
    assert matting.choose(folders) == "u2net"
    for folder in folders:
        folder.mkdir()
    for file in ("silueta.onnx", "BiRefNet-general-epoch_244.onnx", "other.onnx"):
        (first / file).touch()
    (second / "u2net.onnx").touch()
    # A folder is no model.
    (second / "u2netp.onnx").mkdir()
    assert matting.installed(folders) == ["u2net", "birefnet-general", "silueta"]
    assert matting.choose(folders) == "u2net"
    assert matting.find(folders, "birefnet-general") == first / "BiRefNet-general-epoch_244.onnx"
    with pytest.raises(
        ArtMancerError, match=f"There is no u2netp.onnx in '{first}' or '{second}'. Download"
    ):
        matting.find(folders, "u2netp")


def test_auto_chooses_no_model_with_a_restricted_license(tmp_path: Path) -> None:
    for file in ("silueta.onnx", "bria-rmbg.onnx"):
        (tmp_path / file).touch()
    with pytest.raises(
        ArtMancerError, match=r"there is only silueta, bria-rmbg\. Choose it by its name"
    ) as error:
        matting.choose([tmp_path])
    assert error.value.code == "checkpoint_missing"
    assert f"put it into '{tmp_path}'" in str(error.value)
    assert matting.find([tmp_path], "bria-rmbg").is_file(), "it may be chosen by its name"


def test_the_message_about_missing_weights_has_the_download_address(tmp_path: Path) -> None:
    with pytest.raises(ArtMancerError) as error:
        matting.find([tmp_path], "isnet-general-use")
    assert error.value.code == "checkpoint_missing"
    message = str(error.value)
    assert message.startswith(
        f"There is no isnet-general-use.onnx in '{tmp_path}'. "
        "Download https://github.com/danielgatis/rembg/releases"
    )
    assert message.endswith("/isnet-general-use.onnx and put it there.")
    with pytest.raises(ArtMancerError, match="The model is 'sam'; expected one of u2net, "):
        matting.find([tmp_path], "sam")


def test_nothing_is_downloaded_or_written_to_the_home_folder(
    red_channel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import pooch

    monkeypatch.setattr(pooch, "retrieve", lambda *args, **kwargs: pytest.fail("a download"))
    home = tmp_path / "home"
    models = tmp_path / "rembg"
    home.mkdir()
    models.mkdir()
    red_channel.rename(models / "u2netp.onnx")
    for name in ("HOME", "USERPROFILE", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(home))
    Remover("u2netp", matting.find([models], "u2netp")).cut_out(torch.rand(1, 20, 20, 3))
    assert list(home.iterdir()) == []
    assert [path.name for path in models.iterdir()] == ["u2netp.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["onnxruntime", "rembg"])
def test_the_message_names_a_missing_library_and_the_process_continues(missing: str) -> None:
    script = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "import torch; from pathlib import Path; "
        "from artmancer.matting import Remover, ArtMancerError\n"
        "try: Remover('u2net', Path('u2net.onnx')).cut_out(torch.zeros(1, 8, 8, 3))\n"
        "except ArtMancerError as error: print(error)\n"
        "print('still running')"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    message, last_line = process.stdout.splitlines()
    assert missing in message
    assert "pip install -U rembg onnxruntime, or onnxruntime-gpu in its place" in message
    assert last_line == "still running"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>Not Found</html>", "cannot be loaded"),
        (b"", "cannot be loaded"),
        (rembg_weights.onnx("Nonsense"), "cannot be loaded"),
        (rembg_weights.onnx("Identity", side=1024), "does not run as u2netp"),
        (rembg_weights.onnx("Identity", channels=1), "does not run as u2netp"),
        (rembg_weights.onnx("Flatten"), "does not run as u2netp"),
        (rembg_weights.onnx("GlobalAveragePool"), "does not run as u2netp"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_the_message_names_a_file_that_is_not_the_model_and_it_can_be_replaced(
    red_channel: Path, content: bytes, message: str
) -> None:
    path = red_channel
    path.write_bytes(content)
    remover = Remover("u2netp", path)
    image = torch.rand(1, 20, 20, 3)
    with pytest.raises(ArtMancerError, match=message) as error:
        remover.cut_out(image)
    assert error.value.code == "generation_failed"
    assert str(path) in str(error.value)
    assert "again and put it in its place" in str(error.value)
    path.write_bytes(RED_CHANNEL)
    remover.cut_out(image)


def test_an_incomplete_download_is_refused(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "u2netp.onnx"
    path.write_bytes((weights / "u2netp.onnx").read_bytes()[:2_000_000])
    with pytest.raises(ArtMancerError, match="cannot be loaded"):
        Remover("u2netp", path).cut_out(torch.zeros(1, 8, 8, 3))


def test_a_full_gpu_is_reported_and_the_model_loaded_again(red_channel: Path) -> None:
    class FullGpu:
        def predict(self, image: object) -> None:
            raise RuntimeError(
                "[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 9"
            )

    full = Remover("u2netp", red_channel, sessions={"auto": FullGpu()})
    image = torch.rand(1, 8, 8, 3)
    with pytest.raises(ArtMancerError, match="Unload other models, or choose device cpu") as error:
        full.cut_out(image)
    assert error.value.code == "out_of_memory"
    full.cut_out(image)


@pytest.mark.parametrize(
    ("gpu", "providers", "device", "reason"),
    [
        (False, ["CPUExecutionProvider"], "auto", "there is no CUDA GPU"),
        (False, ["CUDAExecutionProvider", "CPUExecutionProvider"], "auto", "there is no CUDA GPU"),
        (True, ["CPUExecutionProvider"], "auto", "install onnxruntime-gpu in its place"),
        (True, ["CUDAExecutionProvider", "CPUExecutionProvider"], "auto", "could not use CUDA"),
        (True, ["CUDAExecutionProvider", "CPUExecutionProvider"], "cpu", "cpu was chosen"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*CUDAExecutionProvider")
def test_the_report_has_the_provider_and_the_reason_for_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
    red_channel: Path,
    gpu: bool,
    providers: list[str],
    device: str,
    reason: str,
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_device", lambda: "GPU" if len(providers) > 1 else "CPU")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    cutout = Remover("u2netp", red_channel).cut_out(torch.rand(1, 20, 20, 3), device=device)
    assert cutout.provider == "CPU"
    assert reason in cutout.why
    assert json.loads(json.dumps(cutout.as_dict())) == {
        "model": "u2netp",
        "licence": "Apache-2.0",
        "provider": "CPU",
        "why": cutout.why,
        "unrefined": [],
    }


def test_on_the_gpu_no_reason_is_reported(red_channel: Path) -> None:
    remover = Remover("u2netp", red_channel)
    remover.cut_out(torch.rand(1, 20, 20, 3))
    session = remover.sessions["auto"]
    inner_session = SimpleNamespace(
        get_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    on_gpu = SimpleNamespace(predict=session.predict, inner_session=inner_session)
    cutout = Remover("u2netp", remover.path, sessions={"auto": on_gpu}).cut_out(
        torch.rand(1, 20, 20, 3)
    )
    assert (cutout.provider, cutout.why) == ("CUDA", "")


def test_an_unknown_device_is_refused(remover: Remover) -> None:
    with pytest.raises(ArtMancerError, match="The device is 'tpu'; expected one of auto, cpu"):
        remover.cut_out(torch.zeros(1, 8, 8, 3), device="tpu")


def test_a_session_lives_as_long_as_its_remover(red_channel: Path) -> None:
    remover = Remover("u2netp", red_channel)
    image = torch.rand(1, 20, 20, 3)
    remover.cut_out(image)
    session = weakref.ref(remover.sessions["auto"].inner_session)
    cutout = remover.cut_out(image)
    assert remover.sessions["auto"].inner_session is session()
    del remover
    assert session() is None
    assert cutout.provider == "CPU"


# In a real ComfyUI


@pytest.fixture(scope="module")
def comfyui_with_weights(comfyui: ComfyUI, weights: Path) -> Iterator[ComfyUI]:
    """Provide ComfyUI with the weights of u2netp, which the tests of other modules miss."""
    folder = comfyui.base / "models" / "rembg"
    folder.mkdir(parents=True, exist_ok=True)
    file = Path(shutil.copy(weights / "u2netp.onnx", folder))
    yield comfyui
    file.unlink()


def graph(comfyui: ComfyUI, **inputs: Any) -> dict[str, Any]:
    """Return a graph that removes a photo's background and saves the result and its mask."""
    defaults = {
        "model": "u2netp",
        "background": "alpha",
        "color": "white",
        "alpha_matting": False,
        "decontaminate": True,
    }
    return {
        "1": {
            "class_type": "LoadImage",
            "inputs": {"image": comfyui.upload(EXAMPLES / "coffee.png")},
        },
        "2": {
            "class_type": "ArtMancer_RemoveBackground",
            "inputs": {"image": ["1", 0], **defaults, **inputs},
        },
        "3": {
            "class_type": "SaveImage",
            "inputs": {"images": ["2", 0], "filename_prefix": "cutout"},
        },
        "4": {"class_type": "MaskToImage", "inputs": {"mask": ["2", 1]}},
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "mask"}},
        "6": {"class_type": "PreviewAny", "inputs": {"source": ["2", 2]}},
    }


def view(comfyui: ComfyUI, run: Run, node: str) -> images.DecodedImage:
    """Return the first image that a node of a successful run has saved."""
    assert run.outcome == "execution_success", run.events[-1]
    return images.decode(comfyui.view(run.outputs[node]["images"][0]))


def count_loads(run: Run) -> int:
    """Return how often a run loaded u2netp."""
    return sum(text.startswith("loading u2netp") for text in run.texts)


@pytest.mark.comfyui
def test_the_node_lists_installed_models_first_and_warns_about_licenses(
    comfyui_with_weights: ComfyUI,
) -> None:
    info = comfyui_with_weights.get("/object_info/ArtMancer_RemoveBackground")
    node_inputs = info["ArtMancer_RemoveBackground"]["input"]
    inputs = {**node_inputs["required"], **node_inputs["optional"]}
    assert all(properties["tooltip"] for _, properties in inputs.values())
    kind, properties = inputs["model"]
    options = properties.get("options", kind)
    assert options[:2] == ["auto", "u2netp"]
    assert set(options) == {"auto", *MODELS}
    assert properties["default"] == "u2netp"
    assert "bria-rmbg: business use needs an agreement" in properties["tooltip"]


@pytest.mark.comfyui
def test_the_node_gives_the_librarys_result(
    example, comfyui_with_weights: ComfyUI, remover: Remover
) -> None:
    expected = remover.cut_out(example("coffee"))
    run = comfyui_with_weights.run(graph(comfyui_with_weights))
    cutout = view(comfyui_with_weights, run, "3")
    mask = view(comfyui_with_weights, run, "5").image[..., 0]
    assert cutout.alpha is not None
    assert (cutout.alpha - expected.mask).abs().max() < ROUNDING
    assert (mask - expected.mask).abs().max() < ROUNDING
    report = json.loads(run.outputs["6"]["text"][0])
    assert report == expected.as_dict()
    assert report["provider"] == "CPU"
    assert report["why"]
    run = comfyui_with_weights.run(graph(comfyui_with_weights, background="color", color="#ff8800"))
    on_orange = view(comfyui_with_weights, run, "3")
    assert on_orange.alpha is None
    assert (on_orange.image - expected.over(matting.color("#ff8800"))).abs().max() < ROUNDING


@pytest.mark.comfyui
def test_other_nodes_accept_an_image_with_alpha(comfyui_with_weights: ComfyUI) -> None:
    prompt = graph(comfyui_with_weights)
    prompt |= {
        "7": {
            "class_type": "ArtMancer_ExtractObject",
            "inputs": {"image": ["2", 0], "mask": ["2", 1], "side": 256, "margin": 0.05},
        },
        "8": {
            "class_type": "ArtMancer_SplitConditions",
            "inputs": {
                "image": ["1", 0],
                "mask": ["2", 1],
                "reference": ["2", 0],
                "recipe": "auto",
                "resolution": "auto",
                "context": 1.5,
                "grow": 0,
                "feather": 16,
                "fill_holes": False,
            },
        },
        "9": {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}},
        "10": {"class_type": "PreviewImage", "inputs": {"images": ["8", 2]}},
    }
    run = comfyui_with_weights.run(prompt)
    assert view(comfyui_with_weights, run, "9").image.shape == (1, 256, 256, 3)
    object_image = view(comfyui_with_weights, run, "10").image
    assert object_image[0, 0, 0].max() == 0, "the removed background is black"


@pytest.mark.comfyui
def test_the_endpoint_uses_an_installed_model(
    example, comfyui_with_weights: ComfyUI, remover: Remover
) -> None:
    workflow = json.loads((ROOT / "workflows" / "api" / "remove-background.json").read_text())
    workflow["1"]["inputs"]["image"] = comfyui_with_weights.upload(EXAMPLES / "coffee.png")
    run = comfyui_with_weights.run(workflow)
    results = {
        node["inputs"].get("name"): node_id
        for node_id, node in workflow.items()
        if "Result" in node["class_type"]
    }
    expected = remover.cut_out(example("coffee"))
    cutout = view(comfyui_with_weights, run, results["image"])
    mask = view(comfyui_with_weights, run, results["mask"]).image[..., 0]
    assert cutout.alpha is not None
    assert (cutout.alpha - expected.mask).abs().max() < ROUNDING
    assert (mask - expected.mask).abs().max() < ROUNDING
    assert json.loads(run.outputs[results["report"]]["text"][0])["model"] == "u2netp"
    assert comfyui_with_weights.get("/artmancer/status")["rembg"] == ["u2netp"]
    # A model that comes before it and was installed meanwhile is used at the next run.
    newer = comfyui_with_weights.base / "models" / "rembg" / "u2net.onnx"
    newer.write_bytes(rembg_weights.onnx("Identity"))
    try:
        run = comfyui_with_weights.run(workflow)
    finally:
        newer.unlink()
    assert json.loads(run.outputs[results["report"]]["text"][0])["model"] == "u2net"


@pytest.mark.comfyui
def test_the_model_is_kept_until_memory_is_freed(comfyui_with_weights: ComfyUI) -> None:
    comfyui_with_weights.free()
    assert count_loads(comfyui_with_weights.run(graph(comfyui_with_weights, color="red"))) == 1
    assert count_loads(comfyui_with_weights.run(graph(comfyui_with_weights, color="blue"))) == 0
    comfyui_with_weights.free()
    assert count_loads(comfyui_with_weights.run(graph(comfyui_with_weights, color="blue"))) == 1


@pytest.mark.comfyui
def test_the_node_reports_a_missing_model_and_an_invalid_color(
    comfyui_with_weights: ComfyUI,
) -> None:
    for inputs, message in (
        ({"model": "birefnet-general"}, "There is no birefnet-general.onnx in"),
        ({"background": "color", "color": "octarine"}, "The color is 'octarine'"),
    ):
        run = comfyui_with_weights.run(graph(comfyui_with_weights, **inputs))
        assert run.outcome == "execution_error"
        assert message in run.events[-1]["data"]["exception_message"]


@pytest.mark.comfyui
def test_the_node_can_be_cancelled_within_alpha_matting(comfyui_with_weights: ComfyUI) -> None:
    def cancel(event: Event) -> str | None:
        started = event["type"] == "executing" and event["data"]["node"] == "2"
        return "/interrupt" if started else None

    run = comfyui_with_weights.run(graph(comfyui_with_weights, alpha_matting=True), on_event=cancel)
    assert run.outcome == "execution_interrupted"
    run = comfyui_with_weights.run(graph(comfyui_with_weights, alpha_matting=True))
    assert run.outcome == "execution_success"


PRINT_MODEL_OPTIONS = """
import asyncio, json, logging, sys
comfyui, pack, base, config = sys.argv[1:]
sys.path.insert(0, comfyui)
sys.argv[1:] = ["--cpu", "--base-directory", base]
logging.disable()
from comfy import options
options.enable_args_parsing()
import nodes, server
from utils.extra_config import load_extra_path_config
server.PromptServer(asyncio.new_event_loop())
load_extra_path_config(config)
asyncio.run(nodes.load_custom_node(pack))
node = nodes.NODE_CLASS_MAPPINGS["ArtMancer_RemoveBackground"]
print(json.dumps(node.INPUT_TYPES()["required"]["model"]))
"""
"""Script that prints the node's options for model in a ComfyUI with extra model paths."""


@pytest.mark.comfyui
def test_weights_in_a_folder_of_extra_model_paths_are_found(
    comfyui: ComfyUI, tmp_path: Path
) -> None:
    (tmp_path / "mine" / "cutters").mkdir(parents=True)
    (tmp_path / "mine" / "cutters" / "birefnet-portrait.onnx").touch()
    config = tmp_path / "extra_model_paths.yaml"
    config.write_text(f"mine:\n  base_path: {tmp_path / 'mine'}\n  rembg: cutters\n")
    arguments = map(str, (comfyui_folder(), ROOT, tmp_path, config))
    command = [sys.executable, "-c", PRINT_MODEL_OPTIONS, *arguments]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    kind, properties = json.loads(process.stdout.splitlines()[-1])
    assert properties["default"] == "birefnet-portrait"
    assert properties.get("options", kind)[:2] == ["auto", "birefnet-portrait"]


def test_a_mask_made_elsewhere_cuts_out_and_cleans_the_edge() -> None:
    photo = red_disc_on_green()
    mask = mask_ops.feather(disc(200, 200, 100, 100, 50), 12)
    cutout = matting.cut_out_by_masks("another model", photo, mask)
    assert (cutout.mask - mask).abs().max() < ROUNDING
    soft = (mask > 0.3) & (mask < 0.9)
    assert (cutout.image[soft] - RED).abs().max() < 0.1, "no green is left in the edge"
    assert cutout.as_dict()["model"] == "another model"


def background_graph(comfyui: ComfyUI, **inputs: Any) -> dict[str, Any]:
    """Return a graph that cuts a photo out by the left half of it, which a stand-in finds."""
    nodes = graph(comfyui, **inputs)
    nodes["7"] = {"class_type": "Test_LeftHalf", "inputs": {}}
    return nodes


@pytest.mark.comfyui
def test_the_node_takes_comfyuis_own_background_removal_model(comfyui: ComfyUI) -> None:
    run = comfyui.run(
        background_graph(comfyui, model="u2net", bg_removal_model=["7", 0], decontaminate=False)
    )
    cutout = view(comfyui, run, "3")
    assert cutout.alpha is not None
    half = cutout.alpha.shape[2] // 2
    assert cutout.alpha[..., :half].min() == 1 and cutout.alpha[..., half:].max() == 0
    assert "ComfyUI" in json.loads(run.outputs["6"]["text"][0])["model"]


@pytest.mark.comfyui
def test_the_node_takes_the_alpha_that_an_image_has(comfyui: ComfyUI) -> None:
    nodes = background_graph(comfyui, model="u2net", background="color", color="#0000ff")
    photo = comfyui.upload(EXAMPLES / "coffee_painted.png")
    nodes["1"]["inputs"]["image"] = photo
    nodes["8"] = {
        "class_type": "JoinImageWithAlpha",
        "inputs": {"image": ["1", 0], "alpha": ["1", 1]},
    }
    nodes["2"]["inputs"]["image"] = ["8", 0]
    run = comfyui.run(nodes)
    result = view(comfyui, run, "3").image[0]
    painted = images.decode((EXAMPLES / "coffee_mask.png").read_bytes()).image[0, ..., 0] > 0.5
    assert (result[painted] - torch.tensor([0.0, 0.0, 1.0])).abs().max() == 0
    photo_alone = images.decode((EXAMPLES / "coffee.png").read_bytes()).image[0]
    assert torch.equal(result[~painted], photo_alone[~painted])
