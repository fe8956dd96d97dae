// Shows the photo with its mask, and handles mouse, touch and keyboard on it: clicks and brush strokes.
import { Compare } from "./compare.js";
import { Mask } from "./mask.js";
import { Picker } from "./picker.js";
import { View } from "./view.js";

/** How far an arrow key moves the cursor, as a share of the photo's longer side. */
const KEY_STEP = 0.02;

/** Percent of the photo that few objects cover: above it, the user gets a hint. */
const LARGE_PERCENT = 40;

/** Width of the largest brush, as a share of the photo's longer side where the photo fits the view. */
const MAX_BRUSH = 0.25;

/** Factor of the brush's size for one press of a key. */
const BRUSH_STEP = 1.2;

const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const byId = (id) => document.getElementById(id);

/** Return the value of the radio button that is chosen in a group. */
const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;

const clamp = (value, max) => Math.min(max, Math.max(0, value));

export class Stage {
  photo = null;
  /** The stroke that is being painted. */
  #stroke = null;
  /** The cursor of the keyboard, [x, y] in pixels of the photo. */
  #cursor = null;
  /** What to do with each tool, as a text for the user. */
  #instructions = {};

  /** @param {{onFailure: (error: Error) => void, onMask: () => void}} listener `onMask`: the mask has changed */
  constructor({ onFailure, onMask }) {
    this.frame = byId("frame");
    this.canvas = byId("canvas");
    this.ring = byId("ring");
    this.size = byId("brush-size");
    this.view = new View(byId("viewport"), this.frame, {
      onChange: () => this.#showView(),
      onGesture: () => this.#dropStroke(),
      dragPans: () => this.compare.active || chosen("tool") === "click",
    });
    this.compare = new Compare(this.view);
    this.mask = new Mask(this.canvas, () => {
      this.#update();
      onMask();
    });
    this.picker = new Picker(this.mask, { onChange: () => this.#update(), onFailure });
    this.#listen();
  }

  /**
   * Show a photo with its mask.
   * @param {object} [marks] an earlier mask's `saved`; missing: nothing is marked
   */
  async open(photo, marks) {
    if (this.photo) URL.revokeObjectURL(this.photo.url);
    this.photo = photo;
    this.#stroke = null;
    this.#cursor = null;
    this.ring.hidden = true;
    byId("photo").src = photo.url;
    byId("viewport").hidden = false;
    byId("bar").hidden = false;
    this.compare.hide();
    this.view.open(photo);
    this.picker.open(photo);
    await this.mask.open(photo.width, photo.height, marks);
  }

  /** Lay a result over the photo: nothing can be marked meanwhile. */
  async showResult(file) {
    await this.compare.show(file);
    this.#update();
  }

  hideResult() {
    this.compare.hide();
    this.#update();
  }

  /** Choose the tool to begin with, if nothing is marked yet. */
  suggestTool(tool) {
    if (this.undoable) return;
    byId(`tool-${tool}`).checked = true;
    this.#switchTool();
  }

  /** @param {Record<string, string>} instructions what to do with each tool, as a text for the user */
  guide(instructions) {
    this.#instructions = instructions;
    this.#switchTool();
  }

  get undoable() {
    return !this.compare.active && (this.picker.busy || this.mask.undoable);
  }

  get redoable() {
    return !this.compare.active && !this.picker.busy && this.mask.redoable;
  }

  undo() {
    if (!this.undoable) return;
    if (this.picker.busy) this.picker.drop();
    else this.mask.undo();
  }

  redo() {
    if (this.redoable) this.mask.redo();
  }

  clear() {
    this.picker.drop();
    this.mask.clear();
  }

  #listen() {
    const { canvas } = this;
    canvas.addEventListener("click", (event) => {
      if (chosen("tool") === "click") this.#click(this.#position(event), event.shiftKey);
    });
    canvas.addEventListener("pointerdown", (event) => this.#press(event));
    // A stroke must not count as a swipe: after a swipe, phones take the next tap for the end of the scrolling.
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
      if (this.photo) this.#showRing(this.#middle);
    });
    this.size.addEventListener("change", () => this.#hideRing());
    byId("zoom-in").addEventListener("click", () => this.view.step(1));
    byId("zoom-out").addEventListener("click", () => this.view.step(-1));
    byId("zoom-fit").addEventListener("click", () => this.view.fit());
    for (const tool of document.querySelectorAll('input[name="tool"]')) {
      tool.addEventListener("change", () => this.#switchTool());
    }
    this.#switchTool();
  }

  #switchTool() {
    const tool = chosen("tool");
    byId("viewport").dataset.tool = tool;
    byId("click-tool").hidden = tool !== "click";
    byId("brush-tool").hidden = tool !== "brush";
    this.#update();
  }

  /** Return the position of an event, in pixels of the photo. */
  #position({ clientX, clientY }) {
    const box = this.canvas.getBoundingClientRect();
    const { width, height } = this.photo;
    return [((clientX - box.left) / box.width) * width, ((clientY - box.top) / box.height) * height];
  }

