// The mask over the photo: a list of brush strokes and picked objects that can be undone and redone one by one.
import { toStencil } from "./files.js";
import { grayPng } from "./png.js";

/** The most pixels of the canvas, however large the photo is: finer than any screen, and quick to paint on. */
const MAX_PIXELS = 4_000_000;

/** The color of the mask on the screen: red, green and blue. */
const COLOR = [255, 64, 160];

/**
 * A mark is a stroke of the brush, or an object that was picked by clicks. Points and widths are in pixels of the
 * photo; `png` is the object's mask as base64. Marks and lists of them never change: a change makes new ones.
 * @typedef {{points: number[][], width: number, erase: boolean}} Stroke
 * @typedef {{points: number[][], labels: number[], candidate: number, candidates: number, png: string}} PickedObject
 * @typedef {(Stroke | PickedObject)[]} Marks
 */

export class Mask {
  /** @type {Marks} */
  marks = [];
  /** The share of the photo that is marked, 0..1. */
  coverage = 0;
  /** True if more than half of the photo, but not all, and its four corners are marked. */
  mayBeInverted = false;
  /** Earlier values of `marks`, for undo; and those that were undone, for redo; the next one is the last. */
  #past = [];
  #future = [];
  /** The masks of picked objects, to draw: canvases of the mask's size. */
  #stencils = new WeakMap();

  constructor(canvas, onChange) {
    this.canvas = canvas;
    this.onChange = onChange;
    this.context = canvas.getContext("2d", { willReadFrequently: true });
  }

  /**
   * Start with the mask of a photo of this size.
   * @param {{marks?: Marks, past?: Marks[], future?: Marks[]}} saved as `saved` returned it
   */
  async open(width, height, { marks = [], past = [], future = [] } = {}) {
    const scale = Math.min(1, Math.sqrt(MAX_PIXELS / (width * height)));
    this.width = width;
    this.height = height;
    this.canvas.width = Math.max(1, Math.round(width * scale));
    this.canvas.height = Math.max(1, Math.round(height * scale));
    this.marks = [];
    for (const mark of [marks, ...past, ...future].flat()) {
      if ("png" in mark && !this.#stencils.has(mark)) await this.prepare(mark);
    }
    this.#past = past;
    this.#future = future;
    this.#show(marks);
  }

  /** What can be stored, and opened again. */
  get saved() {
    return { marks: this.marks, past: this.#past, future: this.#future };
  }

  get undoable() {
    return this.#past.length > 0;
  }

  get redoable() {
    return this.#future.length > 0;
  }

  /** True if the last mark is a brush stroke. */
  get endsWithStroke() {
    return "width" in (this.marks.at(-1) ?? {});
  }

  /** The last mark, if it is a picked object; otherwise null. */
  get lastObject() {
    const last = this.marks.at(-1);
    return last && "png" in last ? last : null;
  }

  undo() {
    const marks = this.#past.at(-1);
    this.#past = this.#past.slice(0, -1);
    this.#future = [...this.#future, this.marks];
    this.#show(marks);
  }

  redo() {
    const marks = this.#future.at(-1);
    this.#future = this.#future.slice(0, -1);
    this.#past = [...this.#past, this.marks];
    this.#show(marks);
  }

  clear() {
    if (this.marks.length) this.#change([]);
  }

  /** Make a picked object ready to be drawn. */
  async prepare(object) {
    const { width, height } = this.canvas;
    this.#stencils.set(object, await toStencil(object.png, width, height, COLOR));
  }

  /** Add a picked object that is ready. It replaces `old`, if that is still there. */
  addObject(object, old) {
    const index = this.marks.indexOf(old);
    this.#change(index < 0 ? [...this.marks, object] : this.marks.with(index, object));
  }

  /** Extend an unfinished stroke to a point, and draw it. */
  extendStroke(stroke, x, y) {
    stroke.points.push([x, y]);
    this.#drawStroke(stroke, stroke.points.length - 1);
  }

  /** Draw the marks alone, without an unfinished stroke. */
  dropStroke() {
    this.#show(this.marks);
  }

  /** Add a stroke that is finished. */
  addStroke(stroke) {
    this.#change([...this.marks, stroke]);
  }

  #change(marks) {
    this.#past = [...this.#past, this.marks];
    this.#future = [];
    this.#show(marks);
  }

  #show(marks) {
    this.marks = marks;
    this.context.reset();
    for (const mark of marks) {
      if ("png" in mark) this.context.drawImage(this.#stencils.get(mark), 0, 0);
      else mark.points.forEach((_, index) => this.#drawStroke(mark, index));
    }
    this.#measureCoverage();
    this.onChange();
  }

  /** Draw the part of a stroke that ends at the point with this index. */
  #drawStroke({ points, width, erase }, index) {
    const { context, canvas } = this;
    const color = `rgb(${COLOR})`;
    context.save();
    context.scale(canvas.width / this.width, canvas.height / this.height);
    context.globalCompositeOperation = erase ? "destination-out" : "source-over";
    context.fillStyle = color;
    context.strokeStyle = color;
    context.lineWidth = width;
    context.lineCap = "round";
    context.beginPath();
    const [x, y] = points[index];
    if (index === 0) {
      context.arc(x, y, width / 2, 0, 2 * Math.PI);
      context.fill();
    } else {
      context.moveTo(...points[index - 1]);
      context.lineTo(x, y);
      context.stroke();
    }
    context.restore();
  }

  /** Return the mask of the canvas, one byte for each pixel; 255 = marked. */
  #alpha() {
    const { data } = this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
    const alpha = new Uint8Array(data.length / 4);
    for (let index = 0; index < alpha.length; index++) alpha[index] = data[index * 4 + 3];
    return alpha;
  }

  /** Set `coverage` and `mayBeInverted`. */
  #measureCoverage() {
    const alpha = this.#alpha();
    let sum = 0;
    for (const value of alpha) sum += value;
    this.coverage = sum / 255 / alpha.length;
    const { width } = this.canvas;
    const corners = [0, width - 1, alpha.length - width, alpha.length - 1];
    const cornersMarked = corners.every((index) => alpha[index] > 127);
    this.mayBeInverted = cornersMarked && this.coverage > 0.5 && this.coverage < 1;
  }

  /** Return the mask as a PNG of the photo's size; white = edit. Each pixel is that of the canvas at the same place. */
  toPng() {
    const alpha = this.#alpha();
    const { width, height, canvas } = this;
    const columns = Uint32Array.from({ length: width }, (_, x) => Math.floor(((x + 0.5) * canvas.width) / width));
    return grayPng(width, height, (y) => {
      const start = Math.floor(((y + 0.5) * canvas.height) / height) * canvas.width;
      const row = alpha.subarray(start, start + canvas.width);
      return canvas.width === width ? row : Uint8Array.from(columns, (x) => row[x]);
    });
  }
}
