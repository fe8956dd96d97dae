// The picture in Smart Mask: what is clicked goes into the node's prompt, and the mask shows over the picture.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { after, fit, frame, load, viewUrl } from "./widget.js";

const DRAG = 5; // CSS pixels: less is a click
const STEP = 0.02; // of the picture: what an arrow key moves the cursor by
const ENDS = ["execution_success", "execution_error", "execution_interrupted", "status"];
const HELP = "Click: this. Shift or right click: not this. Drag: box. C: next candidate. Ctrl+Z: undo. Delete: clear.";
const CONNECT = "Connect a picture, and run the node or click here.";
const HEIGHT = 240; // CSS pixels, at least

const rootGraph = () => app.rootGraph ?? app.graph;

const numbers = (list, count) => Array.isArray(list) && list.length === count && list.every(Number.isFinite);

/** The prompt as the node holds it; what in it is not ours is left out, and stays until something is clicked. */
function read(text) {
  try {
    const said = JSON.parse(text || "{}");
    const given = Array.isArray(said.points) ? said.points : [];
    const kept = [...given.keys()].filter((index) => numbers(given[index], 2));
    return {
      points: kept.map((index) => given[index]),
      labels: kept.map((index) => (said.labels?.[index] === 0 ? 0 : 1)),
      bbox: numbers(said.bbox, 4) ? said.bbox : null,
    };
  } catch {
    return { points: [], labels: [], bbox: null };
  }
}

/** The ids under which ComfyUI runs this node: one for each place where the subgraph that holds it is used. */
function executionIds(node, graph = rootGraph(), prefix = "") {
  if (node.graph === graph) return [`${prefix}${node.id}`];
  return graph.nodes
    .filter((other) => other.subgraph)
    .flatMap((other) => executionIds(node, other.subgraph, `${prefix}${other.id}:`));
}

/** The ids of the jobs, by the list of nodes that each is for: ComfyUI tells them to nobody but its own request. */
const jobs = new WeakMap();
const post = api.queuePrompt;
api.queuePrompt = async function (number, graph, options, ...more) {
  const answer = await post.call(this, number, graph, options, ...more);
  if (options?.partialExecutionTargets) jobs.set(options.partialExecutionTargets, answer.prompt_id);
  return answer;
};

class Picker {
  constructor(node) {
    this.node = node;
    this.size = null; // of the picture: [width, height]
    this.source = null; // the URL of the picture that is shown
    this.picture = null;
    this.tint = null; // the mask, as a canvas to draw over the picture
    this.undone = [];
    this.cursor = null; // for the keyboard: [x, y]
    this.drag = null;
    this.running = false;
    this.job = null; // the id of the run, once ComfyUI has taken it
    this.early = []; // what ended before that
    this.answered = false; // whether it gave a mask; an older ComfyUI does not give again what it has in its cache
    this.again = false;
    this.sharp = 1; // pixels of the canvas to one of the page

    this.element = frame(`Pick an object. ${HELP} Arrow keys and Enter place a point.`, HEIGHT);
    // The keys go to a text field, for there ComfyUI leaves them alone: its own Ctrl+Z undoes the graph.
    this.element.removeAttribute("tabindex");
    this.keys = document.createElement("input");
    this.keys.readOnly = true;
    this.keys.className = "artmancer-keys";
    this.keys.setAttribute("aria-label", this.element.getAttribute("aria-label"));
    this.canvas = document.createElement("canvas");
    this.words = document.createElement("div");
    this.words.className = "artmancer-words";
    this.element.append(this.keys, this.canvas, this.words);
    this.invite();

    this.prompt = node.widgets.find((widget) => widget.name === "prompt");
    this.candidate = node.widgets.find((widget) => widget.name === "candidate");
    // The picture shows it; each of ComfyUI's renderers looks at one of these.
    this.prompt.hidden = this.prompt.options.hidden = true;
    after(this.prompt, "callback", () => this.draw());
    const options = { serialize: false, getMinHeight: () => HEIGHT };
    node.addDOMWidget("picture", "ArtMancer_SmartMask", this.element, options).serialize = false;
    this.listen();
    after(node, "onAdded", () => this.start());
    after(node, "onRemoved", () => this.stop());
    after(node, "onExecuted", (output) => this.executed(output));
  }

  listen() {
    const { element } = this;
    element.addEventListener("pointerdown", (event) => this.press(event));
    element.addEventListener("pointermove", (event) => this.moved(event));
    element.addEventListener("pointerup", (event) => this.release(event));
    element.addEventListener("pointercancel", () => this.drop());
    element.addEventListener("contextmenu", (event) => {
      event.preventDefault();
      event.stopPropagation();
    });
    this.keys.addEventListener("keydown", (event) => this.key(event));
    this.resized = new ResizeObserver(() => this.draw());
    this.ended = (event) => {
      const { type, detail } = event;
      if (this.running && !this.job) this.early.push(event);
      // A run that is removed from the queue ends with nothing but an empty queue.
      const emptied = type === "status" && detail?.exec_info?.queue_remaining === 0;
      if (!this.job || (detail?.prompt_id !== this.job && !emptied)) return;
      [this.running, this.job] = [false, null];
      if (type === "execution_error") this.say(detail.exception_message);
      else if (!this.answered) this.invite();
      if (this.again) this.run();
    };
  }