  /** The point of the photo in the middle of the view. */
  get #middle() {
    const { viewport, left, top, scale } = this.view;
    return [(viewport.clientWidth / 2 - left) / scale, (viewport.clientHeight / 2 - top) / scale];
  }

  /** The width of the brush, in pixels of the photo. On the screen it stays the same at every zoom. */
  get #brushWidth() {
    const longer = Math.max(this.photo.width, this.photo.height);
    return ((this.size.value / this.size.max) * MAX_BRUSH * longer) / this.view.zoom;
  }

  /** Make the brush larger (1) or smaller (-1). */
  #resizeBrush(direction) {
    const size = Number(this.size.value);
    const resized = direction > 0 ? Math.ceil(size * BRUSH_STEP) : Math.floor(size / BRUSH_STEP);
    this.size.value = clamp(resized, this.size.max);
  }

  #showView() {
    byId("zoom-fit").textContent = `${Math.round(100 * this.view.scale * devicePixelRatio)} %`;
    byId("zoom-out").disabled = !this.view.zoomed;
    this.compare.update();
    this.#hideRing();
  }

  /** Drop the unfinished stroke: it was the beginning of a pinch. */
  #dropStroke() {
    if (!this.#stroke) return;
    this.#stroke = null;
    this.mask.dropStroke();
  }

  #click([x, y], exclude) {
    const label = exclude ? 0 : Number(chosen("sign"));
    if (!label && !this.picker.object) {
      byId("mask-status").textContent = "First click the object, then what does not belong to it.";
      return;
    }
    const { width, height } = this.photo;
    this.picker.click(clamp(Math.floor(x), width - 1), clamp(Math.floor(y), height - 1), label);
  }

  #beginStroke([x, y]) {
    this.#stroke = { points: [], width: this.#brushWidth, erase: chosen("brush") === "erase" };
    this.mask.extendStroke(this.#stroke, x, y);
  }

  #press(event) {
    if (chosen("tool") !== "brush" || !event.isPrimary || event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.#beginStroke(this.#position(event));
    this.#showRing(this.#position(event));
  }

  #move(event) {
    if (chosen("tool") !== "brush" || !event.isPrimary) return;
    this.#showRing(this.#position(event));
    if (!this.#stroke) return;
    // A browser sends one event for each frame, and a fast pointer reaches several points between two frames. The
    // event has them as coalesced events, except on pages over plain HTTP.
    const coalesced = event.getCoalescedEvents?.() ?? [];
    const events = coalesced.length ? coalesced : [event];
    for (const point of events) this.mask.extendStroke(this.#stroke, ...this.#position(point));
  }

  /** Finish the stroke. */
  #release() {
    if (!this.#stroke) return;
    const stroke = this.#stroke;
    this.#stroke = null;
    this.mask.addStroke(stroke);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { width, height } = this.photo;
    const [x, y] = this.#cursor ?? this.#middle;
    if (DIRECTIONS[event.key]) {
      const [right, down] = DIRECTIONS[event.key];
      const step = (KEY_STEP * Math.max(width, height)) / this.view.zoom;
      this.#cursor = [clamp(x + right * step, width - 1), clamp(y + down * step, height - 1)];
      this.view.reveal(this.#cursor);
    } else if (event.key === "Enter") {
      this.#cursor = [x, y];
      if (chosen("tool") === "click") {
        this.#click(this.#cursor, event.shiftKey);
      } else {
        this.#beginStroke(this.#cursor);
        this.#release();
      }
    } else if (event.key === "[" || event.key === "]") {
      this.#resizeBrush(event.key === "]" ? 1 : -1);
    } else if (event.key === "+" || event.key === "-") {
      this.view.step(event.key === "+" ? 1 : -1);
    } else if (event.key === "0") {
      this.view.fit();
    } else {
      return;
    }
    event.preventDefault();
    this.#showRing(this.#cursor ?? this.#middle);
  }

  /** Show the outline of the brush around a point of the photo; for clicks it is a small ring. */
  #showRing([x, y]) {
    const { width, height } = this.photo;
    const { style } = this.ring;
    style.left = `${(100 * x) / width}%`;
    style.top = `${(100 * y) / height}%`;
    style.width = chosen("tool") === "brush" ? `${(100 * this.#brushWidth) / width}%` : "1.25rem";
    this.ring.hidden = false;
  }

  /** Hide the ring, unless the keyboard is used. */
  #hideRing() {
    if (!this.#cursor) this.ring.hidden = true;
  }

  /** Update everything that depends on the mask and the picker. */
  #update() {
    const { object } = this.picker;
    const markers = object && chosen("tool") === "click" ? this.#markers(object) : [];
    byId("markers").replaceChildren(...markers);
    byId("undo").disabled = !this.undoable;
    byId("redo").disabled = !this.redoable;
    byId("clear-mask").disabled = !this.picker.busy && !this.mask.marks.length;
    byId("next-candidate").disabled = this.picker.busy || !(object?.candidates > 1);
    byId("mask-status").textContent = this.#statusText(object);
    this.frame.setAttribute("aria-busy", this.picker.busy);
  }

  /** Make a marker for each click of an object. */
  #markers({ points, labels }) {
    return points.map(([x, y], index) => {
      const marker = document.createElement("span");
      marker.className = labels[index] ? "marker" : "marker not";
      marker.textContent = labels[index] ? "+" : "−";
      marker.style.left = `${(100 * (x + 0.5)) / this.photo.width}%`;
      marker.style.top = `${(100 * (y + 0.5)) / this.photo.height}%`;
      return marker;
    });
  }

  #statusText(object) {
    if (!this.photo) return "";
    if (this.compare.active) return "To mark more: Change marks, or Edit further.";
    if (this.picker.busy) return "Looking for the object";
    if (!this.mask.coverage) return this.#instructions[chosen("tool")];
    const percent = 100 * this.mask.coverage;
    const share = `${percent < 1 ? "Under 1" : Math.round(percent)} % marked.`;
    if (this.mask.mayBeInverted) return `${share} Is it the wrong way round? What is marked changes, the rest stays.`;
    if (!object) return share;
    const { candidate, candidates } = object;
    const position = candidates > 1 ? ` Candidate ${candidate + 1} of ${candidates}.` : "";
    const hint = percent > LARGE_PERCENT ? " Too much? Choose Not this, and click what should stay." : "";
    return share + position + hint;
  }
}
