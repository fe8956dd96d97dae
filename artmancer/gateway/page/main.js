// The page: the form, the request for an edit, its progress and its result.
import * as api from "./api.js";
import * as compare from "./compare.js";
import * as jobs from "./job.js";
import { imageIn, open, toBase64 } from "./files.js";
import { Reference } from "./reference.js";
import { Stage } from "./stage.js";

/** Milliseconds until the health of a gateway that is degraded is requested again. */
const HEALTH_INTERVAL = 30_000;

/** The kinds of edits by task_type: texts for the user, the default prompt, and the tool to begin with. */
const VARIANTS = {
  removal: {
    hint: "Removes what you mark, and fills the gap.",
    legend: "What to remove",
    prompt: "remove the object",
    tool: "click",
    instructions: { click: "Click the object in the photo.", brush: "Paint over the object." },
    maskMissing: "Mark what to remove: click it in the photo, or paint over it.",
  },
  insertion: {
    hint: "Inserts an object where you mark.",
    legend: "Where to insert it",
    prompt: "insert the object",
    tool: "brush",
    instructions: { click: "Click something that it replaces.", brush: "Paint a place for it." },
    maskMissing: "Mark where the object goes: click something that it replaces, or paint a place for it.",
  },
  "white-balance": {
    hint: "Removes a color cast from what you mark, or from the whole photo.",
    legend: "Where (optional)",
    prompt: "correct the white balance",
    tool: "brush",
    instructions: {
      click: "Nothing is marked: the whole photo changes.",
      brush: "Nothing is marked: the whole photo changes.",
    },
  },
};

const byId = (id) => document.getElementById(id);
const form = byId("form");
const prompt = byId("prompt");
const stage = new Stage(showError);
const reference = new Reference(showError);

/** The image that was shown last as a result: {file, name}. */
let result = null;

/** The job that is followed: {id, upload}. `id` is null, and `upload` can be aborted, until the job is accepted. */
let running = null;

// Errors

function showError(error) {
  byId("error").textContent = error.message;
  byId("alert").classList.add("shown");
}

function clearError() {
  byId("error").textContent = "";
  byId("alert").classList.remove("shown");
}

byId("dismiss").addEventListener("click", clearError);
// A user who continues has read the message.
for (const type of ["pointerdown", "keydown"]) byId("canvas").addEventListener(type, clearError);
form.addEventListener("change", clearError);

/** Run an action, and show the user its error. */
async function attempt(action) {
  try {
    return await action();
  } catch (error) {
    showError(error);
  }
}

// The photo and the reference image: chosen, dropped or pasted

async function openPhoto(file, name) {
  stage.open(await open(file, name));
  clearError();
  byId("where").disabled = false;
  byId("photo-drop").classList.add("small", "chosen");
  byId("photo-invitation").textContent = "Change photo";
  byId("photo-hint").textContent = `${name}, ${stage.photo.width} × ${stage.photo.height}`;
  byId("canvas").setAttribute("aria-label", `Your photo, ${name}`);
}

async function openReference(file, name) {
  const image = await open(file, name);
  clearError();
  byId("reference-invitation").textContent = "Change image";
  byId("reference-hint").textContent = name;
  byId("reference-drop").classList.add("chosen");
  await reference.open(image);
}

/** Connect a zone's file input to a function that opens a file; return a function that offers it a file. */
function connectZone(zone, openFile) {
  const input = zone.querySelector("input");
  const offer = (file) => file && attempt(() => openFile(file, file.name));
  input.addEventListener("change", () => {
    const [file] = input.files;
    // Otherwise choosing the same file again would be no change.
    input.value = "";
    offer(file);
  });
  return offer;
}

const offerPhoto = connectZone(byId("photo-drop"), openPhoto);
const offerReference = connectZone(byId("reference-drop"), openReference);

function targetZone(event) {
  return byId("reference").contains(event.target) ? byId("reference-drop") : byId("photo-drop");
}

function highlightZone(target) {
  for (const zone of document.querySelectorAll(".drop")) zone.classList.toggle("over", zone === target);
}

// An image that is dropped outside the zones counts as the photo. Otherwise the browser would leave the page to show it.
addEventListener("dragover", (event) => {
  event.preventDefault();
  highlightZone(targetZone(event));
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) highlightZone(null);
});
addEventListener("drop", (event) => {
  event.preventDefault();
  highlightZone(null);
  const offer = targetZone(event) === byId("photo-drop") ? offerPhoto : offerReference;
  offer(imageIn(event.dataTransfer));
});
addEventListener("paste", (event) => {
  const file = imageIn(event.clipboardData);
  if (!file) return;
  event.preventDefault();
  if (stage.photo && variant() === "insertion") offerReference(file);
  else offerPhoto(file);
});

