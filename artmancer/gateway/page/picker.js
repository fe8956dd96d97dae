// Turns clicks on the photo into objects on the mask, by requests to /api/smart-mask.
import * as api from "./api.js";
import { toBase64 } from "./files.js";

export class Picker {
  /** Resolves when no request is under way any more. */
  settled = Promise.resolve();
  /** The clicks of the request that is under way, and the object that its answer replaces. */
  #pending = null;
  /** Aborts the request that is under way. */
  #abort = null;

  /** @param {{onChange: () => void, onFailure: (error: Error) => void}} listener */
  constructor(mask, listener) {
    this.mask = mask;
    this.listener = listener;
  }

  /** Start with another photo. */
  open(photo) {
    this.drop();
    this.photo = photo;
    this.imageId = null;
  }

  get busy() {
    return this.#pending !== null;
  }

  /** The object that the next click refines: the one that is requested now, else the last one on the mask. */
  get object() {
    return this.#pending ?? this.mask.lastObject;
  }

  /**
   * Add a click to the present object, or begin an object with it.
   * @param {number} label 1: on the object; 0: not on it
   */
  click(x, y, label) {
    const { points, labels } = this.object ?? { points: [], labels: [] };
    this.#start({ points: [...points, [x, y]], labels: [...labels, label], candidate: 0 });
  }

  /** Request the next object that matches the same clicks. */
  next() {
    const { points, labels, candidate, candidates } = this.object;
    this.#start({ points, labels, candidate: (candidate + 1) % candidates });
  }

  /** Abort the request that is under way. */
  drop() {
    this.#abort?.abort();
    this.#abort = null;
    this.#pending = null;
    this.listener.onChange();
  }

  /** Start a request. It replaces one that is under way. */
  #start(clicks) {
    const old = this.#pending?.old ?? this.object;
    this.#abort?.abort();
    this.#abort = new AbortController();
    this.#pending = { ...clicks, old };
    this.listener.onChange();
    this.settled = this.#pick(clicks, old, this.#abort.signal);
  }

  async #pick(clicks, old, signal) {
    try {
      const answer = await this.#send(clicks, signal);
      const object = { ...clicks, candidates: answer.candidates, png: answer.mask_base64 };
      await this.mask.prepare(object);
      if (signal.aborted) return;
      this.#pending = null;
      this.mask.addObject(object, old);
    } catch (error) {
      // A later click has replaced this request.
      if (signal.aborted) return;
      this.#pending = null;
      this.listener.onFailure(error);
    }
    this.listener.onChange();
  }

  /** Send the clicks with the image_id from an earlier answer. If there is none, or it has expired, send the photo. */
  async #send({ points, labels, candidate }, signal) {
    const { photo } = this;
    const body = { points, labels };
    if (candidate) body.candidate = candidate;
    if (this.imageId) {
      try {
        return await api.smartMask({ image_id: this.imageId, ...body }, signal);
      } catch (error) {
        if (error.status !== 404 || error.code === "object_not_found") throw error;
      }
    }
    const answer = await api.smartMask({ image: await toBase64(photo.file), ...body }, signal);
    // Another photo may have been opened meanwhile.
    if (photo === this.photo) this.imageId = answer.image_id;
    return answer;
  }
}
