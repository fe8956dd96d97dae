"""Background removal with the real u2netp; where that cannot be fetched, its tests are left out."""

import json
import shutil
import subprocess
import sys
import weakref
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


@pytest.fixture(scope="session")
def weights() -> Path:
    """A folder with u2netp.onnx."""
    folder = rembg_weights.fetch()
    if folder is None:
        pytest.skip("u2netp.onnx could not be fetched")
    return folder


@pytest.fixture(scope="module")
def remover(weights: Path) -> Remover:
    return Remover("u2netp", matting.find([weights], "u2netp"))


def red_disc_on_green() -> tuple[Tensor, Tensor]:
    """A disc with a soft edge, IMAGE [1, 200, 200, 3] and MASK [1, 200, 200]."""
    mask = mask_ops.feather(disc(200, 200, 100, 100, 50), 12)
    colors = (torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.8, 0.1]))
    return torch.lerp(
        colors[1].expand(1, 200, 200, 3), colors[0].expand(1, 200, 200, 3), mask.unsqueeze(-1)
    ), mask


@pytest.mark.parametrize("alpha_matting", [False, True])
def test_the_astronaut_is_cut_out(example, remover: Remover, alpha_matting: bool) -> None:
    mask = remover.cut_out(example("astronaut"), alpha_matting=alpha_matting).mask[0]
    assert mask[60:130, 180:260].mean() > 0.98, "the face"
    assert mask[300:500, 100:230].mean() > 0.98, "the suit"
    assert mask[:180, 320:].max() < 0.1 and mask[:120, :100].max() < 0.1, "the shuttle and the wall"
    assert 0.45 < mask.mean() < 0.65


def test_soft_edges_stay_soft_as_rembg_gives_them(example, remover: Remover) -> None:
    import rembg

    photo = example("chelsea")
    mask = remover.cut_out(photo).mask
    soft = rembg.remove(images.to_pil(photo[0]), session=remover.sessions["auto"], only_mask=True)
    assert torch.equal(mask[0], torch.from_numpy(np.array(soft)).float() / 255)
    assert ((mask > 0.1) & (mask < 0.9)).float().mean() > 0.05 and len(mask.unique()) > 200


def test_alpha_matting_is_rembgs(example, remover: Remover) -> None:
    import rembg

    photo = example("coffee")
    cutout = remover.cut_out(photo, alpha_matting=True)
    expected = rembg.remove(
        images.to_pil(photo[0]), session=remover.sessions["auto"], alpha_matting=True
    )
    wanted = torch.from_numpy(np.array(expected)).float() / 255
    assert (cutout.mask[0] - wanted[..., 3]).abs().max() < 1.01 / 255, "rembg rounds down"
    edge = (cutout.mask[0] > 0.05) & (cutout.mask[0] < 0.95)
    assert (cutout.image[0] - wanted[..., :3])[edge].abs().max() < 1.01 / 255
    assert cutout.unrefined == ()


