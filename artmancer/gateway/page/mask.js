// The mask over the photo: brush strokes and picked objects, one upon the other, each of which can be undone.
import { greyPng } from "./png.js";

// The canvas holds this many pixels at most, whatever the photo: finer than any screen shows, and quick to paint on.
const MOST_PIXELS = 4_000_000;

export const COLOR = [255, 64, 160];

/**
 * In pixels of the photo; the stencil in those of the canvas.
 * @typedef {{points: number[][], width: number, erase: boolean}} Stroke
 * @typedef {{points: number[][], labels: number[], candidate: number, candidates: number, stencil: HTMLCanvasElement}}
 *   Picked
 */

export class Mask {
  /** @type {(Stroke | Picked)[]} what is on the mask now */
  marks = [];
  /** How much of the photo is marked, 0..1. */
  coverage = 0;
  #before = [];

  constructor(canvas, onChange) {
    this.canvas = canvas;
    this.onChange = onChange;
    this.context = canvas.getContext("2d", { willReadFrequently: true });
  }

  /** Start anew, for a photo of this size. */
  reset(width, height) {
    const scale = Math.min(1, Math.sqrt(MOST_PIXELS / (width * height)));
    [this.width, this.height] = [width, height];
    this.canvas.width = Math.max(1, Math.round(width * scale));
    this.canvas.height = Math.max(1, Math.round(height * scale));
    this.#before = [];
    this.#show([]);
  }

  get undoable() {
    return this.#before.length > 0;
  }

  /** Whether the brush was used last. */
  get brushed() {
    return "width" in (this.marks.at(-1) ?? {});
  }

  undo() {
    this.#show(this.#before.pop() ?? []);
  }

  clear() {
    if (this.marks.length) this.#change([]);
  }

  /** Put an object on the mask, in the place of `old` where that is still there. */
  put(picked, old) {
    const at = this.marks.indexOf(old);
    this.#change(at < 0 ? [...this.marks, picked] : this.marks.with(at, picked));
  }

  /** Lead a stroke that is not finished to a point, and show it. */
  lead(stroke, x, y) {
    stroke.points.push([x, y]);
    this.#drawStroke(stroke, stroke.points.length - 1);
  }

  /** Keep a stroke that was shown while it was led. */
  keep(stroke) {
    this.#change([...this.marks, stroke]);
  }

  #change(marks) {
    this.#before.push(this.marks);
    this.#show(marks);
  }

  #show(marks) {
    this.marks = marks;
    this.context.reset();
    for (const mark of marks) {
      if ("stencil" in mark) this.context.drawImage(mark.stencil, 0, 0);
      else mark.points.forEach((_, index) => this.#drawStroke(mark, index));
    }
    this.coverage = this.#measure();
    this.onChange();
  }

  #drawStroke({ points, width, erase }, index) {
    const { context, canvas } = this;
    context.save();
    context.scale(canvas.width / this.width, canvas.height / this.height);
    context.globalCompositeOperation = erase ? "destination-out" : "source-over";
    context.fillStyle = context.strokeStyle = `rgb(${COLOR})`;
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

  #alpha() {
    const { data } = this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
    const alpha = new Uint8Array(data.length / 4);
    for (let at = 0; at < alpha.length; at++) alpha[at] = data[at * 4 + 3];
    return alpha;
  }

  #measure() {
    const alpha = this.#alpha();
    let marked = 0;
    for (const value of alpha) marked += value;
    return marked / 255 / alpha.length;
  }

  /** A PNG of the photo's size: white = edit. */
  toPng() {
    const alpha = this.#alpha();
    const { width, height, canvas } = this;
    const columns = Uint32Array.from({ length: width }, (_, x) => Math.floor(((x + 0.5) * canvas.width) / width));
    return greyPng(width, height, (y) => {
      const start = Math.floor(((y + 0.5) * canvas.height) / height) * canvas.width;
      const row = alpha.subarray(start, start + canvas.width);
      return canvas.width === width ? row : Uint8Array.from(columns, (x) => row[x]);
    });
  }
}