// The kind of edit, and the tools

const variant = () => form.elements.task.value;

const QWEN = "Qwen-Image-Edit";
const DRAFT = "Draft, without a model";

/** The editors that can be used: {value, label, variant}; `variant` is the only kind of edit it makes. */
let editors = [];

/** Offer the editors for this kind of edit, if there is a choice. The user's choice stays where it fits. */
function showEditors() {
  const select = form.elements.editor;
  const chosen = select.value;
  const fitting = editors.filter((editor) => !editor.variant || editor.variant === variant());
  select.replaceChildren(new Option("Automatic", ""), ...fitting.map(({ value, label }) => new Option(label, value)));
  if (fitting.some(({ value }) => value === chosen)) select.value = chosen;
  byId("editor-field").hidden = fitting.length < 2;
}

/** Return the editors that a gateway's health lists as usable, in the order in which "auto" chooses. */
function usableEditors({ bases, lama, model_sets: sets = [] }) {
  return [
    ...(bases.length ? [{ value: "qwen", label: QWEN }] : []),
    ...sets.filter(({ complete }) => complete).map(({ name }) => ({ value: name, label: name })),
    ...(lama ? [{ value: "lama", label: "LaMa", variant: "removal" }] : []),
    { value: "draft", label: DRAFT },
  ];
}

function showVariant() {
  const { hint, legend, prompt: defaultPrompt, tool, instructions } = VARIANTS[variant()];
  byId("task-hint").textContent = hint;
  byId("where-legend").textContent = legend;
  byId("reference").hidden = variant() !== "insertion";
  // A prompt that the user wrote stays.
  if (!prompt.value || prompt.value === prompt.defaultValue) prompt.value = defaultPrompt;
  prompt.defaultValue = defaultPrompt;
  showEditors();
  stage.guide(tool, instructions);
}

for (const choice of form.elements.task) choice.addEventListener("change", showVariant);
showVariant();

byId("next-candidate").addEventListener("click", () => stage.picker.next());
byId("undo").addEventListener("click", () => stage.undo());
byId("clear-mask").addEventListener("click", () => stage.clear());
const TEXT_FIELDS = "textarea, input:is([type=text], [type=number], [type=password])";