def test_beyond_a_megapixel_alpha_matting_is_solved_small_and_carried_over(
    example, remover: Remover, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = example("coffee")
    whole = remover.cut_out(photo, alpha_matting=True).mask
    monkeypatch.setattr(matting, "MAX_MATTING_PIXELS", photo[0, ..., 0].numel() // 4)
    carried = remover.cut_out(photo, alpha_matting=True).mask
    assert (carried - whole).abs().mean() < 0.007
    assert ((carried == 0) | (carried == 1)).float().mean() > 0.85
    monkeypatch.setattr(
        mask_ops,
        "guided_upsample",
        lambda alpha, small, large: cv2.resize(alpha, large.shape[1::-1]),
    )
    stretched = remover.cut_out(photo, alpha_matting=True).mask
    assert (carried - whole).abs().mean() < 0.95 * (stretched - whole).abs().mean()


def test_the_backgrounds_colour_leaves_the_edge_and_nothing_else(remover: Remover) -> None:
    picture, _ = red_disc_on_green()
    plain, clean = (
        remover.cut_out(picture, alpha_matting=True, decontaminate=switch)
        for switch in (False, True)
    )
    assert torch.equal(plain.mask, clean.mask) and torch.equal(plain.image, picture)
    edge = (clean.mask > 0.3) & (clean.mask < 0.9)
    assert edge.sum() > 100
    red = torch.tensor([0.9, 0.1, 0.1])
    assert (clean.image - red)[edge].abs().mean() < 0.1 * (plain.image - red)[edge].abs().mean()
    inside = clean.mask == 1
    assert inside.any() and torch.equal(clean.image[inside], picture[inside])


def test_over_a_colour_and_with_alpha(example, remover: Remover) -> None:
    cutout = remover.cut_out(example("coffee"))
    over, layered = cutout.over(matting.color(" #0080ff ")), cutout.with_alpha()
    assert torch.equal(layered[..., :3], cutout.image) and torch.equal(layered[..., 3], cutout.mask)
    assert torch.equal(over[cutout.mask == 1], cutout.image[cutout.mask == 1])
    assert torch.equal(over[0, 0, 0], torch.tensor([0, 128, 255]) / 255)
    with pytest.raises(
        ArtMancerError, match="The color is 'octarine'; expected a name such as white, or #rrggbb"
    ):
        matting.color("octarine")


def test_a_batch_is_each_of_its_pictures(example, remover: Remover) -> None:
    photo = example("astronaut")
    batch = remover.cut_out(torch.cat([photo, photo.flip(2)]))
    for one, picture in enumerate((photo, photo.flip(2))):
        alone = remover.cut_out(picture)
        assert torch.equal(batch.mask[one], alone.mask[0]) and torch.equal(
            batch.image[one], alone.image[0]
        )


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 2), (3, 3), (15, 1200)])
@pytest.mark.parametrize("alpha_matting", [False, True])
def test_the_smallest_and_longest_pictures(
    remover: Remover, size: tuple[int, int], alpha_matting: bool
) -> None:
    picture = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(0))
    cutout = remover.cut_out(picture, alpha_matting=alpha_matting)
    assert cutout.mask.shape == (1, *size) and cutout.image.shape == picture.shape
    assert cutout.mask.isfinite().all() and cutout.image.isfinite().all()
    assert cutout.mask.min() >= 0 and cutout.mask.max() <= 1


def test_where_nothing_is_certain_alpha_matting_leaves_the_mask(remover: Remover) -> None:
    picture = torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    cutout = remover.cut_out(picture.repeat(2, 1, 1, 1), alpha_matting=True)
    assert cutout.unrefined == (0, 1) and torch.equal(
        cutout.mask, remover.cut_out(picture).mask.repeat(2, 1, 1)
    )


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.zeros(1, 8, 8, 4), "The image has shape"),
        (torch.zeros(8, 8, 3), "The image has shape"),
        (torch.zeros(0, 8, 8, 3), "The image has shape"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "expected float32"),
        (torch.full((1, 8, 8, 3), torch.nan), "NaN or infinite"),
    ],
)
def test_what_is_no_image_is_refused(image: Tensor, said: str) -> None:
    with pytest.raises(ArtMancerError, match=said):
        Remover("u2netp", Path("nowhere.onnx")).cut_out(image)


def test_values_outside_the_range_are_clipped_for_the_model(example, remover: Remover) -> None:
    photo = (example("coffee") - 0.5) * 1.2 + 0.5
    assert torch.equal(remover.cut_out(photo).mask, remover.cut_out(photo.clamp(0, 1)).mask)


