"""Clients that other programs generate from /openapi.json edit a photo on a running gateway."""

import base64
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.gateway import WAIT_TIMEOUT, FakeHost, Served, decoded, encoded, settings, until
from support.paths import BUILD, EXAMPLES

PYTHON_GENERATOR = "openapi-python-client==0.29.1"
TYPESCRIPT_GENERATOR = ["openapi-typescript@7", "typescript@5", "@types/node@20"]

INSTALL_TIMEOUT = 300.0
"""Longest installation in seconds."""

ENDED = ("done", "error", "cancelled")
"""States of a job that has ended."""

PROGRAM = """\
import { readFileSync, writeFileSync } from "node:fs";
import type { components, paths } from "./schema.js";

type Edit = components["schemas"]["GenerateRequest"];
type Responses = paths["/api/generate/async"]["post"]["responses"];
type Accepted = Responses[202]["content"]["application/json"];
type Status = components["schemas"]["JobStatus"];
type Answer = components["schemas"]["GenerateAnswer"];

const key = crypto.randomUUID();
const [gateway, image, mask, output] = process.argv.slice(2);
const base64 = (path: string) => readFileSync(path).toString("base64");

async function call<Result>(path: string, body?: Edit): Promise<Result> {
  const headers = { "Content-Type": "application/json", "Idempotency-Key": key };
  const options = body ? { method: "POST", headers, body: JSON.stringify(body) } : {};
  const answer = await fetch(gateway + path, options);
  if (!answer.ok) throw new Error(await answer.text());
  return (await answer.json()) as Result;
}

const pictures = { input_image: base64(image), mask_image: base64(mask) };
const edit: Edit = { prompt: "remove", task_type: "removal", seed: 7, ...pictures };
const linked: Edit = { ...edit, input_image: { url: "https://images.example.com/a.png" } };
// @ts-expect-error The types know which fields are required,
const incomplete: Edit = { prompt: "remove" };
// @ts-expect-error and which values a field takes.
const wrong: Edit = { ...edit, task_type: "upscale" };

// @ts-expect-error An image is a text or an object with a URL.
const number: Edit = { ...edit, input_image: 5 };

const { task_id } = await call<Accepted>("/api/generate/async", edit);
const again = await call<Accepted>("/api/generate/async", edit);
if (again.task_id !== task_id) throw new Error("The request made two jobs.");
for (;;) {
  const { status, error } = await call<Status>(`/api/generate/status/${task_id}`);
  if (status === "done") break;
  if (status === "error" || status === "cancelled") throw new Error(`${status}: ${error}`);
  await new Promise((resolve) => setTimeout(resolve, 100));
}
const result = await call<Answer>(`/api/generate/result/${task_id}`);
writeFileSync(output, JSON.stringify({ image: result.image, seed: result.parameters_used.seed }));
"""
"""A program in TypeScript that edits a photo: GATEWAY IMAGE MASK OUTPUT."""


def run(*command: str | Path, timeout: float = WAIT_TIMEOUT, **options: Any) -> str:
    """Run a command and return its output; the test fails if the command does."""
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=timeout, **options
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def install(*command: str | Path) -> None:
    """Run a command that installs packages; skip the test where no registry is at hand."""
    try:
        run(*command, timeout=INSTALL_TIMEOUT)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"cannot be installed: {str(error)[-500:]}")


@pytest.fixture(scope="module")
def gateway(running_fake: FakeHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway; the document is the same for each kind of it."""
    data = tmp_path_factory.mktemp("gateway")
    with Served(settings(data, comfyui_url=running_fake.url)) as served:
        yield served.connected()


@pytest.fixture(scope="module")
def document(gateway: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the live OpenAPI document."""
    path = tmp_path_factory.mktemp("openapi") / "openapi.json"
    path.write_text(gateway.http.get("/openapi.json").text)
    return path


@pytest.fixture(scope="module")
def python_client(document: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a package that openapi-python-client has generated."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.skip("there is no uv to install openapi-python-client with")
    generator = [uv, "tool", "run", "--quiet", "--from", PYTHON_GENERATOR, "openapi-python-client"]
    install(*generator, "--version")
    folder = tmp_path_factory.mktemp("client")
    config = folder / "config.yaml"
    # The generator knows binary responses by one content type alone.
    config.write_text(
        "post_hooks: []\n"
        "content_type_overrides:\n"
        "  image/png: application/octet-stream\n"
        "  image/jpeg: application/octet-stream\n"
        "  application/zip: application/octet-stream\n"
    )
    options = ["--meta", "none", "--fail-on-warning", "--config", config]
    output = folder / "generated_client"
    run(*generator, "generate", "--path", document, *options, "--output-path", output)
    sys.path.insert(0, str(folder))
    yield output.name
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def typescript() -> Path:
    """The folder of the commands openapi-typescript and tsc."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("there is no npm to install openapi-typescript with")
    folder = BUILD / "typescript"
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--no-audit", "--no-fund", "--no-package-lock", "--prefix", folder]
    install(npm, "install", *options, *TYPESCRIPT_GENERATOR)
    return folder / "node_modules" / ".bin"


@pytest.mark.slow
def test_a_generated_python_client_edits_a_photo(gateway: Served, python_client: str) -> None:
    def load(name: str) -> Any:
        return importlib.import_module(f"{python_client}.{name}")

    client = load("client").Client(base_url=gateway.url, httpx_args={"trust_env": False})
    request = load("models").GenerateRequest(
        prompt="remove", input_image=encoded("coffee"), mask_image=encoded("coffee_mask"), seed=7
    )
    accepted = load("api.edit.post_generate_async").sync(client=client, body=request)
    assert accepted.status == "queued"
    status = load("api.edit.get_generate_status_by_task_id")
    until(lambda: status.sync(accepted.task_id, client=client).status in ENDED)
    result = load("api.edit.get_generate_result_by_task_id").sync(accepted.task_id, client=client)
    assert result.success and result.parameters_used["seed"] == 7
    assert decoded(result.image).size == (600, 400)
    image = load("api.edit.get_generate_result_image_by_task_id")
    answer = image.sync_detailed(accepted.task_id, client=client)
    assert answer.content == base64.b64decode(result.image)


@pytest.mark.slow
def test_a_generated_python_client_reads_an_error(gateway: Served, python_client: str) -> None:
    def load(name: str) -> Any:
        return importlib.import_module(f"{python_client}.{name}")

    client = load("client").Client(base_url=gateway.url, httpx_args={"trust_env": False})
    failure = load("api.edit.get_generate_status_by_task_id").sync("unknown", client=client)
    assert failure.error_type == "not_found" and failure.detail.endswith(".")


@pytest.mark.slow
def test_a_program_with_generated_typescript_types_edits_a_photo(
    gateway: Served, document: Path, typescript: Path, tmp_path: Path
) -> None:
    run(typescript / "openapi-typescript", document, "--output", tmp_path / "schema.d.ts")
    (tmp_path / "edit.mts").write_text(PROGRAM)
    options = ["--strict", "--target", "es2022", "--module", "nodenext", "--skipLibCheck"]
    options += ["--types", "node", "--typeRoots", typescript.parent / "@types"]
    run(typescript / "tsc", *options, "--noEmit", tmp_path / "edit.mts", cwd=tmp_path)
    run(typescript / "tsc", *options, tmp_path / "edit.mts", cwd=tmp_path)
    paths = [EXAMPLES / "coffee.png", EXAMPLES / "coffee_mask.png", tmp_path / "result.json"]
    run("node", tmp_path / "edit.mjs", gateway.url, *paths)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["seed"] == 7 and decoded(result["image"]).size == (600, 400)
