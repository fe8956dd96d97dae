// Where a job is, from its submission to its end.
import * as api from "./api.js";

const ENDED = new Set(["done", "error", "cancelled"]);
const SILENCE = 15_000; // ms; the gateway says something every 5 s
const PAUSE = 1_000; // ms between two questions

/**
 * Follow a job to its end.
 * @param {(status: object | null) => void} tell hears of each status; null: the connection is lost for now
 * @returns the last status
 */
export async function follow(id, tell) {
  return (await watch(id, tell)) ?? poll(id, tell);
}

/** By the stream; resolves to nothing where it breaks. */
function watch(id, tell) {
  return new Promise((resolve) => {
    const stream = api.stream(id);
    let timer;
    const leave = (last) => {
      clearTimeout(timer);
      stream.close();
      resolve(last);
    };
    const wait = () => {
      clearTimeout(timer);
      timer = setTimeout(leave, SILENCE);
    };
    stream.onmessage = (event) => {
      const status = JSON.parse(event.data);
      tell(status);
      if (ENDED.has(status.status)) leave(status);
      else wait();
    };
    stream.onerror = () => leave();
    wait();
  });
}

async function poll(id, tell) {
  for (;;) {
    try {
      const status = await api.status(id);
      tell(status);
      if (ENDED.has(status.status)) return status;
    } catch (error) {
      if (!error.passing) throw error;
      tell(null);
    }
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
  }
}

/** A status in words. */
export function describe(status) {
  if (!status) return "The connection is lost. Trying again.";
  const { queue_position: position, loading_message: message, current_step: step, total_steps: steps } = status;
  switch (status.status) {
    case "queued":
      return position ? `Waiting, number ${position} in the queue` : "Waiting";
    case "loading_pipeline":
      return sentence(message) || "Loading the model";
    case "processing":
      return [sentence(message), steps ? `Step ${step} of ${steps}` : ""].filter(Boolean).join(". ") || "Working";
    case "done":
      return "Done";
    case "cancelled":
      return "Cancelled";
    default:
      return "";
  }
}

const sentence = (text) => text && text[0].toUpperCase() + text.slice(1);

// One job a tab is remembered, so that a reload finds it again.
const KEY = "artmancer.job";

export const remember = (job) => sessionStorage.setItem(KEY, JSON.stringify(job));
export const forget = () => sessionStorage.removeItem(KEY);
export const remembered = () => JSON.parse(sessionStorage.getItem(KEY));
