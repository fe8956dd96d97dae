// The page: connects the form, the photo, the jobs and the history.
import * as api from "./api.js";
import * as health from "./health.js";
import * as jobs from "./job.js";
import * as result from "./result.js";
import * as settings from "./settings.js";
import * as store from "./store.js";
import { imageIn, open, toBase64 } from "./files.js";
import { Reference } from "./reference.js";
import { Stage } from "./stage.js";
import { Strip } from "./strip.js";
import { VARIANTS } from "./variants.js";

/** Milliseconds without a change after which the state is saved. */
const SAVE_DELAY = 300;

/** The model of the Space Shuttle in the sample photo, as strokes of the brush. */
const SAMPLE_MARKS = [
  { points: [[415, 14], [415, 60], [415, 110]], width: 90, erase: false },
  {
    points: [[384, 130], [380, 215], [384, 262], [446, 262], [452, 190], [446, 130], [415, 150], [415, 220]],
    width: 60,
    erase: false,
  },
];

const byId = (id) => document.getElementById(id);
const form = byId("form");
const prompt = byId("prompt");
const stage = new Stage({ onFailure: showError, onMask: saveSoon });
const reference = new Reference(showError);
const strip = new Strip(byId("strip"), (index) => attemptOpening(() => showPicture(index)));

/**
 * The photos and results, in order. A photo has {file, name, label}; a result also {base, marks, settings, answer}:
 * the index of the picture that was edited, its marks, the form's values, and the gateway's answer.
 */
let pictures = [];

/** Index of the picture that is edited; null: there is none. */
let base = null;

/** Index of the result that lies over the picture; null: there is none. */
let shown = null;

/**
 * The job that is followed: {id, base, marks, settings, abort}. `id` is null until the job is accepted; `abort` ends
 * the sending or the following.
 */
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

/** Run an action of the user, after the restoring of the page. Show its error, and return it; null: there is none. */
async function attempt(action) {
  try {
    await restored;
    await action();
    return null;
  } catch (error) {
    showError(error);
    return error;
  }
}

/** Resolves when no image is being opened any more: to the error of one that could not be opened, or null. */
let opening = Promise.resolve(null);

/** Run an action that opens an image. An edit that is started meanwhile waits for it. */
function attemptOpening(action) {
  const opened = Promise.all([opening, attempt(action)]).then(([earlier, own]) => own ?? earlier);
  opening = opened;
  opened.then(() => {
    if (opening === opened) opening = Promise.resolve(null);
  });
}

// What a reload keeps

let saveTimer;
let isSaving = false;

/** Save the state after the present series of changes. */
function saveSoon() {
  if (!isSaving) return;
  clearTimeout(saveTimer);
  saveTimer = setTimeout(save, SAVE_DELAY);
}

function save() {
  clearTimeout(saveTimer);
  const job = running?.id ? { ...running, abort: undefined } : null;
  const state = { count: pictures.length, base, shown, marks: stage.mask.saved, settings: settings.values(), job };
  return keep(store.saveState(state));
}

/** Wait until something is stored; a browser without room for it works on, but a reload loses the work. */
async function keep(stored) {
  try {
    await stored;
  } catch {
    showError(new Error("This browser has no room to keep your work. Download your results before you leave."));
    isSaving = false;
  }
}

form.addEventListener("input", saveSoon);
form.addEventListener("change", saveSoon);
document.addEventListener("visibilitychange", () => document.hidden && isSaving && save());

/** Show what was there before a reload, and follow its job. */
async function restore() {
  let state;
  try {
    state = await store.loadState();
  } catch {
    // Some browsers have no IndexedDB in private windows: nothing is kept.
    return;
  }
  try {
    if (state) await showState(state);
  } catch (error) {
    // The gateway may be away for a moment: the work stays, and the next reload tries again.
    if (error instanceof api.Failure) return showError(error);
    // An earlier version of the page may have left it.
    await store.clear();
    location.reload();
  }
  isSaving = true;
}

async function showState(state) {
  settings.apply(state.settings);
  byId("editor").dataset.chosen = state.settings.editor;
  showVariant();
  for (let index = 0; index < state.count; index++) pictures.push(await store.loadPicture(index));
  for (const picture of pictures) await strip.add(picture);
  if (state.base !== null) await edit(state.base, state.marks);
  if (state.shown !== null) {
    // Both were stored as copies. While a result is shown, they are the same.
    pictures[state.shown].marks = stage.mask.marks;
    await showResult(state.shown);
  }
  const image = await store.loadPicture("reference");
  if (image) await openReference(image.file, image.name);
  if (state.job) run(async () => state.job.id, state.job);
}

