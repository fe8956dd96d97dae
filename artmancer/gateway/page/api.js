// Client of the gateway's HTTP API: the requests that this page sends. Their addresses are relative to the page's own: a
// proxy may serve it under any path.
import * as token from "./token.js";

/** An error with a message for the user. */
export class Failure extends Error {
  /**
   * @param {string} message
   * @param {number} status HTTP status of the response; 0: there was none
   * @param {string} [code] error_type of the response
   * @param {string} [field] the part of the request that is wrong
   */
  constructor(message, status = 0, code, field) {
    super(message);
    this.status = status;
    this.code = code;
    this.field = field;
  }

  /** True if the gateway requires a token that the request did not have. */
  get needsToken() {
    return this.status === 401 && this.field === "Authorization";
  }

  /** True if the same request may succeed a moment later. */
  get temporary() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** Make the error for a response that is not a success. */
async function failure(response) {
  const { detail, error_type: code, details } = await response.json().catch(() => ({}));
  const message = detail ?? `The gateway answered ${response.status} without a reason.`;
  return new Failure(message, response.status, code, details?.field);
}

/** Send a request, with the token if this tab has one; ask the user for it if the gateway requires one. */
async function request(path, options = {}) {
  for (;;) {
    const sent = token.current();
    const response = await fetch(`api/${path}`, { ...options, headers: { ...options.headers, ...token.header() } });
    if (response.ok) return response;
    const error = await failure(response);
    if (!error.needsToken) throw error;
    if (!(await token.replace(sent))) {
      throw new Failure("The gateway requires a token. Try again to enter it.", error.status, error.code, error.field);
    }
  }
}

/**
 * Send a request and return the content of the response.
 * @param {"json" | "blob"} type of the content
 */
async function call(path, options, type = "json") {
  try {
    const response = await request(path, options);
    return await response[type]();
  } catch (error) {
    if (error instanceof Failure || error.name === "AbortError") throw error;
    throw new Failure("The gateway cannot be reached. Check the connection, and try again.");
  }
}

function post(path, body, signal, type) {
  const options = { method: "POST", signal };
  if (body) {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(body);
  }
  return call(path, options, type);
}

export const health = () => call("health");

export const smartMask = (body, signal) => post("smart-mask", body, signal);
export const detectObject = (body, signal) => post("smart-mask/detect", body, signal);

export const preview = (body) => post("image-utils/preview", body, undefined, "blob");

export const submit = (body, signal) => post("generate/async", body, signal);
export const status = (id) => call(`generate/status/${id}`);
export const cancel = (id) => post(`generate/async/cancel/${id}`);
export const result = (id) => call(`generate/result/${id}`);
export const resultImage = (id) => call(`generate/result-image/${id}`, {}, "blob");

/**
 * Yield each status in the event stream of a job. An EventSource cannot send a token, so this reads the stream itself:
 * each event is one line, "data: " and JSON, and an empty line.
 * @param {AbortSignal} signal
 */
export async function* stream(id, signal) {
  const { body } = await request(`generate/stream/${id}`, { signal });
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pieces = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const [rest, ...lines] = value.split("\n");
    pieces.push(rest);
    for (const line of lines) {
      const event = pieces.join("");
      pieces = [line];
      if (event) yield JSON.parse(event.slice("data: ".length));
    }
  }
}
