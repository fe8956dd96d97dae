"""`artmancer batch`: many photos, each once, whatever happens on the way."""

import csv
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from support.gateway import FakeHost, Served, settings
from support.paths import EXAMPLES, ROOT
from support.small_disk import read_only, remount, small_disk

from artmancer import cli, images, mask_ops
from artmancer.batch import gallery
from artmancer.batch.photos import DEFAULT_MASK_PATTERN, Photo, read_photos
from artmancer.batch.results_file import ResultsFile, locked
from artmancer.batch.run import Edited, Run
from artmancer.batch.sorting import sort_into_folders
from artmancer.errors import ArtMancerError

Entries = dict[str, dict[str, Any]]


def save_photo(path: Path, seed: int = 0, size: tuple[int, int] = (96, 80)) -> None:
    """Write a photo of soft noise with a bright square, and its mask beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(95, 105, (12, 16, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    box = (40, 30, 56, 46)
    photo.paste("white", box)
    photo.save(path)
    mask = Image.new("L", size)
    mask.paste(255, (38, 28, 58, 48))
    mask.save(path.with_name(f"{path.stem}_mask.png"))


def batch(*arguments: object) -> int:
    return cli.main(["batch", *map(str, arguments)])


def removal(source: Path, out: Path, *more: object) -> int:
    return batch(source, "-o", out, "--task", "removal", *more)


def entries_of(out: Path) -> Entries:
    """Return the lines of results.jsonl by photo; expect one for each photo."""
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    entries = {line["photo"]: line for line in lines}
    assert len(entries) == len(lines)
    return entries


def summary(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two photos of odd names and their masks."""
    save_photo(tmp_path / "in" / "a [1] photo*.png", 1)
    save_photo(tmp_path / "in" / "дом" / "café.jpg", 2)
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "there is no 'attic_mask.*' beside 'attic.png'"),
        (("--masks", "{stem}-m.png"), "there is no 'attic-m.png' beside 'attic.png'"),
        (("--masks", "none"), "--masks is none"),
    ],
)
def test_a_photo_without_a_mask_names_the_file_that_was_expected(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: Any, expected: str
) -> None:
    below = folder / "house"
    save_photo(below / "attic.png")
    (below / "attic_mask.png").unlink()
    assert removal(below, tmp_path / "out", *options) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "not edited" in line]
    assert line.startswith("1/1 attic.png: not edited. A mask is needed for removal, and ")
    assert expected in line and "--masks object" in line


def test_a_row_without_a_mask_names_the_field(tmp_path: Path) -> None:
    save_photo(tmp_path / "attic.png")
    (tmp_path / "list.csv").write_text("input_image,task_type\nattic.png,removal\n")
    assert batch(tmp_path / "list.csv", "-o", tmp_path / "out") == 1
    (entry,) = entries_of(tmp_path / "out").values()
    assert entry["error"]["error_type"] == "mask_missing"
    assert "its row has no mask_image" in entry["error"]["detail"]


def test_each_photo_of_a_folder_is_edited_under_its_mask_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert removal(folder, out) == 0
    entries = entries_of(out)
    assert sorted(entries) == ["a [1] photo*.png", "дом/café.jpg"]
    for name, entry in entries.items():
        photo = images.load(folder / name).image
        mask = images.load_mask((folder / name).with_name(f"{Path(name).stem}_mask.png"))
        result = images.load(out / entry["output"]).image
        outside = mask_ops.feather(mask, 16) == 0
        assert torch.equal(result[outside], photo[outside])
        assert result[mask > 0].mean() < photo[mask > 0].mean() - 0.1, "the white square is gone"
        assert entry["report"]["editor"] == "draft/removal"
        assert (out / entry["verdict"] / Path(entry["output"]).relative_to("edited")).is_symlink()
    assert "2 photos: 2 edited (2 good)" in capsys.readouterr().out