byId("start-over").addEventListener("click", () =>
  attempt(async () => {
    clearTimeout(saveTimer);
    isSaving = false;
    await store.clear();
    location.reload();
  }),
);

// The pictures: opened, edited and compared

async function addPicture(picture) {
  const index = pictures.push(picture) - 1;
  if (isSaving) await keep(store.savePicture(index, picture));
  await strip.add(picture);
  return index;
}

/**
 * Edit a picture of the history.
 * @param {number} index
 * @param {object} [marks] as Mask.saved returns them
 * @param {object} [photo] the picture, if it is open already
 */
async function edit(index, marks, photo) {
  const { file, name } = pictures[index];
  photo ??= await open(file, name);
  base = index;
  await stage.open(photo, marks);
  hideResult();
  byId("photo-drop").classList.add("small", "chosen");
  byId("photo-invitation").textContent = "Another photo";
  byId("photo-hint").textContent = `${name}, ${photo.width} × ${photo.height}`;
  byId("sample").hidden = true;
  byId("canvas").setAttribute("aria-label", `Your photo, ${name}`);
}

/** Leave the comparison: the picture under it can be marked. */
function hideResult() {
  shown = null;
  stage.hideResult();
  byId("result").hidden = true;
  byId("where").disabled = false;
  strip.select(base);
  saveSoon();
}

/** Lay a result over the picture that it was made from, with the marks and the settings that made it. */
async function showResult(index) {
  const picture = pictures[index];
  if (base !== picture.base || stage.mask.marks !== picture.marks) {
    await edit(picture.base, { marks: picture.marks });
    settings.apply(picture.settings);
    showVariant();
  }
  shown = index;
  await stage.showResult(picture.file);
  byId("where").disabled = true;
  result.show(picture);
  byId("side").scrollTop = 0;
  strip.select(index);
  saveSoon();
}

async function showPicture(index) {
  clearError();
  if (pictures[index].answer) await showResult(index);
  else if (base !== index) await edit(index);
  else hideResult();
}

async function openPhoto(file, name, marks) {
  // Before it enters the history: the browser may be unable to show it.
  const photo = await open(file, name);
  clearError();
  await edit(await addPicture({ file, name, label: "Photo" }), marks, photo);
}

async function openReference(file, name) {
  const image = await open(file, name);
  clearError();
  byId("reference-invitation").textContent = "Change image";
  byId("reference-hint").textContent = name;
  byId("reference-drop").classList.add("chosen");
  if (isSaving) await keep(store.savePicture("reference", { file, name }));
  // An edit that is started meanwhile waits for the cut-out itself, and can be cancelled.
  reference.open(image).catch(showError);
}

byId("sample").addEventListener("click", () =>
  attemptOpening(async () => {
    const file = await (await fetch("page/sample.jpg")).blob();
    await openPhoto(file, "sample.jpg", { marks: SAMPLE_MARKS, past: [[]] });
    byId("tool-brush").click();
    byId("go").focus({ preventScroll: true });
  }),
);

byId("back").addEventListener("click", () => {
  hideResult();
  byId("canvas").focus({ preventScroll: true });
});

byId("further").addEventListener("click", () =>
  attemptOpening(async () => {
    await edit(shown);
    byId("canvas").focus({ preventScroll: true });
  }),
);

byId("again").addEventListener("click", () => {
  form.elements.seed.value = "";
  form.requestSubmit();
});

// Files that are chosen, dropped or pasted