addEventListener("keydown", (event) => {
  const undo = (event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === "z";
  if (!undo || !stage.undoable || event.target.matches(TEXT_FIELDS)) return;
  event.preventDefault();
  stage.undo();
});

const more = byId("more");
more.addEventListener("toggle", () => {
  if (more.open) more.scrollIntoView({ block: "nearest" });
});

/** Open the section of a field with an invalid value: browsers do not open it by themselves. */
function openSection(event) {
  if (more.contains(event.target)) more.open = true;
}
// An "invalid" event does not bubble, so it is captured.
form.addEventListener("invalid", openSection, true);

// The request

/** Return the next step of the user that is missing: a message, and the element to do it with; null: none. */
function missingStep() {
  if (!stage.photo) return { message: "Choose a photo first.", element: byId("photo-input") };
  const { maskMissing, prompt: defaultPrompt } = VARIANTS[variant()];
  if (maskMissing && !stage.mask.coverage) return { message: maskMissing, element: byId("canvas") };
  if (variant() === "insertion" && !reference.image && prompt.value === defaultPrompt) {
    const message = "Choose an image of the object, or describe the object.";
    return { message, element: byId("reference-input") };
  }
  return null;
}

/** Return the body of POST /api/generate/async. */
async function requestBody() {
  const { mask, photo } = stage;
  const body = { prompt: prompt.value, input_image: await toBase64(photo.file), task_type: variant() };
  if (mask.coverage) {
    body.mask_image = await toBase64(await mask.toPng());
    if (mask.endsWithStroke) body.mask_tool_type = "brush";
  }
  if (variant() === "insertion") Object.assign(body, await reference.fields());
  for (const name of ["num_inference_steps", "true_cfg_scale", "seed", "context"]) {
    const { value } = form.elements[name];
    if (value !== "") body[name] = Number(value);
  }
  for (const name of ["negative_prompt", "input_quality", "recipe", "frame", "editor"]) {
    if (form.elements[name].value) body[name] = form.elements[name].value;
  }
  const size = form.elements.condition_size.value;
  if (size) body.condition_size = size === "crop" ? size : Number(size);
  return body;
}

// The job

/** Show the buttons that fit: Cancel while a job runs, Go otherwise. Focus moves from one to the other. */
function showRunning(text) {
  const focused = document.activeElement;
  const isRunning = Boolean(running);
  byId("go").hidden = isRunning;
  byId("again").disabled = isRunning;
  byId("progress").hidden = !isRunning;
  byId("cancel").hidden = !isRunning;
  byId("progress-text").textContent = text;
  if (isRunning && focused === byId("go")) byId("cancel").focus();
  if (!isRunning && focused === byId("cancel")) byId("go").focus();
}

function showStatus(status) {
  if (status) byId("progress").value = status.progress;
  byId("progress-text").textContent = jobs.describe(status);
}

/** Submit an edit, unless a job runs or a step is missing. */
async function go() {
  await stage.picker.settled;
  if (running) return;
  clearError();
  const step = missingStep();
  if (step) {
    showError(new Error(step.message));
    step.element.focus();
    return;
  }
  await run(async (job) => {
    const { photo } = stage;
    const { task_id: id } = await api.submit(await requestBody(), job.upload.signal);
    jobs.remember({ id, name: photo.name });
    return { id, name: photo.name, before: photo.file };
  });
}

/**
 * Follow a job to its end, and show its result.
 * @param start submits the job, or returns a job from before a reload: {id, name, before}
 */
async function run(start) {
  running = { id: null, upload: new AbortController() };
  byId("progress").value = 0;
  showRunning("Sending");
  let text = "";
  try {
    const { id, name, before } = await start(running);
    running.id = id;
    const last = await jobs.follow(id, showStatus);
    if (last.status === "done") await showResult(id, name, before);
    else jobs.forget();
    if (last.status === "error") throw new Error(last.error);
    text = jobs.describe(last);
  } catch (error) {
    if (error.name === "AbortError") text = "Cancelled";
    else showError(error);
    if (error.status === 404) jobs.forget();
  } finally {
    running = null;
    showRunning(text);
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
  // A user who did something else meanwhile keeps the focus there.
  const isWaiting = [document.body, byId("cancel")].includes(document.activeElement);
  result = { file, name };
  byId("result").hidden = false;
  byId("facts").replaceChildren();
  byId("again").hidden = !before;
  const download = byId("download");
  URL.revokeObjectURL(download.href);
  download.href = URL.createObjectURL(file);
  download.download = `${name.replace(/\.[^.]*$/, "")}-edited.png`;
  await compare.show(file, before);
  if (isWaiting) {
    byId("result-title").focus({ preventScroll: true });
    byId("result").scrollIntoView();
  }
  const { parameters_used: parameters, generation_time: seconds, model_used: model, report } = await api.result(id);
  showFacts({
    Seed: parameters.seed,
    Time: `${seconds.toFixed(1)} s`,
    Model: model,
    // A job of an earlier version has no verdict.
    ...(report.verdict && { Verdict: verdictText(report) }),
  });
}

const VERDICT_TEXTS = { good: "Good", look: "Worth a look", failed: "Failed" };

/** Describe the verdict of a report to the user. */
function verdictText({ verdict, verdict_reasons: reasons }) {
  return [reasons.length ? `${VERDICT_TEXTS[verdict]}:` : VERDICT_TEXTS[verdict], ...reasons].join(" ");
}

function showFacts(facts) {
  const rows = Object.entries(facts).map(([name, value]) => {
    const row = document.createElement("div");
    const term = document.createElement("dt");
    const description = document.createElement("dd");
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

// The gateway's health

async function showHealth() {
  const line = byId("health");
  let degraded = true;
  let isRefused = false;
  try {
    const { status, reason, model_loaded: loaded, device, device_info: info } = await api.health();
    editors = usableEditors(info);
    showEditors();
    // LaMa edits only where it is chosen.
    const { label } = editors.find(({ value }) => value !== "lama");
    const hasModel = loaded || label !== DRAFT;
    const name = label === DRAFT ? QWEN : label;
    const editor = hasModel ? `Editor: ${name} on ${device}.` : "Editor: draft. No model is installed.";
    degraded = status === "degraded";
    line.textContent = degraded ? `${editor} ${reason}` : editor;
    byId("prompt-hint").hidden = hasModel;
  } catch (error) {
    line.textContent = error.message;
    isRefused = Boolean(error.needsToken);
  }
  line.classList.toggle("degraded", degraded);
  // A user who closed the question for the token is not asked again until they want something.
  if (isRefused) byId("token-form").addEventListener("submit", showHealth, { once: true });
  else if (degraded) setTimeout(showHealth, HEALTH_INTERVAL);
}

showHealth();

const unfinished = jobs.remembered();
if (unfinished) run(async () => unfinished);