  // A node that is never added to a graph, such as the copy a clipboard is filled from, must not stay alive for this.
  start() {
    this.resized.observe(this.element);
    for (const name of ENDS) api.addEventListener(name, this.ended);
    // A loader shows its picture before anything has run; no event tells when.
    this.timer = setInterval(() => this.look(), 500);
  }

  stop() {
    clearInterval(this.timer);
    this.resized.disconnect();
    for (const name of ENDS) api.removeEventListener(name, this.ended);
  }

  /** Show the picture of the loader that is connected, if there is one, as sharp as the graph is zoomed. */
  async look() {
    const { graph } = this.node;
    // ComfyUI empties a graph without a word to the nodes in its subgraphs.
    if (graph !== rootGraph() && rootGraph().subgraphs.get(graph.id) !== graph) return this.stop();
    if (Picker.sharpness() !== this.sharp) this.draw();
    const url = this.loaded();
    if (url === this.loader) return;
    this.loader = url;
    if (!url) return;
    const picture = await load(url).catch(() => null);
    if (!picture || url !== this.loader) return;
    this.tint = null;
    this.picture = picture;
    this.size = [picture.naturalWidth, picture.naturalHeight];
    this.invite();
    this.draw();
  }

  /** Where the picture of the connected loader is to be had; null where another node gives it. */
  loaded() {
    const slot = this.node.inputs.findIndex((input) => input.name === "image");
    const file = this.node.getInputNode?.(slot)?.widgets?.find((widget) => widget.name === "image")?.value;
    const named = typeof file === "string" && file.match(/^(?:(.*)\/)?([^/]+\.\w+?)(?: \[(input|output|temp)\])?$/);
    return named ? viewUrl({ subfolder: named[1] ?? "", filename: named[2], type: named[3] ?? "input" }) : null;
  }

  async executed(output) {
    if (!output?.artmancer_picture) return;
    this.answered = true;
    const { score, count, width, height } = output.artmancer_choice[0];
    const [picture, mask] = await Promise.all(
      [output.artmancer_picture, output.artmancer_mask].map(([file]) => load(viewUrl(file))),
    );
    this.picture = picture;
    this.size = [width, height];
    this.tint = Picker.tinted(mask);
    const which = count > 1 ? `, candidate ${(this.candidate.value % count) + 1} of ${count} (C)` : "";
    this.say(`Score ${score.toFixed(2)}${which}`);
    this.draw();
  }

