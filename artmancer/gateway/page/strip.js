// The history strip: the photo and each result, in order, as buttons with a small picture.

import { loadImage, open } from "./files.js";

/** Pixels of the longer side of a small picture. */
const SIDE = 160;

export class Strip {
  /** @param {(index: number) => void} onChoose called with the index of the picture that the user chooses */
  constructor(element, onChoose) {
    this.element = element;
    this.onChoose = onChoose;
  }

  /** Add a picture: its file and a label. */
  async add({ file, label }) {
    const index = this.element.children.length;
    const item = document.createElement("li");
    const button = document.createElement("button");
    const canvas = document.createElement("canvas");
    const text = document.createElement("span");
    button.type = "button";
    canvas.setAttribute("aria-hidden", "true");
    text.textContent = label;
    button.append(canvas, text);
    button.addEventListener("click", () => this.onChoose(index));
    item.append(button);
    this.element.append(item);
    this.element.hidden = index === 0;
    const { url, width, height } = await open(file, label);
    const scale = SIDE / Math.max(width, height);
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    canvas.getContext("2d").drawImage(await loadImage(url), 0, 0, canvas.width, canvas.height);
    URL.revokeObjectURL(url);
  }

  /** Mark the picture that is in view. */
  select(index) {
    [...this.element.children].forEach((item, position) => {
      item.firstChild.setAttribute("aria-current", position === index);
    });
    const item = this.element.children[index];
    this.element.scrollLeft = item.offsetLeft - (this.element.clientWidth - item.clientWidth) / 2;
  }
}
