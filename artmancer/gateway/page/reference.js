// The reference image of an insertion, with a mask that cuts the object out of it.
import * as api from "./api.js";
import { loadImage, toBase64, toStencil } from "./files.js";

/** Pixels of the preview's longer side. */
const PREVIEW_SIDE = 640;

const byId = (id) => document.getElementById(id);

export class Reference {
  image = null;
  /** The mask from the gateway, a PNG as base64. */
  #mask = null;
  /** Aborts the update that is under way. */
  #abort = null;

  /** @param {(error: Error) => void} onFailure */
  constructor(onFailure) {
    this.onFailure = onFailure;
    this.cutOut = byId("cut-out");
    this.status = byId("cut-out-status");
    this.cutOut.addEventListener("change", () => this.#show());
  }

  async open(image) {
    if (this.image) URL.revokeObjectURL(this.image.url);
    this.image = image;
    this.#mask = null;
    byId("reference-details").hidden = false;
    await this.#show();
  }

  /** Return the fields of an edit request that hold the reference. */
  async fields() {
    if (!this.image) return {};
    await this.settled;
    const fields = { reference_image: await toBase64(this.image.file) };
    if (this.cutOut.checked) fields.reference_mask_R = this.#mask;
    return fields;
  }

  /** Show the preview; this replaces an update that is under way. */
  #show() {
    this.#abort?.abort();
    this.#abort = new AbortController();
    this.settled = this.#update(this.#abort.signal);
    return this.settled;
  }

  async #update(signal) {
    this.status.textContent = "";
    if (this.cutOut.checked && !this.#mask) {
      await this.#draw(null, signal);
      await this.#detect(signal);
    }
    if (!signal.aborted) await this.#draw(this.cutOut.checked ? this.#mask : null, signal);
  }

  async #detect(signal) {
    this.status.textContent = "Looking for the object";
    try {
      const answer = await api.detectObject({ image: await toBase64(this.image.file) }, signal);
      if (signal.aborted) return;
      this.#mask = answer.mask_base64;
    } catch (error) {
      if (signal.aborted) return;
      this.cutOut.checked = false;
      this.onFailure(error);
    }
    this.status.textContent = "";
  }

  /** Draw the image, or only its part under the mask. */
  async #draw(mask, signal) {
    const { url, width, height } = this.image;
    const scale = Math.min(1, PREVIEW_SIDE / Math.max(width, height));
    const previewWidth = Math.max(1, Math.round(width * scale));
    const previewHeight = Math.max(1, Math.round(height * scale));
    const image = await loadImage(url);
    const stencil = mask && (await toStencil(mask, previewWidth, previewHeight, [0, 0, 0]));
    if (signal.aborted) return;
    const canvas = byId("reference-preview");
    canvas.width = previewWidth;
    canvas.height = previewHeight;
    const context = canvas.getContext("2d");
    if (stencil) {
      context.drawImage(stencil, 0, 0);
      context.globalCompositeOperation = "source-in";
    }
    context.drawImage(image, 0, 0, previewWidth, previewHeight);
  }
}