def test_progress_is_told_and_can_cancel_within_alpha_matting(example, weights: Path) -> None:
    remover = Remover("u2netp", matting.find([weights], "u2netp"))
    told: list[tuple[int, int, str]] = []
    photo = example("coffee").repeat(2, 1, 1, 1)
    remover.cut_out(photo, alpha_matting=True, progress=lambda *step: told.append(step))
    assert told[0] == (0, 2, "loading u2netp (takes a minute the first time)")
    phases = ["removing the background", "alpha matting", "cleaning the edge's colors"]
    assert list(dict.fromkeys(told[1:])) == [
        (index, 2, phase) for index in (0, 1) for phase in phases
    ]
    assert told.count((0, 2, "alpha matting")) > 3, (
        "once before it, and at each step to the solution"
    )

    def cancel(done: int, total: int, stage: str) -> None:
        heard.append(stage)
        if heard.count("alpha matting") == 3:
            raise InterruptedError

    heard: list[str] = []
    with pytest.raises(InterruptedError):
        remover.cut_out(photo, alpha_matting=True, progress=cancel)
    assert heard.count("alpha matting") == 3
    remover.cut_out(photo)


def test_the_default_may_be_used_by_everybody() -> None:
    assert MODELS[matting.DEFAULT].free and MODELS[matting.DEFAULT].license in ("Apache-2.0", "MIT")
    assert not MODELS["bria-rmbg"].free


def test_the_models_are_rembgs_and_their_files_its_downloads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import pooch
    from rembg.sessions import sessions

    asked: list[str] = []
    monkeypatch.setattr(pooch, "retrieve", lambda url, *args, **kwargs: asked.append(url))
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    for name, model in MODELS.items():
        sessions[name].download_models()
        assert asked.pop() == f"{matting._RELEASE}/{model.file}"


def test_what_lies_in_the_folders_is_found_under_either_name(tmp_path: Path) -> None:
    mine, ours = folders = [tmp_path / "mine", tmp_path / "ours"]
    assert matting.installed(folders) == [] and matting.choose(folders) == "u2net"
    for folder in folders:
        folder.mkdir()
    for file in ("silueta.onnx", "BiRefNet-general-epoch_244.onnx", "other.onnx"):
        (mine / file).touch()
    (ours / "u2net.onnx").touch()
    (ours / "u2netp.onnx").mkdir()
    assert matting.installed(folders) == ["u2net", "birefnet-general", "silueta"]
    assert matting.choose(folders) == "u2net"
    assert matting.find(folders, "birefnet-general") == mine / "BiRefNet-general-epoch_244.onnx"
    with pytest.raises(
        ArtMancerError, match=f"There is no u2netp.onnx in '{mine}' or '{ours}'. Download"
    ):
        matting.find(folders, "u2netp")


def test_auto_takes_none_that_not_everybody_may_use(tmp_path: Path) -> None:
    for file in ("silueta.onnx", "bria-rmbg.onnx"):
        (tmp_path / file).touch()
    with pytest.raises(
        ArtMancerError, match=r"there is only silueta, bria-rmbg\. Choose it by its name"
    ) as caught:
        matting.choose([tmp_path])
    assert caught.value.code == "checkpoint_missing" and f"put it into '{tmp_path}'" in str(
        caught.value
    )
    assert matting.find([tmp_path], "bria-rmbg").is_file(), "asked for by name it is taken"


def test_missing_weights_are_asked_for_and_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(ArtMancerError) as caught:
        matting.find([tmp_path], "isnet-general-use")
    assert caught.value.code == "checkpoint_missing"
    said = f"There is no isnet-general-use.onnx in '{tmp_path}'. Download https://github.com/danielgatis/rembg/releases"
    assert str(caught.value).startswith(said) and str(caught.value).endswith(
        "/isnet-general-use.onnx and put it there."
    )
    with pytest.raises(ArtMancerError, match="The model is 'sam'; expected one of u2net, "):
        matting.find([tmp_path], "sam")