/** Connect a zone's file input to a function that opens a file; return a function that offers it a file. */
function connectZone(zone, openFile) {
  const input = zone.querySelector("input");
  const offer = (file) => file && attemptOpening(() => openFile(file, file.name));
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

// An image that is dropped outside the zones counts as the photo. Otherwise the browser would leave the page for it.
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
  const file = imageIn(event.dataTransfer);
  if (file) offer(file);
  else showError(new Error("This is not an image. Drop a PNG, JPEG or WebP file."));
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

function showVariant() {
  const { hint, legend, prompt: defaultPrompt, instructions } = VARIANTS[variant()];
  byId("task-hint").textContent = hint;
  byId("where-legend").textContent = legend;
  byId("reference").hidden = variant() !== "insertion";
  // A prompt that the user wrote stays.
  if (!prompt.value || prompt.value === prompt.defaultValue) prompt.value = defaultPrompt;
  prompt.defaultValue = defaultPrompt;
  health.offerEditors(variant());
  stage.guide(instructions);
}

for (const choice of form.elements.task) {
  choice.addEventListener("change", () => {
    showVariant();
    stage.suggestTool(VARIANTS[variant()].tool);
  });
}
showVariant();

byId("next-candidate").addEventListener("click", () => stage.picker.next());
byId("undo").addEventListener("click", () => stage.undo());
byId("redo").addEventListener("click", () => stage.redo());
byId("clear-mask").addEventListener("click", () => stage.clear());
const TEXT_FIELDS = "textarea, input:is([type=text], [type=number], [type=password])";

addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey)) return;
  const key = event.key.toLowerCase();
  if (key === "enter" && !event.target.closest("dialog")) return form.requestSubmit();
  if (!["z", "y"].includes(key) || event.target.matches(TEXT_FIELDS) || !stage.photo) return;
  event.preventDefault();
  if (key === "y" || event.shiftKey) stage.redo();
  else stage.undo();
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
  const body = { ...settings.requestFields(), input_image: await toBase64(photo.file) };
  if (mask.coverage) {
    body.mask_image = await toBase64(await mask.toPng());
    if (mask.endsWithStroke) body.mask_tool_type = "brush";
  }
  if (variant() === "insertion") Object.assign(body, await reference.fields());
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
  // Otherwise a click on Go just after the choice of a photo would edit the one before it.
  const failure = await opening;
  // Another image that was opened since may have cleared the message.
  if (failure) return showError(failure);
  await stage.picker.settled;
  if (running) return;
  clearError();
  const step = missingStep();
  if (step) {
    showError(new Error(step.message));
    step.element.focus();
    return;
  }
  const job = { base, marks: stage.mask.marks, settings: settings.values() };
  await run(async ({ abort }) => (await api.submit(await requestBody(), abort.signal)).task_id, job);
}

/** Return a promise that rejects when a signal aborts. */
function aborted(signal) {
  return new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
}

/**
 * Follow a job to its end, and show its result.
 * @param start submits the job, or finds the job from before a reload; returns its id
 * @param {{base: number, marks: object[], settings: object}} job
 */
async function run(start, job) {
  running = { ...job, id: null, abort: new AbortController() };
  byId("progress").value = 0;
  showRunning("Sending");
  let text = "";
  try {
    // It may wait for the reference's cut-out before it sends anything.
    running.id = await Promise.race([start(running), aborted(running.abort.signal)]);
    if (isSaving) await save();
    const last = await jobs.follow(running.id, running.abort.signal, showStatus);
    if (last.status === "error") throw new Error(last.error);
    text = jobs.describe(last);
    if (last.status === "done") text = (await receive(running)) ?? text;
  } catch (error) {
    if (error.name === "AbortError") text = "Cancelled";
    else showError(error);
  } finally {
    running = null;
    showRunning(text);
    saveSoon();
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(go);
});

byId("cancel").addEventListener("click", async () => {
  const { id, abort } = running;
  if (!id) return abort.abort();
  try {
    await api.cancel(id);
  } catch (error) {
    showError(error);
    // A gateway that is away may never answer: the user must not wait for it.
    abort.abort();
  }
});

/** Add a job's result to the history, and show it; return a text if it is not shown. */
async function receive(job) {
  byId("cancel").hidden = true;
  const file = await api.resultImage(job.id);
  const { parameters_used: parameters, generation_time: seconds, model_used: model, report } = await api.result(job.id);
  const { verdict, verdict_reasons } = report;
  const answer = { seed: parameters.seed, seconds, model, report: { verdict, verdict_reasons } };
  const { name } = pictures[job.base];
  const number = pictures.filter((picture) => picture.answer).length + 1;
  const label = `${number} ${VARIANTS[job.settings.task].name}`;
  const { base: jobBase, marks, settings: values } = job;
  // A user who did something else meanwhile keeps it.
  const isWaiting = base === jobBase && stage.mask.marks === marks;
  const hasFocus = [document.body, byId("cancel")].includes(document.activeElement);
  const index = await addPicture({ file, name, label, base: jobBase, marks, settings: values, answer });
  if (!isWaiting) return `Done: ${label}, in the history under the photo`;
  await showResult(index);
  if (hasFocus) {
    byId("result-title").focus({ preventScroll: true });
    byId("viewport").scrollIntoView({ block: "nearest" });
  }
}

// Start

health.watch(() => health.offerEditors(variant()));
addEventListener("online", () => health.watch(() => health.offerEditors(variant())));
const restored = restore();
restored.then(() => isSaving && store.prune());