def test_results_inside_the_folder_of_photos_are_no_photos(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert removal(folder, folder / "out", "--json") == 0
    assert removal(folder, folder / "out", "--json") == 0
    assert summary(capsys)["photos"] == 2


@pytest.mark.parametrize("pattern", ["{name}_mask.png", "{stem", "/masks/*"])
def test_a_pattern_that_is_none_is_refused(
    folder: Path, tmp_path: Path, pattern: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert removal(folder, tmp_path / "out", "--masks", pattern) == 1
    assert f"'{pattern}' is no pattern" in capsys.readouterr().err


@pytest.mark.slow
def test_a_second_run_edits_what_is_missing_changed_or_failed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for number in range(3, 6):
        save_photo(folder / f"{number}.png", number)
    (folder / "broken.png").write_bytes(b"not an image")
    shutil.copy(folder / "3_mask.png", folder / "broken_mask.png")
    assert removal(folder, out, "--json") == 1
    assert summary(capsys)["errors"] == 1
    first = entries_of(out)
    (out / first["3.png"]["output"]).unlink()
    save_photo(folder / "4.png", 14)
    # Copied, and of another time: the same photo.
    os.utime(folder / "5.png", (1, 1))
    save_photo(folder / "broken.png", 6)
    assert removal(folder, out, "--json") == 0
    assert summary(capsys)["unchanged"] == 3
    second = entries_of(out)
    redone = {name for name in second if second[name] != first[name]}
    assert redone == {"3.png", "4.png", "broken.png"}
    assert removal(folder, out, "--json") == 0
    assert summary(capsys)["edited"] == 0
    assert removal(folder, out, "--json", "--feather", 8) == 0
    assert summary(capsys)["edited"] == 6, "another setting is another result"


@pytest.mark.slow
def test_a_list_has_settings_for_each_photo(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    photo, mask = "in/a [1] photo*.png", "in/a [1] photo*_mask.png"
    rows = [
        {"input_image": photo, "mask_image": mask, "seed": 3},
        {"input_image": photo, "mask_image": mask, "seed": "4", "task_type": "removal"},
        {"input_image": photo, "prompt": "warmer, please", "task_type": "white-balance"},
        {"input_image": photo, "mask_image": mask, "steps": 3},
        {"input_image": photo, "mask_image": mask, "seed": -1},
        {"input_image": "in/gone.png"},
    ]
    with (tmp_path / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    expected = tmp_path / "expected.png"
    files = [tmp_path / photo, "--mask", tmp_path / mask, "--task", "removal"]
    assert cli.main(["edit", *map(str, files), "--seed", "4", "-o", str(expected)]) == 0
    for name in ("list.csv", "list.jsonl"):
        assert batch(tmp_path / name, "-o", out / name) == 1
        entries = list(entries_of(out / name).values())
        assert len(entries) == 6
        by_photo = entries_of(out / name)
        second = by_photo[f"{photo} (2)"]
        assert (out / name / second["output"]).read_bytes() == expected.read_bytes()
        assert second["seed"] == 4
        assert by_photo[f"{photo} (3)"]["report"]["variant"] == "white_balance"
        errors = [by_photo[key]["error"]["detail"] for key in (f"{photo} (4)", f"{photo} (5)")]
        assert "no field 'steps'" in errors[0]
        assert "seed: expected 0" in errors[1]
        assert "does not exist" in by_photo["in/gone.png"]["error"]["detail"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "x"}\n', "Row 1 of list.jsonl has no input_image"),
        ("[1]\n", "an object in line 1"),
        ('{"input_image": \n', "JSON in line 1"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "list.jsonl").write_text(content)
    with pytest.raises(ArtMancerError, match=message):
        read_photos(tmp_path / "list.jsonl", tmp_path / "out", None, ".png")


def test_results_have_their_own_paths_below_the_folder(tmp_path: Path) -> None:
    names = [
        "a.png",
        "A.jpg",
        "a.jpg",
        "../../etc/x.png",
        "/root/x.png",
        "https://h.org/p/q.jpg?s=1",
    ]
    rows = [json.dumps({"input_image": name}) for name in names]
    (tmp_path / "list.jsonl").write_text("\n".join(rows))
    photos = read_photos(tmp_path / "list.jsonl", tmp_path / "out", None, ".png")
    outputs = [photo.output for photo in photos]
    assert len({str(output).lower() for output in outputs}) == len(names)
    assert all(output.parts[0] == "edited" and ".." not in output.parts for output in outputs)
    assert outputs[-1] == PurePosixPath("edited/h.org/p/q.png")


def test_masks_are_no_photos(folder: Path) -> None:
    names = [
        photo.name for photo in read_photos(folder, folder / "out", DEFAULT_MASK_PATTERN, ".png")
    ]
    assert names == ["a [1] photo*.png", "дом/café.jpg"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{stem}_mask.*", ("a_mask.png", "a [1]_mask.PNG", "ab_mask.webp")),
        ("mask-{stem}.png", ("mask-a.png", "mask-a [1].png", "mask-ab.png")),
        ("*{stem}-?.png", ("xa-1.png", "a [1]-2.png", "y ab-3.png")),
        ("shared.png", ("shared.png",) * 3),
        ("../masks/{stem}.*", ("../masks/a.png", "../masks/a [1].jpg", "../masks/ab.png")),
    ],
)
def test_a_mask_is_found_by_its_pattern(
    tmp_path: Path, pattern: str, names: tuple[str, ...]
) -> None:
    photos = ("a.jpg", "a [1].jpg", "ab.jpg")
    for name in (*photos, *names, "a.txt"):
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "masks").mkdir(exist_ok=True)
    found = read_photos(tmp_path / "in", tmp_path / "out", pattern, ".png")
    masks = {photo.name: photo.sources.get("mask_image") for photo in found}
    expected = dict(zip(photos, names, strict=True))
    assert {name: Path(str(masks[name])).resolve() for name in photos} == {
        name: (tmp_path / "in" / mask).resolve() for name, mask in expected.items()
    }
    assert len(found) == 3


def test_each_folder_is_listed_a_few_times_at_most(tmp_path: Path, monkeypatch) -> None:
    for number in range(200):
        (tmp_path / f"{number}.png").touch()
        (tmp_path / f"{number}_mask.png").touch()
    listed: list[object] = []
    for name in ("listdir", "scandir"):
        original = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda path, original=original: listed.append(path) or original(path)
        )
    assert len(read_photos(tmp_path, tmp_path / "out", DEFAULT_MASK_PATTERN, ".png")) == 200
    assert len(listed) < 10


def test_the_main_object_of_each_photo_can_be_the_mask(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    disc = np.hypot(*np.mgrid[-60:60, -80:80]) < 30
    Image.fromarray(np.where(disc[..., None], (200, 40, 40), (90, 120, 90)).astype(np.uint8)).save(
        tmp_path / "in" / "ball.png"
    )
    assert removal(tmp_path / "in", tmp_path / "out", "--masks", "object") == 0
    result = np.asarray(Image.open(tmp_path / "out" / "edited" / "ball.png"))
    assert np.abs(result[disc] - (90, 120, 90)).mean() < 8


def test_images_come_from_urls_and_leave_no_files(tmp_path: Path) -> None:
    save_photo(tmp_path / "served" / "photo.png")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        rows = [
            {"input_image": {"url": f"{url}/photo.png"}, "mask_image": f"{url}/photo_mask.png"},
            {"input_image": f"{url}/gone.png", "mask_image": f"{url}/photo_mask.png"},
        ]
        (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert removal(tmp_path / "list.jsonl", tmp_path / "out") == 1
        server.shutdown()
    good, gone = entries_of(tmp_path / "out").values()
    if good["error"]:
        good, gone = gone, good
    assert good["verdict"] == "good"
    assert gone["error"]["error_type"] == "download_failed"
    assert not list((tmp_path / "out" / ".artmancer").glob("download*"))


def test_two_runs_into_one_folder_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / ".artmancer").mkdir(parents=True)
    with FileLock(out / ".artmancer" / "lock"):
        assert removal(folder, out) == 1
    assert "Another run writes" in capsys.readouterr().err
    assert removal(folder, out) == 0


def test_a_read_only_folder_of_photos_is_enough(folder: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert removal(folder, tmp_path / "out") == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_last_line_that_was_cut_off_is_dropped(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert removal(folder, out) == 0
    whole = (out / "results.jsonl").read_bytes()
    (out / "results.jsonl").write_bytes(whole[:-40])
    assert removal(folder, out) == 0
    assert len(entries_of(out)) == 2
    (out / "results.jsonl").write_text("{}\n")
    with pytest.raises(ArtMancerError, match=r"Line 1 of .* is damaged"):
        ResultsFile(out)


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path, monkeypatch) -> None:
    results = ResultsFile(tmp_path)
    results.add({"photo": "a", "status": "done"})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        results.add({"photo": "b", "status": "done"})
    monkeypatch.undo()
    assert list(ResultsFile(tmp_path).entries) == ["a"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a small disk of its own."""
    with small_disk(tmp_path / "disk") as folder:
        yield folder


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_one_sentence_and_the_next_run_goes_on(
    tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    for number in range(5):
        save_photo(folder / f"{number}.png", number, (640, 640))
        noise = np.random.default_rng(number).integers(0, 255, (640, 640, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    assert removal(folder, disk / "out") == 1
    message = capsys.readouterr().err.strip()
    assert message.startswith("artmancer: The disk of") and message.count("\n") == 0
    stored = entries_of(disk / "out")
    assert 0 < len(stored) < 5 and {entry["status"] for entry in stored.values()} == {"done"}
    assert all(images.load(disk / "out" / entry["output"]) for entry in stored.values())
    assert len(list((disk / "out" / "edited").iterdir())) <= len(stored) + 1
    assert remount(disk, "size=64M")
    assert removal(folder, disk / "out", "--json") == 0
    assert summary(capsys)["unchanged"] == len(stored)
    assert len(entries_of(disk / "out")) == 5


class Disturber:
    """A worker for which something happens to the folder of results at its third edit."""

    jobs = 1

    def __init__(self, happen: Callable[[], Any]) -> None:
        self.edits = 0
        self.happen = happen

    def prepare(self, photo: Photo, paths: Mapping[str, Path]) -> Path:
        return paths["input_image"]

    def edit(self, photo: Photo, prepared: Path, check: Callable[[], None]) -> Edited:
        self.edits += 1
        if self.edits == 3:
            self.happen()

        def save(path: Path) -> None:
            with images.whole_file(path) as partial:
                shutil.copy(prepared, partial)

        return Edited(save, {"verdict": "good", "verdict_reasons": []})


@pytest.mark.parametrize("what", ["removed", "made read-only", "replaced"])
def test_a_folder_that_takes_no_more_results_ends_the_run(
    many: Path, tmp_path: Path, disk: Path, what: str
) -> None:
    out = disk / "out"
    photos = read_photos(many, out, DEFAULT_MASK_PATTERN, ".png")

    def run(happen: Callable[[], Any]) -> Disturber:
        worker = Disturber(happen)
        with locked(out) as work:
            Run(worker, ResultsFile(out), work, lambda photo: {}, lambda *_: None).edit(photos)
        return worker

    def remove() -> None:
        # At once, since a result may be written at the same time.
        out.rename(disk / "elsewhere")
        if what == "replaced":
            out.mkdir()

    if what == "made read-only":
        with (
            read_only(out) as make_read_only,
            pytest.raises(ArtMancerError, match="cannot be written to any more"),
        ):
            run(make_read_only)
        assert {entry["status"] for entry in entries_of(out).values()} == {"done"}
    else:
        with pytest.raises(ArtMancerError, match="was removed"):
            run(remove)
        assert not list(out.rglob("*.*"))
    run(lambda: None)
    assert len(entries_of(out)) == 12


def test_a_second_ctrl_c_ends_the_edits_that_run(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    photos = read_photos(many, out, DEFAULT_MASK_PATTERN, ".png")
    runs: list[Run] = []

    class Endless(Disturber):
        def edit(self, photo: Photo, prepared: Path, check: Callable[[], None]) -> Edited:
            if self.edits:
                # As the command does at each Ctrl-C.
                runs[0].stop()
                check()
                runs[0].stop()
                while True:
                    check()
            return super().edit(photo, prepared, check)

    with locked(out) as work:
        results = ResultsFile(out)
        run = Run(Endless(lambda: None), results, work, lambda photo: {}, lambda *_: None)
        runs.append(run)
        run.edit(photos)
    assert run.tally.left == 11 and run.tally.errors == 0
    assert [entry["status"] for entry in entries_of(out).values()] == ["done"]


def test_links_follow_the_verdict_and_a_persons_own_file_stays(tmp_path: Path) -> None:
    target = tmp_path / "edited" / "a.png"
    target.parent.mkdir()
    target.write_text("a")
    name = PurePosixPath("b", "a.png")
    sort_into_folders(tmp_path, [(name, "look", target)])
    assert (tmp_path / "look" / "b" / "a.png").read_text() == "a"
    (tmp_path / "look" / "note.txt").write_text("mine")
    sort_into_folders(tmp_path, [(name, "good", target)])
    assert (tmp_path / "good" / "b" / "a.png").read_text() == "a"
    assert [path.name for path in (tmp_path / "look").rglob("*")] == ["note.txt"]


def start(source: Path, out: Path) -> "subprocess.Popen[str]":
    """Start `artmancer batch` as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "artmancer", "batch", source, "-o", out, "--task", "removal"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with twelve photos."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(12):
        save_photo(folder / f"{number}.png", number)
    return folder


@pytest.mark.slow
def test_a_run_that_is_killed_anywhere_loses_nothing_and_does_nothing_twice(
    many: Path, tmp_path: Path
) -> None:
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    assert removal(many, undisturbed) == 0
    draw = random.Random(0)
    for wanted in (2, 5, 9):
        process = start(many, out)
        assert process.stdout
        done = len(entries_of(out)) if (out / "results.jsonl").exists() else 0
        for _ in range(wanted - done):
            process.stdout.readline()
        time.sleep(draw.uniform(0, 0.2))
        process.kill()
        process.communicate()
    assert removal(many, out) == 0
    entries = entries_of(out)
    assert len(entries) == 12
    for entry in entries.values():
        name = entry["output"]
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes()
    assert sorted(path.name for path in (out / "edited").iterdir()) == sorted(
        Path(entry["output"]).name for entry in entries.values()
    )


@pytest.mark.slow
def test_ctrl_c_ends_after_the_photos_in_work_and_the_next_run_goes_on(
    many: Path, tmp_path: Path
) -> None:
    process = start(many, tmp_path / "out")
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 130
    assert "run the command again to go on" in output
    assert "Ctrl-C again" in errors
    done = entries_of(tmp_path / "out")
    assert 1 <= len(done) < 12
    assert {entry["status"] for entry in done.values()} == {"done"}
    assert removal(many, tmp_path / "out") == 0
    assert len(entries_of(tmp_path / "out")) == 12


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway in front of a ComfyUI that only pretends to edit."""
    folder = tmp_path_factory.mktemp("gateway")
    with Served(settings(folder, comfyui_url=FakeHost().url)) as gateway:
        yield gateway.connected()


def test_a_gateway_edits_several_photos_at_a_time(
    gateway: Served, many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--server", gateway.url, "--jobs", 3, "--json"]
    assert removal(many, out, *options) == 0
    assert summary(capsys)["edited"] == 12
    assert {Image.open(path).size for path in (out / "edited").iterdir()} == {(96, 80)}
    assert removal(many, out, *options) == 0
    assert summary(capsys)["unchanged"] == 12


def test_a_gateway_that_does_not_answer_ends_the_run_at_once(
    many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert removal(many, tmp_path / "out", "--server", "http://127.0.0.1:9") == 1
    assert "127.0.0.1:9" in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_a_model_set_needs_a_running_comfyui(
    many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    sets = tmp_path / "models" / "artmancer"
    sets.mkdir(parents=True)
    (tmp_path / "main.py").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    model_set = {"unet": "a.safetensors", "clip": "b.safetensors", "vae": "c.safetensors"}
    (sets / "small.json").write_text(json.dumps(model_set))
    assert removal(many, tmp_path / "out", "--editor", "small") == 1
    assert "Name a running one with --comfyui-url" in capsys.readouterr().err


def test_an_option_that_a_gateway_lacks_is_refused(
    many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--server", "http://127.0.0.1:9", "--grow", 4]
    assert removal(many, tmp_path / "out", *options) == 1
    assert "--grow is no option of a gateway" in capsys.readouterr().err


def test_the_gallery_of_many_photos_is_small(tmp_path: Path, monkeypatch) -> None:
    entries = []
    for name in ("a.png", "b.png", "c.png"):
        shutil.copy(EXAMPLES / "astronaut.png", tmp_path / name)
        for stage in gallery.STAGES:
            gallery.save_thumbnail(tmp_path, name, stage, tmp_path / name)
        done = {"status": "done", "verdict": "good", "verdict_reasons": [], "report": None}
        entries.append({"photo": name, "output": name, "error": None, **done})
    whole = gallery.write_gallery(tmp_path, tmp_path, entries).stat().st_size
    monkeypatch.setattr(gallery, "MANY_PHOTOS", 2)
    page = gallery.write_gallery(tmp_path, tmp_path, entries).read_text()
    assert page.count("data:image/webp;base64,") == 6
    page_alone = len(gallery.write_gallery(tmp_path, tmp_path, []).read_text())
    assert len(page) - page_alone < 3 * 6000 < (whole - page_alone) / 3


@pytest.mark.browser
def test_the_gallery_opens_from_disk_and_sorts(browser: Any, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for number, name in enumerate(("10.png", "9.png", "</script><b>.png")):
        path = source / name.replace("/", "\N{FRACTION SLASH}")
        save_photo(path, number)
    (source / "broken.png").write_bytes(b"")
    shutil.copy(source / "9_mask.png", source / "broken_mask.png")
    assert removal(source, out) == 1
    page = browser.new_page(viewport={"width": 360, "height": 740})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto((out / "index.html").as_uri())
    assert page.locator("article").count() == 4
    assert "not edited" in page.locator("article").first.inner_text(), "the worst comes first"
    page.select_option("#order", "name")
    names = page.locator(".name").all_inner_texts()
    assert names.index("9.png") < names.index("10.png")
    page.get_by_role("button", name="good 3").click()
    assert page.locator("article").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("img").first.evaluate("image => image.decode().then(() => true)")
    assert not problems
    page.close()