  static tinted(mask) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [mask.naturalWidth, mask.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(mask, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    for (let at = 0; at < pixels.data.length; at += 4) {
      pixels.data[at + 3] = pixels.data[at] * 0.55;
      [pixels.data[at], pixels.data[at + 1], pixels.data[at + 2]] = [255, 64, 160];
    }
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  say(words) {
    this.words.textContent = words;
  }

  invite() {
    this.say(this.size ? HELP : CONNECT);
  }

  /** Where an event is in the picture, in its pixels; null outside. */
  place(event) {
    if (!this.size) return null;
    // The canvas may be zoomed: what the screen shows, over what the page laid out.
    const shown = this.element.getBoundingClientRect();
    const zoom = shown.width / this.element.clientWidth || 1;
    const { left, top, scale } = fit(this.element, ...this.size);
    const x = ((event.clientX - shown.left) / zoom - left) / scale;
    const y = ((event.clientY - shown.top) / zoom - top) / scale;
    return { x, y, inside: x >= 0 && y >= 0 && x < this.size[0] && y < this.size[1], screen: zoom * scale };
  }

  press(event) {
    event.stopPropagation();
    this.keys.focus({ preventScroll: true });
    if (event.button === 1) return;
    event.preventDefault();
    const place = this.place(event);
    if (!place) {
      this.run();
      return;
    }
    if (!place.inside) return;
    this.element.setPointerCapture(event.pointerId);
    this.drag = { from: place, to: place, negative: event.shiftKey || event.button === 2 };
  }

  moved(event) {
    if (!this.drag) return;
    event.stopPropagation();
    this.drag.to = this.place(event);
    this.draw();
  }

  drop() {
    this.drag = null;
    this.draw();
  }

  release(event) {
    if (!this.drag) return;
    event.stopPropagation();
    const { from, to, negative } = this.drag;
    this.drag = null;
    const across = Math.hypot(to.x - from.x, to.y - from.y) * from.screen;
    const said = read(this.prompt.value);
    if (across < DRAG) {
      this.change(Picker.withPoint(said, from.x, from.y, negative));
    } else {
      const [width, height] = this.size;
      const clip = (value, most) => Math.round(Math.min(most, Math.max(0, value)));
      const [left, right] = [from.x, to.x].sort((a, b) => a - b);
      const [top, bottom] = [from.y, to.y].sort((a, b) => a - b);
      said.bbox = [clip(left, width), clip(top, height), clip(right, width), clip(bottom, height)];
      this.change(said);
    }
  }

  static withPoint(said, x, y, negative) {
    const points = [...said.points, [Math.floor(x), Math.floor(y)]];
    return { ...said, points, labels: [...said.labels, negative ? 0 : 1] };
  }

  key(event) {
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const command = event.ctrlKey || event.metaKey;
    const said = read(this.prompt.value);
    if (command && event.key.toLowerCase() === "z") {
      if (this.undone.length) this.set(this.undone.pop(), 0);
    } else if (command || event.altKey) {
      return;
    } else if (event.key.toLowerCase() === "c") {
      this.set(this.prompt.value, this.candidate.value + 1);
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.change({ points: [], labels: [], bbox: null });
    } else if (this.size && arrows[event.key]) {
      const [width, height] = this.size;
      const [x, y] = this.cursor ?? [width / 2, height / 2];
      const [right, down] = arrows[event.key];
      this.cursor = [
        Math.min(width - 1, Math.max(0, x + right * STEP * width)),
        Math.min(height - 1, Math.max(0, y + down * STEP * height)),
      ];
      this.draw();
    } else if (this.size && event.key === "Enter") {
      const [x, y] = this.cursor ?? [this.size[0] / 2, this.size[1] / 2];
      this.change(Picker.withPoint(said, x, y, event.shiftKey));
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  change(said) {
    this.undone.push(this.prompt.value);
    const { points, labels, bbox } = said;
    const empty = !points.length && !bbox;
    this.set(empty ? "" : JSON.stringify({ points, labels, ...(bbox && { bbox }) }), 0);
  }

  set(text, candidate) {
    this.prompt.value = text;
    this.candidate.value = candidate % 100;
    app.graph.change?.();
    this.draw();
    this.run();
  }

  /** Run this node and what it needs, nothing else; a click that comes while it runs is answered after. */
  async run() {
    if (this.running) {
      this.again = true;
      return;
    }
    [this.running, this.again, this.early, this.answered] = [true, false, [], false];
    this.say("Looking for the object.");
    const targets = executionIds(this.node);
    try {
      await app.queuePrompt(0, 1, targets);
    } finally {
      this.job = jobs.get(targets) ?? null;
      if (!this.job) {
        this.running = false;
        this.invite();
      }
    }
    this.early.filter(({ detail }) => detail?.prompt_id === this.job).forEach(this.ended);
  }

  static sharpness() {
    return window.devicePixelRatio * Math.min(4, Math.max(1, app.canvas?.ds?.scale ?? 1));
  }

  draw() {
    const { canvas, element } = this;
    const [width, height] = [element.clientWidth, element.clientHeight];
    if (!width || !height) return;
    const sharp = (this.sharp = Picker.sharpness());
    [canvas.width, canvas.height] = [Math.round(width * sharp), Math.round(height * sharp)];
    const context = canvas.getContext("2d");
    context.setTransform(sharp, 0, 0, sharp, 0, 0);
    if (!this.size || !this.picture) return;
    const { left, top, scale } = fit(element, ...this.size);
    const [shownWidth, shownHeight] = this.size.map((side) => side * scale);
    context.drawImage(this.picture, left, top, shownWidth, shownHeight);
    if (this.tint) context.drawImage(this.tint, left, top, shownWidth, shownHeight);
    const at = (x, y) => [left + x * scale, top + y * scale];
    const { points, labels, bbox } = read(this.prompt.value);
    const box = this.dragged() ?? bbox;
    if (box) {
      const [x0, y0] = at(box[0], box[1]);
      const [x1, y1] = at(box[2], box[3]);
      context.setLineDash([5, 4]);
      context.strokeStyle = "#fff";
      context.strokeRect(x0, y0, x1 - x0, y1 - y0);
      context.setLineDash([]);
    }
    points.forEach(([x, y], index) => {
      context.beginPath();
      context.arc(...at(x + 0.5, y + 0.5), 5, 0, 2 * Math.PI);
      context.fillStyle = labels[index] ? "#3fbf5f" : "#e04040";
      context.fill();
      [context.lineWidth, context.strokeStyle] = [1.5, "#fff"];
      context.stroke();
    });
    if (this.cursor) {
      const [x, y] = at(...this.cursor);
      context.strokeStyle = "#fff";
      context.strokeRect(x - 8, y, 16, 0);
      context.strokeRect(x, y - 8, 0, 16);
    }
  }

  dragged() {
    if (!this.drag) return null;
    const { from, to } = this.drag;
    const far = Math.hypot(to.x - from.x, to.y - from.y) * from.screen >= DRAG;
    return far ? [from.x, from.y, to.x, to.y] : null;
  }
}

app.registerExtension({
  name: "ArtMancer.SmartMask",
  nodeCreated(node) {
    if (node.comfyClass === "ArtMancer_SmartMask") new Picker(node);
  },
});
