// The picture of the object to insert, and the mask that cuts it out.
import * as api from "./api.js";
import { decoded, toBase64, toStencil } from "./files.js";

const PREVIEW = 640; // pixels of its longer side

const byId = (id) => document.getElementById(id);

export class Reference {
  picture = null;
  #mask = null; // base64, as the gateway sent it
  #request = null;

  /** @param {(error: Error) => void} onFailure */
  constructor(onFailure) {
    this.onFailure = onFailure;
    this.cutOut = byId("cut-out");
    this.status = byId("cut-out-status");
    this.cutOut.addEventListener("change", () => this.#show());
  }

  async open(picture) {
    if (this.picture) URL.revokeObjectURL(this.picture.url);
    this.picture = picture;
    this.#mask = null;
    byId("reference-details").hidden = false;
    await this.#show();
  }

  /** What a request says of it. */
  async fields() {
    if (!this.picture) return {};
    await this.settled;
    return {
      reference_image: await toBase64(this.picture.file),
      ...(this.cutOut.checked && { reference_mask_R: this.#mask }),
    };
  }

  #show() {
    this.#request?.abort();
    this.#request = new AbortController();
    this.settled = this.#update(this.#request.signal);
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
      const answer = await api.detectObject({ image: await toBase64(this.picture.file) }, signal);
      if (signal.aborted) return;
      this.#mask = answer.mask_base64;
    } catch (error) {
      if (signal.aborted) return;
      this.cutOut.checked = false;
      this.onFailure(error);
    }
    this.status.textContent = "";
  }

  async #draw(mask, signal) {
    const { url, width, height } = this.picture;
    const scale = Math.min(1, PREVIEW / Math.max(width, height));
    const size = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
    const image = await decoded(url);
    const stencil = mask && (await toStencil(mask, ...size, [0, 0, 0]));
    if (signal.aborted) return;
    const canvas = byId("reference-preview");
    [canvas.width, canvas.height] = size;
    const context = canvas.getContext("2d");
    if (stencil) {
      context.drawImage(stencil, 0, 0);
      context.globalCompositeOperation = "source-in";
    }
    context.drawImage(image, 0, 0, ...size);
  }
}
