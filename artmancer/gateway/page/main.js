import * as api from "./api.js";
import * as compare from "./compare.js";
import * as jobs from "./job.js";
import { open, pictureIn, toBase64 } from "./files.js";
import { Reference } from "./reference.js";
import { Stage } from "./stage.js";

const HEALTH_PAUSE = 30_000; // ms between two looks at a gateway that is not well

const TASKS = {
  removal: {
    hint: "Takes out what you mark and fills the gap.",
    where: "What to remove",
    prompt: "remove the object",
    tool: "click",
    toMark: { click: "Click the object in the photo.", brush: "Paint over the object." },
    unmarked: "Mark what to remove: click it in the photo, or paint over it.",
  },
  insertion: {
    hint: "Puts an object where you mark.",
    where: "Where to put it",
    prompt: "insert the object",
    tool: "brush",
    toMark: { click: "Click something that it replaces.", brush: "Paint a place for it." },
    unmarked: "Mark where the object goes: click something that it replaces, or paint a place for it.",
  },
  "white-balance": {
    hint: "Takes a colour cast out. Without a mark, of the whole photo.",
    where: "Where, if not everywhere",
    prompt: "correct the white balance",
    tool: "brush",
    toMark: { click: "Nothing is marked: the whole photo.", brush: "Nothing is marked: the whole photo." },
  },
};

const byId = (id) => document.getElementById(id);
const form = byId("form");
const prompt = byId("prompt");
const stage = new Stage(fail);
const reference = new Reference(fail);

let result = null; // {file, name}: what was shown last
let running = null; // {id, upload}: the job that is followed

// Failures

function fail(error) {
  byId("error").textContent = error.message;
  byId("alert").classList.add("shown");
}

function settle() {
  byId("error").textContent = "";
  byId("alert").classList.remove("shown");
}

byId("dismiss").addEventListener("click", settle);
// Whoever goes on has read it.
for (const type of ["pointerdown", "keydown"]) byId("canvas").addEventListener(type, settle);
form.addEventListener("change", settle);

/** Run what may fail in front of the person. */
async function attempt(action) {
  try {
    return await action();
  } catch (error) {
    fail(error);
  }
}

// Pictures come in

async function openPhoto(file, name) {
  stage.open(await open(file, name));
  settle();
  byId("where").disabled = false;
  byId("photo-drop").classList.add("small", "chosen");
  byId("photo-invitation").textContent = "Change photo";
  byId("photo-hint").textContent = `${name}, ${stage.photo.width} × ${stage.photo.height}`;
  byId("canvas").setAttribute("aria-label", `Your photo, ${name}`);
}

async function openReference(file, name) {
  const picture = await open(file, name);
  settle();
  byId("reference-invitation").textContent = "Change picture";
  byId("reference-hint").textContent = name;
  byId("reference-drop").classList.add("chosen");
  await reference.open(picture);
}

function receive(drop, take) {
  const input = drop.querySelector("input");
  const offer = (file) => file && attempt(() => take(file, file.name));
  input.addEventListener("change", () => {
    const [file] = input.files;
    input.value = ""; // so that the same file can be chosen again
    offer(file);
  });
  return offer;
}

const offerPhoto = receive(byId("photo-drop"), openPhoto);
const offerReference = receive(byId("reference-drop"), openReference);

function dropTarget(event) {
  return byId("reference").contains(event.target) ? byId("reference-drop") : byId("photo-drop");
}

function showDropTarget(target) {
  for (const drop of document.querySelectorAll(".drop")) drop.classList.toggle("over", drop === target);
}

// Dropped beside its zone, a picture is still the photo: the browser would leave the page to show it.
addEventListener("dragover", (event) => {
  event.preventDefault();
  showDropTarget(dropTarget(event));
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) showDropTarget(null);
});
addEventListener("drop", (event) => {
  event.preventDefault();
  showDropTarget(null);
  const offer = dropTarget(event) === byId("photo-drop") ? offerPhoto : offerReference;
  offer(pictureIn(event.dataTransfer));
});
addEventListener("paste", (event) => {
  const file = pictureIn(event.clipboardData);
  if (!file) return;
  event.preventDefault();
  if (stage.photo && task() === "insertion") offerReference(file);
  else offerPhoto(file);
});

// The task, and the tools

const task = () => form.elements.task.value;

function showTask() {
  const { hint, where, prompt: words, tool, toMark } = TASKS[task()];
  byId("task-hint").textContent = hint;
  byId("where-legend").textContent = where;
  byId("reference").hidden = task() !== "insertion";
  // What the person wrote stays.
  if (!prompt.value || prompt.value === prompt.defaultValue) prompt.value = words;
  prompt.defaultValue = words;
  stage.guide(tool, toMark);
}

for (const choice of form.elements.task) choice.addEventListener("change", showTask);
showTask();

