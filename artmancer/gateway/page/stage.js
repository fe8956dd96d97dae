// The photo, and what hands do on it: clicks, brush strokes, and the same from the keyboard.
import { Mask } from "./mask.js";
import { Picker } from "./picker.js";

const KEY_STEP = 0.02; // of the photo's longer side: what an arrow key moves the cursor by
const MUCH = 40; // percent of the photo that few objects are larger than
const WIDEST = 0.25; // of the photo's longer side: the largest brush

const byId = (id) => document.getElementById(id);
const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;

export class Stage {
  photo = null;
  #stroke = null;
  #cursor = null; // for the keyboard: [x, y] in pixels of the photo
  #toMark = {};

  /** @param {(error: Error) => void} onFailure */
  constructor(onFailure) {
    this.frame = byId("frame");
    this.canvas = byId("canvas");
    this.ring = byId("ring");
    this.size = byId("brush-size");
    this.mask = new Mask(this.canvas, () => this.#changed());
    this.picker = new Picker(this.mask, { onChange: () => this.#changed(), onFailure });
    this.#listen();
  }

  /** Show a photo, with nothing marked on it. */
  open(photo) {
    if (this.photo) URL.revokeObjectURL(this.photo.url);
    this.photo = photo;
    this.#stroke = this.#cursor = null;
    this.ring.hidden = true;
    byId("photo").src = photo.url;
    this.frame.style.setProperty("--ratio", photo.width / photo.height);
    this.frame.hidden = false;
    this.picker.open(photo);
    this.mask.reset(photo.width, photo.height);
  }

  /**
   * @param {string} tool to begin with, where nothing is marked yet
   * @param {Record<string, string>} toMark what to do with each tool, in words
   */
  guide(tool, toMark) {
    this.#toMark = toMark;
    if (!this.undoable) byId(`tool-${tool}`).checked = true;
    this.#switchTool();
  }

  get undoable() {
    return this.picker.busy || this.mask.undoable;
  }

  undo() {
    if (this.picker.busy) this.picker.drop();
    else this.mask.undo();
  }

  clear() {
    this.picker.drop();
    this.mask.clear();
  }

  #listen() {
    const { canvas } = this;
    canvas.addEventListener("click", (event) => {
      if (chosen("tool") === "click") this.#click(this.#place(event), event.shiftKey);
    });
    canvas.addEventListener("pointerdown", (event) => this.#press(event));
    // A quick stroke is no swipe: after one, a phone takes the next tap for the end of a scroll.
    canvas.addEventListener("touchstart", (event) => chosen("tool") === "brush" && event.preventDefault(), {
      passive: false,
    });
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", () => this.#release());
    canvas.addEventListener("pointercancel", () => this.#release());
    canvas.addEventListener("pointerleave", () => this.#hideRing());
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => {
      this.#cursor = null;
      this.#hideRing();
    });
    this.size.addEventListener("input", () => {
      if (this.photo) this.#showRing([this.photo.width / 2, this.photo.height / 2]);
    });
    this.size.addEventListener("change", () => this.#hideRing());
    for (const tool of document.querySelectorAll('input[name="tool"]')) {
      tool.addEventListener("change", () => this.#switchTool());
    }
    this.#switchTool();
  }

  #switchTool() {
    const tool = chosen("tool");
    this.canvas.dataset.tool = tool;
    byId("click-tool").hidden = tool !== "click";
    byId("brush-tool").hidden = tool !== "brush";
    this.#changed();
  }

  /** Where an event is, in pixels of the photo. */
  #place({ clientX, clientY }) {
    const box = this.canvas.getBoundingClientRect();
    const { width, height } = this.photo;
    return [((clientX - box.left) / box.width) * width, ((clientY - box.top) / box.height) * height];
  }

  get #brushWidth() {
    return (this.size.value / this.size.max) * WIDEST * Math.max(this.photo.width, this.photo.height);
  }

  #click([x, y], exclude) {
    const inside = (value, size) => Math.min(size - 1, Math.max(0, Math.floor(value)));
    const label = exclude ? 0 : Number(chosen("sign"));
    if (!label && !this.picker.object) {
      byId("mask-status").textContent = "First click what you mean, then what does not belong to it.";
      return;
    }
    this.picker.click(inside(x, this.photo.width), inside(y, this.photo.height), label);
  }

  #begin(x, y) {
    this.#stroke = { points: [], width: this.#brushWidth, erase: chosen("brush") === "erase" };
    this.mask.lead(this.#stroke, x, y);
  }

  #press(event) {
    if (chosen("tool") !== "brush" || !event.isPrimary || event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.#begin(...this.#place(event));
    this.#showRing(this.#place(event));
  }

  #move(event) {
    if (chosen("tool") !== "brush" || !event.isPrimary) return;
    this.#showRing(this.#place(event));
    if (!this.#stroke) return;
    // A quick hand leaves more points than there are frames. Over plain HTTP browsers do not tell them.
    const all = event.getCoalescedEvents?.() ?? [];
    for (const one of all.length ? all : [event]) this.mask.lead(this.#stroke, ...this.#place(one));
  }

  #release() {
    if (!this.#stroke) return;
    const stroke = this.#stroke;
    this.#stroke = null;
    this.mask.keep(stroke);
  }

  #key(event) {
    const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { width, height } = this.photo;
    const [x, y] = this.#cursor ?? [width / 2, height / 2];
    if (directions[event.key]) {
      const [right, down] = directions[event.key];
      const step = KEY_STEP * Math.max(width, height);
      this.#cursor = [
        Math.min(width - 1, Math.max(0, x + right * step)),
        Math.min(height - 1, Math.max(0, y + down * step)),
      ];
    } else if (event.key === "Enter" || event.key === " ") {
      this.#cursor = [x, y];
      if (chosen("tool") === "click") {
        this.#click(this.#cursor, event.shiftKey);
      } else {
        this.#begin(x, y);
        this.#release();
      }
    } else {
      return;
    }
    event.preventDefault();
    this.#showRing(this.#cursor);
  }

  /** The brush's outline, or for clicks a small ring, around a point of the photo. */
  #showRing([x, y]) {
    const { width, height } = this.photo;
    const { style } = this.ring;
    style.left = `${(100 * x) / width}%`;
    style.top = `${(100 * y) / height}%`;
    style.width = chosen("tool") === "brush" ? `${(100 * this.#brushWidth) / width}%` : "1.25rem";
    this.ring.hidden = false;
  }

