// Follows a job from its submission to its end: by its event stream, or else by polling.
import * as api from "./api.js";

const ENDED = new Set(["done", "error", "cancelled"]);

/** Milliseconds without an event after which a stream counts as broken. The gateway sends an event every 5 s. */
const STREAM_TIMEOUT = 15_000;

/** Milliseconds between two requests for the status. */
const POLL_INTERVAL = 1_000;

/**
 * Follow a job to its end.
 * @param {string} id
 * @param {AbortSignal} signal ends the following, with its reason as the error
 * @param {(status: object | null) => void} onStatus called with each status; null: the connection is lost for now
 * @returns the last status
 */
export async function follow(id, signal, onStatus) {
  return (await followStream(id, signal, onStatus)) ?? poll(id, signal, onStatus);
}

/** Follow a job by its stream; returns undefined if the stream breaks. */
async function followStream(id, signal, onStatus) {
  const abort = new AbortController();
  const stop = () => abort.abort();
  signal.addEventListener("abort", stop);
  let timer;
  const restartTimer = () => {
    clearTimeout(timer);
    timer = setTimeout(stop, STREAM_TIMEOUT);
  };
  restartTimer();
  try {
    for await (const status of api.stream(id, abort.signal)) {
      restartTimer();
      onStatus(status);
      if (ENDED.has(status.status)) return status;
    }
  } catch (error) {
    // A stream that breaks loses nothing: the status is requested next.
    if (error instanceof api.Failure && !error.temporary) throw error;
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", stop);
    stop();
  }
  return undefined;
}

async function poll(id, signal, onStatus) {
  for (;;) {
    signal.throwIfAborted();
    try {
      const status = await api.status(id);
      onStatus(status);
      if (ENDED.has(status.status)) return status;
    } catch (error) {
      if (!error.temporary) throw error;
      onStatus(null);
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_INTERVAL));
  }
}

/** Describe a status to the user; null: the connection is lost. */
export function describe(status) {
  if (!status) return "The connection is lost. Trying again.";
  const { queue_position: position, loading_message: message, current_step: step, total_steps: steps } = status;
  switch (status.status) {
    case "queued":
      return position ? `Waiting, number ${position} in the queue` : "Waiting";
    case "loading_pipeline":
      return capitalize(message) || "Loading the model";
    case "processing": {
      const parts = [];
      if (message) parts.push(capitalize(message));
      if (steps) parts.push(`Step ${step} of ${steps}`);
      return parts.join(". ") || "Working";
    }
    case "done":
      return "Done";
    case "cancelled":
      return "Cancelled";
    default:
      return "";
  }
}

const capitalize = (text) => text && text[0].toUpperCase() + text.slice(1);
