// Shows the gateway's health in the header, and which editors can be used.
import * as api from "./api.js";

/** Milliseconds until the health of a gateway that is degraded or away is requested again. */
const INTERVAL = 30_000;

/** The same while the gateway starts ComfyUI, which takes seconds to a minute. */
const STARTING_INTERVAL = 1_000;

const QWEN = "Qwen-Image-Edit";
const DRAFT = "Draft, without a model";

const byId = (id) => document.getElementById(id);

/** The editors that can be used: {value, label, variant}; `variant` is the only kind of edit it makes. */
let editors = [];

/** Return the editors that a gateway's health lists as usable, in the order in which "auto" chooses. */
function usableEditors({ bases, lama, model_sets: sets = [] }) {
  return [
    ...(bases.length ? [{ value: "qwen", label: QWEN }] : []),
    ...sets.filter(({ complete }) => complete).map(({ name }) => ({ value: name, label: name })),
    ...(lama ? [{ value: "lama", label: "LaMa", variant: "removal" }] : []),
    { value: "draft", label: DRAFT },
  ];
}

/** Offer the editors for this kind of edit, if there is a choice. The user's choice stays where it fits. */
export function offerEditors(variant) {
  const select = byId("editor");
  // A choice from before a reload waits here until the editors are known.
  const chosen = select.value || select.dataset.chosen;
  const fitting = editors.filter((editor) => !editor.variant || editor.variant === variant);
  select.replaceChildren(new Option("Automatic", ""), ...fitting.map(({ value, label }) => new Option(label, value)));
  if (fitting.some(({ value }) => value === chosen)) {
    select.value = chosen;
    delete select.dataset.chosen;
  }
  byId("editor-field").hidden = fitting.length < 2;
}

let timer;

/**
 * Request the health and show it; again after a while if the gateway is degraded or away.
 * @param {() => void} onEditors called when the editors are known
 */
export async function watch(onEditors) {
  clearTimeout(timer);
  const line = byId("health");
  let degraded = true;
  let starting = false;
  let isRefused = false;
  try {
    const health = await api.health();
    const { reason, model_loaded: loaded, device, device_info: info } = health;
    starting = health.starting;
    editors = usableEditors(info);
    onEditors();
    // LaMa edits only where it is chosen.
    const { label } = editors.find(({ value }) => value !== "lama");
    const hasModel = loaded || label !== DRAFT;
    const name = label === DRAFT ? QWEN : label;
    const editor = hasModel ? `Editor: ${name} on ${device}.` : "Editor: draft. No model is installed.";
    degraded = health.status === "degraded";
    // Before its first answer, it is not known what ComfyUI has.
    const isKnown = device !== "unknown";
    line.textContent = [isKnown && editor, reason].filter(Boolean).join(" ");
    if (isKnown) byId("prompt-hint").hidden = hasModel;
  } catch (error) {
    line.textContent = error.message;
    isRefused = Boolean(error.needsToken);
  }
  line.classList.toggle("degraded", degraded && !starting);
  const again = () => watch(onEditors);
  // A user who closed the question for the token is not asked again until they want something.
  if (isRefused) byId("token-form").addEventListener("submit", again, { once: true });
  else if (degraded) timer = setTimeout(again, starting ? STARTING_INTERVAL : INTERVAL);
}