  #hideRing() {
    if (!this.#cursor) this.ring.hidden = true;
  }

  #changed() {
    const { object } = this.picker;
    const markers = (object?.points ?? []).map(([x, y], index) => {
      const marker = document.createElement("span");
      marker.className = object.labels[index] ? "marker" : "marker not";
      marker.textContent = object.labels[index] ? "+" : "−";
      marker.style.left = `${(100 * (x + 0.5)) / this.photo.width}%`;
      marker.style.top = `${(100 * (y + 0.5)) / this.photo.height}%`;
      return marker;
    });
    byId("markers").replaceChildren(...(chosen("tool") === "click" ? markers : []));
    byId("undo").disabled = !this.undoable;
    byId("clear-mask").disabled = !this.picker.busy && !this.mask.marks.length;
    byId("next-candidate").disabled = this.picker.busy || !(object?.candidates > 1);
    byId("mask-status").textContent = this.#words(object);
    this.frame.setAttribute("aria-busy", this.picker.busy);
  }

  #words(object) {
    if (!this.photo) return "";
    if (this.picker.busy) return "Looking for the object";
    if (!this.mask.coverage) return this.#toMark[chosen("tool")];
    const percent = 100 * this.mask.coverage;
    const share = `${percent < 1 ? "Under 1" : Math.round(percent)} % marked.`;
    if (!object) return share;
    const { candidate, candidates } = object;
    const which = candidates > 1 ? ` Candidate ${candidate + 1} of ${candidates}.` : "";
    const help = percent > MUCH ? " Too much? Choose Not this, and click what is to stay." : "";
    return share + which + help;
  }
}
