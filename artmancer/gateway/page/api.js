// Client of the gateway's HTTP API: the requests that this page sends.

/** An error with a message for the user. */
export class Failure extends Error {
  /**
   * @param {string} message
   * @param {number} status HTTP status of the response; 0: there was none
   * @param {string} [code] error_type of the response
   */
  constructor(message, status = 0, code) {
    super(message);
    this.status = status;
    this.code = code;
  }

  /** True if the same request may succeed a moment later. */
  get temporary() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** Make the error for a response that is not a success. */
async function failure(response) {
  const { detail, error_type: code } = await response.json().catch(() => ({}));
  const message = detail ?? `The gateway answered ${response.status} without a reason.`;
  const hint = response.status === 401 ? "The gateway requires a token, which this page cannot send. " : "";
  return new Failure(hint + message, response.status, code);
}

/**
 * Send a request and return the content of the response.
 * @param {"json" | "blob"} type of the content
 */
async function call(path, options, type = "json") {
  try {
    const response = await fetch(`/api/${path}`, options);
    if (!response.ok) throw await failure(response);
    return await response[type]();
  } catch (error) {
    if (error instanceof Failure || error.name === "AbortError") throw error;
    throw new Failure("The gateway cannot be reached. Check the connection, and try again.");
  }
}

function post(path, body, signal) {
  const options = { method: "POST", signal };
  if (body) {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(body);
  }
  return call(path, options);
}

export const health = () => call("health");

export const smartMask = (body, signal) => post("smart-mask", body, signal);
export const detectObject = (body, signal) => post("smart-mask/detect", body, signal);

export const submit = (body, signal) => post("generate/async", body, signal);
export const status = (id) => call(`generate/status/${id}`);
export const cancel = (id) => post(`generate/async/cancel/${id}`);
export const result = (id) => call(`generate/result/${id}`);
export const resultImage = (id) => call(`generate/result-image/${id}`, {}, "blob");

/** Open the stream of a job's status. */
export const stream = (id) => new EventSource(`/api/generate/stream/${id}`);
