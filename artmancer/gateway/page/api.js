// The gateway's HTTP contract, as far as this page uses it.

/** What went wrong, in a sentence for the person at the page. */
export class Failure extends Error {
  /**
   * @param {string} message
   * @param {number} status of the answer; 0 where none came
   * @param {string} [code] the contract's error_type
   */
  constructor(message, status = 0, code) {
    super(message);
    this.status = status;
    this.code = code;
  }

  /** Whether the same request may succeed a moment later. */
  get passing() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

async function failure(response) {
  const { detail, error_type: code } = await response.json().catch(() => ({}));
  const sentence = detail ?? `The gateway answered ${response.status}, and did not say why.`;
  const asksForToken = response.status === 401 ? "The gateway asks for a token, and this page has none. " : "";
  return new Failure(asksForToken + sentence, response.status, code);
}

async function call(path, options, read = "json") {
  try {
    const response = await fetch(`/api/${path}`, options);
    if (!response.ok) throw await failure(response);
    return await response[read]();
  } catch (error) {
    if (error instanceof Failure || error.name === "AbortError") throw error;
    throw new Failure("The gateway cannot be reached. Check the connection, and try again.");
  }
}

const post = (path, body, signal) =>
  call(path, {
    method: "POST",
    signal,
    ...(body && { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }),
  });

export const health = () => call("health");

export const smartMask = (body, signal) => post("smart-mask", body, signal);
export const detectObject = (body, signal) => post("smart-mask/detect", body, signal);

export const submit = (body, signal) => post("generate/async", body, signal);
export const status = (id) => call(`generate/status/${id}`);
export const cancel = (id) => post(`generate/async/cancel/${id}`);
export const result = (id) => call(`generate/result/${id}`);
export const resultImage = (id) => call(`generate/result-image/${id}`, {}, "blob");

/** Opens the stream of a job's statuses. */
export const stream = (id) => new EventSource(`/api/generate/stream/${id}`);