byId("next-candidate").addEventListener("click", () => stage.picker.next());
byId("undo").addEventListener("click", () => stage.undo());
byId("clear-mask").addEventListener("click", () => stage.clear());
addEventListener("keydown", (event) => {
  const undo = (event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === "z";
  if (!undo || !stage.undoable || event.target.matches("textarea, input[type=text], input[type=number]")) return;
  event.preventDefault();
  stage.undo();
});

byId("more").addEventListener("toggle", ({ target }) => target.open && target.scrollIntoView({ block: "nearest" }));
// A browser does not open it to show which field is wrong.
form.addEventListener("invalid", (event) => byId("more").contains(event.target) && (byId("more").open = true), true);

// The request

/** What still has to be done before a request can be made: the sentence, and where to do it. */
function missing() {
  if (!stage.photo) return ["Choose a photo first.", byId("photo-input")];
  const { unmarked, prompt: words } = TASKS[task()];
  if (unmarked && !stage.mask.coverage) return [unmarked, byId("canvas")];
  if (task() === "insertion" && !reference.picture && prompt.value === words) {
    return ["Choose a picture of the object, or describe it in words.", byId("reference-input")];
  }
  return null;
}

/** The body of POST /api/generate/async. */
async function request() {
  const { mask, photo } = stage;
  const body = { prompt: prompt.value, input_image: await toBase64(photo.file), task_type: task() };
  if (mask.coverage) {
    body.mask_image = await toBase64(await mask.toPng());
    if (mask.brushed) body.mask_tool_type = "brush";
  }
  if (task() === "insertion") Object.assign(body, await reference.fields());
  for (const name of ["num_inference_steps", "true_cfg_scale", "seed"]) {
    const { value, defaultValue } = form.elements[name];
    if (value !== "" && value !== defaultValue) body[name] = Number(value);
  }
  for (const name of ["negative_prompt", "input_quality"]) {
    if (form.elements[name].value) body[name] = form.elements[name].value;
  }
  return body;
}

// The job

function showRunning(words) {
  const focused = document.activeElement;
  byId("go").hidden = byId("again").disabled = Boolean(running);
  byId("progress").hidden = byId("cancel").hidden = !running;
  byId("progress-text").textContent = words;
  if (running && focused === byId("go")) byId("cancel").focus();
  if (!running && focused === byId("cancel")) byId("go").focus();
}

function showStatus(status) {
  byId("progress").value = status?.progress ?? byId("progress").value;
  byId("progress-text").textContent = jobs.describe(status);
}

async function go() {
  await stage.picker.settled;
  if (running) return;
  settle();
  const lack = missing();
  if (lack) {
    const [sentence, place] = lack;
    fail(new Error(sentence));
    place.focus();
    return;
  }
  await run(async (job) => {
    const { photo } = stage;
    const { task_id: id } = await api.submit(await request(), job.upload.signal);
    jobs.remember({ id, name: photo.name });
    return { id, name: photo.name, before: photo.file };
  });
}

/** Follow a job to its end, and show what came of it. */
async function run(start) {
  running = { id: null, upload: new AbortController() };
  byId("progress").value = 0;
  showRunning("Sending");
  let words = "";
  try {
    const { id, name, before } = await start(running);
    running.id = id;
    const last = await jobs.follow(id, showStatus);
    if (last.status === "done") await showResult(id, name, before);
    else jobs.forget();
    if (last.status === "error") throw new Error(last.error);
    words = jobs.describe(last);
  } catch (error) {
    if (error.name === "AbortError") words = "Cancelled";
    else fail(error);
    if (error.status === 404) jobs.forget();
  } finally {
    running = null;
    showRunning(words);
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(go);
});

byId("cancel").addEventListener("click", () => {
  if (running.id) attempt(() => api.cancel(running.id));
  else running.upload.abort();
});

// The result

async function showResult(id, name, before) {
  byId("cancel").hidden = true;
  const file = await api.resultImage(id);
  const waiting = [document.body, byId("cancel")].includes(document.activeElement);
  result = { file, name };
  byId("result").hidden = false;
  byId("facts").replaceChildren();
  byId("again").hidden = !before;
  const download = byId("download");
  URL.revokeObjectURL(download.href);
  download.href = URL.createObjectURL(file);
  download.download = `${name.replace(/\.[^.]*$/, "")}-edited.png`;
  await compare.show(file, before);
  if (waiting) {
    byId("result-title").focus({ preventScroll: true });
    byId("result").scrollIntoView();
  }
  const { parameters_used: used, generation_time: seconds, model_used: model } = await api.result(id);
  showFacts({ Seed: used.seed, Time: `${seconds.toFixed(1)} s`, Model: model });
}

function showFacts(facts) {
  const rows = Object.entries(facts).map(([name, value]) => {
    const row = document.createElement("div");
    const [term, description] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = name;
    description.textContent = value;
    row.append(term, description);
    return row;
  });
  byId("facts").replaceChildren(...rows);
}

byId("further").addEventListener("click", () =>
  attempt(async () => {
    await openPhoto(result.file, result.name);
    scrollTo(0, 0);
    byId("canvas").focus({ preventScroll: true });
  }),
);

byId("again").addEventListener("click", () => {
  form.elements.seed.value = "";
  form.requestSubmit();
});

// The gateway

async function showHealth() {
  const line = byId("health");
  try {
    const { status, reason, model_loaded: loaded, device, device_info: { bases } } = await api.health();
    const model = loaded || bases.length > 0;
    const editor = model ? `Editor: Qwen-Image-Edit on ${device}.` : "Editor: draft, for there is no model.";
    line.textContent = status === "degraded" ? `${editor} ${reason}` : editor;
    byId("prompt-hint").hidden = model;
    line.classList.toggle("degraded", status === "degraded");
    if (status === "degraded") setTimeout(showHealth, HEALTH_PAUSE);
  } catch (error) {
    line.textContent = error.message;
    line.classList.add("degraded");
    setTimeout(showHealth, HEALTH_PAUSE);
  }
}

showHealth();

const unfinished = jobs.remembered();
if (unfinished) run(async () => unfinished);