def test_nothing_is_downloaded_or_written_to_the_home(
    weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import pooch

    monkeypatch.setattr(pooch, "retrieve", lambda *args, **kwargs: pytest.fail("a download"))
    home, models = tmp_path / "home", tmp_path / "rembg"
    home.mkdir()
    models.mkdir()
    shutil.copy(weights / "u2netp.onnx", models)
    for name in ("HOME", "USERPROFILE", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(home))
    Remover("u2netp", matting.find([models], "u2netp")).cut_out(torch.rand(1, 20, 20, 3))
    assert list(home.iterdir()) == [] and [path.name for path in models.iterdir()] == [
        "u2netp.onnx"
    ]


@pytest.mark.parametrize("missing", ["onnxruntime", "rembg"])
def test_a_missing_library_is_named_and_does_not_end_the_process(missing: str) -> None:
    probe = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "import torch; from pathlib import Path; "
        "from artmancer.matting import Remover, ArtMancerError\n"
        "try: Remover('u2net', Path('u2net.onnx')).cut_out(torch.zeros(1, 8, 8, 3))\n"
        "except ArtMancerError as error: print(error)\n"
        "print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, still_here = done.stdout.splitlines()
    assert (
        missing in said
        and "pip install -U rembg onnxruntime, or onnxruntime-gpu in its place" in said
    )
    assert still_here == "still here"


@pytest.mark.parametrize(
    ("content", "said"),
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
def test_a_file_that_is_not_the_model_is_named_and_can_be_replaced(
    weights: Path, tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "u2netp.onnx"
    path.write_bytes(content)
    remover, picture = Remover("u2netp", path), torch.rand(1, 20, 20, 3)
    with pytest.raises(ArtMancerError, match=said) as caught:
        remover.cut_out(picture)
    assert caught.value.code == "generation_failed" and str(path) in str(caught.value)
    assert "again and put it in its place" in str(caught.value)
    shutil.copy(weights / "u2netp.onnx", path)
    remover.cut_out(picture)


def test_half_a_download_is_named(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "u2netp.onnx"
    path.write_bytes((weights / "u2netp.onnx").read_bytes()[:2_000_000])
    with pytest.raises(ArtMancerError, match="cannot be loaded"):
        Remover("u2netp", path).cut_out(torch.zeros(1, 8, 8, 3))


def test_a_gpu_that_is_full_is_named(remover: Remover) -> None:
    class Full:
        def predict(self, picture: object) -> None:
            raise RuntimeError(
                "[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 9"
            )

    full = Remover("u2netp", remover.path, sessions={"auto": Full()})
    with pytest.raises(ArtMancerError, match="Unload other models, or choose device cpu") as caught:
        full.cut_out(torch.zeros(1, 8, 8, 3))
    assert caught.value.code == "out_of_memory"
    full.cut_out(torch.zeros(1, 8, 8, 3))


@pytest.mark.parametrize(
    ("gpu", "providers", "device", "why"),
    [
        (False, ["CPUExecutionProvider"], "auto", "there is no CUDA GPU"),
        (False, ["CUDAExecutionProvider", "CPUExecutionProvider"], "auto", "there is no CUDA GPU"),
        (True, ["CPUExecutionProvider"], "auto", "install onnxruntime-gpu in its place"),
        (True, ["CUDAExecutionProvider", "CPUExecutionProvider"], "auto", "could not use CUDA"),
        (True, ["CUDAExecutionProvider", "CPUExecutionProvider"], "cpu", "cpu was chosen"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*CUDAExecutionProvider")
def test_it_says_what_ran_and_why(
    monkeypatch: pytest.MonkeyPatch,
    weights: Path,
    gpu: bool,
    providers: list[str],
    device: str,
    why: str,
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_device", lambda: "GPU" if len(providers) > 1 else "CPU")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    cutout = Remover("u2netp", weights / "u2netp.onnx").cut_out(
        torch.rand(1, 20, 20, 3), device=device
    )
    assert cutout.provider == "CPU" and why in cutout.why
    assert json.loads(json.dumps(cutout.as_dict())) == {
        "model": "u2netp",
        "licence": "Apache-2.0",
        "provider": "CPU",
        "why": cutout.why,
        "unrefined": [],
    }


def test_on_the_gpu_there_is_nothing_to_explain(remover: Remover) -> None:
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


def test_a_device_it_does_not_know_is_refused(remover: Remover) -> None:
    with pytest.raises(ArtMancerError, match="The device is 'tpu'; expected one of auto, cpu"):
        remover.cut_out(torch.zeros(1, 8, 8, 3), device="tpu")


def test_a_session_is_kept_and_goes_with_its_remover(weights: Path) -> None:
    remover = Remover("u2netp", weights / "u2netp.onnx")
    picture = torch.rand(1, 20, 20, 3)
    remover.cut_out(picture)
    kept = weakref.ref(remover.sessions["auto"].inner_session)
    cutout = remover.cut_out(picture)
    assert remover.sessions["auto"].inner_session is kept()
    del remover
    assert kept() is None and cutout.provider == "CPU"


# In a real ComfyUI


@pytest.fixture(scope="module")
def comfyui_with_weights(comfyui: ComfyUI, weights: Path) -> ComfyUI:
    folder = comfyui.base / "models" / "rembg"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(weights / "u2netp.onnx", folder)
    return comfyui


def graph(comfyui: ComfyUI, **inputs: Any) -> dict[str, Any]:
    """A photo, without its background, saved with its mask."""
    asked = {
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
            "inputs": {"image": ["1", 0], **asked, **inputs},
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
    assert run.outcome == "execution_success", run.events[-1]
    return images.decode(comfyui.view(run.outputs[node]["images"][0]))


def loadings(run: Run) -> int:
    return sum(text.startswith("loading u2netp") for text in run.texts)


@pytest.mark.comfyui
def test_the_node_offers_what_is_there_first_and_warns_of_licences(
    comfyui_with_weights: ComfyUI,
) -> None:
    described = comfyui_with_weights.get("/object_info/ArtMancer_RemoveBackground")[
        "ArtMancer_RemoveBackground"
    ]
    inputs = {**described["input"]["required"], **described["input"]["optional"]}
    assert all(one[1]["tooltip"] for one in inputs.values())
    options = inputs["model"][1].get("options", inputs["model"][0])
    assert options[:2] == ["auto", "u2netp"] and set(options) == {"auto", *MODELS}
    assert inputs["model"][1]["default"] == "u2netp"
    assert "bria-rmbg: business use needs an agreement" in inputs["model"][1]["tooltip"]


@pytest.mark.comfyui
def test_the_node_gives_what_the_library_gives(
    example, comfyui_with_weights: ComfyUI, remover: Remover
) -> None:
    expected = remover.cut_out(example("coffee"))
    run = comfyui_with_weights.run(graph(comfyui_with_weights))
    layered = view(comfyui_with_weights, run, "3")
    assert layered.alpha is not None and (layered.alpha - expected.mask).abs().max() < 1.01 / 255
    assert (
        view(comfyui_with_weights, run, "5").image[..., 0] - expected.mask
    ).abs().max() < 1.01 / 255
    report = json.loads(run.outputs["6"]["text"][0])
    assert report == expected.as_dict() and report["provider"] == "CPU" and report["why"]
    run = comfyui_with_weights.run(graph(comfyui_with_weights, background="color", color="#ff8800"))
    over = view(comfyui_with_weights, run, "3")
    assert over.alpha is None
    assert (over.image - expected.over(matting.color("#ff8800"))).abs().max() < 1.01 / 255


@pytest.mark.comfyui
def test_the_next_nodes_take_what_is_transparent(comfyui_with_weights: ComfyUI) -> None:
    made = graph(comfyui_with_weights)
    made |= {
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
    run = comfyui_with_weights.run(made)
    assert view(comfyui_with_weights, run, "9").image.shape == (1, 256, 256, 3)
    shown = view(comfyui_with_weights, run, "10").image
    assert shown[0, 0, 0].max() == 0, "nothing of the background that was taken out"


@pytest.mark.comfyui
def test_the_endpoint_cuts_out_with_what_is_there(
    example, comfyui_with_weights: ComfyUI, remover: Remover
) -> None:
    asked = json.loads((ROOT / "workflows" / "api" / "remove-background.json").read_text())
    asked["1"]["inputs"]["image"] = comfyui_with_weights.upload(EXAMPLES / "coffee.png")
    run = comfyui_with_weights.run(asked)
    results = {
        node["inputs"].get("name"): key
        for key, node in asked.items()
        if "Result" in node["class_type"]
    }
    layered, expected = (
        view(comfyui_with_weights, run, results["image"]),
        remover.cut_out(example("coffee")),
    )
    assert layered.alpha is not None and (layered.alpha - expected.mask).abs().max() < 1.01 / 255
    assert (
        view(comfyui_with_weights, run, results["mask"]).image[..., 0] - expected.mask
    ).abs().max() < 1.01 / 255
    assert json.loads(run.outputs[results["report"]]["text"][0])["model"] == "u2netp"
    assert comfyui_with_weights.get("/artmancer/status")["rembg"] == ["u2netp"]


@pytest.mark.comfyui
def test_the_model_is_kept_until_memory_is_freed(comfyui_with_weights: ComfyUI) -> None:
    comfyui_with_weights.free()
    assert loadings(comfyui_with_weights.run(graph(comfyui_with_weights, color="red"))) == 1
    assert loadings(comfyui_with_weights.run(graph(comfyui_with_weights, color="blue"))) == 0
    comfyui_with_weights.free()
    assert loadings(comfyui_with_weights.run(graph(comfyui_with_weights, color="blue"))) == 1


@pytest.mark.comfyui
def test_the_node_says_what_is_missing_or_wrong(comfyui_with_weights: ComfyUI) -> None:
    for inputs, said in (
        ({"model": "birefnet-general"}, "There is no birefnet-general.onnx in"),
        ({"background": "color", "color": "octarine"}, "The color is 'octarine'"),
    ):
        run = comfyui_with_weights.run(graph(comfyui_with_weights, **inputs))
        assert (
            run.outcome == "execution_error" and said in run.events[-1]["data"]["exception_message"]
        )


@pytest.mark.comfyui
def test_the_node_can_be_cancelled_within_alpha_matting(comfyui_with_weights: ComfyUI) -> None:
    def cancel(event: Event) -> str | None:
        node = event["type"] == "executing" and event["data"]["node"] == "2"
        return "/interrupt" if node else None

    run = comfyui_with_weights.run(graph(comfyui_with_weights, alpha_matting=True), on_event=cancel)
    assert run.outcome == "execution_interrupted"
    run = comfyui_with_weights.run(graph(comfyui_with_weights, alpha_matting=True))
    assert run.outcome == "execution_success"


LISTED = """
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


@pytest.mark.comfyui
def test_weights_in_a_folder_of_the_users_own_are_found_too(
    comfyui: ComfyUI, tmp_path: Path
) -> None:
    (tmp_path / "mine" / "cutters").mkdir(parents=True)
    (tmp_path / "mine" / "cutters" / "birefnet-portrait.onnx").touch()
    config = tmp_path / "extra_model_paths.yaml"
    config.write_text(f"mine:\n  base_path: {tmp_path / 'mine'}\n  rembg: cutters\n")
    command = [
        sys.executable,
        "-c",
        LISTED,
        str(comfyui_folder()),
        str(ROOT),
        str(tmp_path),
        str(config),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kind, options = json.loads(done.stdout.splitlines()[-1])
    assert options["default"] == "birefnet-portrait"
    assert options.get("options", kind)[:2] == ["auto", "birefnet-portrait"]
