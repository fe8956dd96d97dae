// Clicks on the photo become objects on the mask.
import * as api from "./api.js";
import { COLOR } from "./mask.js";
import { toBase64, toStencil } from "./files.js";

export class Picker {
  /** Resolves when no answer is awaited any more. */
  settled = Promise.resolve();
  #asked = null;
  #request = null;

  /** @param {{onChange: () => void, onFailure: (error: Error) => void}} listener */
  constructor(mask, listener) {
    this.mask = mask;
    this.listener = listener;
  }

  open(photo) {
    this.drop();
    this.photo = photo;
    this.imageId = null;
  }

  get busy() {
    return this.#asked !== null;
  }

  /** The object that further clicks refine: what is asked for now, or else what was put on the mask last. */
  get object() {
    const last = this.mask.marks.at(-1);
    return this.#asked ?? (last && "stencil" in last ? last : null);
  }

  /** @param {number} label 1: this, 0: not this */
  click(x, y, label) {
    const { points, labels } = this.object ?? { points: [], labels: [] };
    this.#ask({ points: [...points, [x, y]], labels: [...labels, label], candidate: 0 });
  }

  next() {
    const { points, labels, candidate, candidates } = this.object;
    this.#ask({ points, labels, candidate: (candidate + 1) % candidates });
  }

  /** Forget what is asked for. */
  drop() {
    this.#request?.abort();
    this.#request = this.#asked = null;
    this.listener.onChange();
  }

  #ask(said) {
    const old = this.#asked?.old ?? this.object;
    this.#request?.abort();
    this.#request = new AbortController();
    this.#asked = { ...said, old };
    this.listener.onChange();
    this.settled = this.#answer(said, old, this.#request.signal);
  }

  async #answer(said, old, signal) {
    try {
      const { candidate, ...clicked } = said;
      const answer = await this.#send(candidate ? said : clicked, signal);
      const { canvas } = this.mask;
      const stencil = await toStencil(answer.mask_base64, canvas.width, canvas.height, COLOR);
      if (signal.aborted) return;
      this.#asked = null;
      this.mask.put({ ...said, candidates: answer.candidates, stencil }, old);
    } catch (error) {
      // A later click has overtaken this one.
      if (signal.aborted) return;
      this.#asked = null;
      this.listener.onFailure(error);
    }
    this.listener.onChange();
  }

  /** Ask with the id that the gateway gave the picture, or with the picture where it has none, or has it no more. */
  async #send(said, signal) {
    const { photo } = this;
    if (this.imageId) {
      try {
        return await api.smartMask({ image_id: this.imageId, ...said }, signal);
      } catch (error) {
        if (error.status !== 404 || error.code === "object_not_found") throw error;
      }
    }
    const answer = await api.smartMask({ image: await toBase64(photo.file), ...said }, signal);
    if (photo === this.photo) this.imageId = answer.image_id;
    return answer;
  }
}
