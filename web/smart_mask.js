// The image in Smart Mask: clicks go into the node's prompt, and the mask is drawn over the image.
// Importing this file patches api.queuePrompt for the whole page: it notes the id of each job, see `jobIds`.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { MARGIN, after, fit, frame, hide, load, passToCanvas, viewUrl } from "./widget.js";

/** Shortest drag of a mouse and of a finger, in CSS pixels; a shorter one is a click. */
const DRAG = 5;
const TOUCH_DRAG = 12;
/** Milliseconds after which a finger that rests marks what is not the object. */
const LONG_PRESS = 500;
/** Step of an arrow key, as a share of the image's side. */
const STEP = 0.02;
/** Events that may end a run. */
const END_EVENTS = ["execution_success", "execution_error", "execution_interrupted", "status"];
const HELP = "Click: the object. Shift-click or right-click: not the object. Drag: a box.";
/** What each key and each button of the mouse does. With a method, the key is a button of the list, too. */
const KEYS = [
  ["Click", "the object"],
  ["Shift-click, right-click, long press", "not the object"],
  ["Drag", "a box around the object"],
  ["C", "the next candidate", "nextCandidate"],
  ["Ctrl+Z", "undo", "undo"],
  ["Ctrl+Y, Ctrl+Shift+Z", "redo", "redo"],
  ["Delete", "clear", "clear"],
  ["Arrow keys", "move the cursor"],
  ["Enter, Shift+Enter", "a point at the cursor"],
  ["?", "this list"],
];
const NO_OBJECT = "No object there. Click on it, or drag a box around it.";
const OUTSIDE = "That is outside the photo. Click on the photo.";
const NEW_CHOICE = "Outside the box: a new choice.";
const CONNECT = "Connect an image, then run the node or click here.";
/** Smallest height in CSS pixels. */
const HEIGHT = 240;
/** Milliseconds between two checks of the connected loader. */
const LOADER_INTERVAL = 500;
/** Color of the mask over the image: red, green and blue, 0 to 255, and the opacity where the mask is white. */
const TINT = [255, 64, 160];
const OPACITY = 0.55;

const rootGraph = () => app.rootGraph ?? app.graph;

/** Tell whether an image is a copy that ComfyUI's MaskEditor saved, with a painted mask: the photo is the same. */
const isPaintedCopy = (url) => url.includes("subfolder=clipspace");

const numbers = (list, count) => Array.isArray(list) && list.length === count && list.every(Number.isFinite);

/** Read the clicks from the node's prompt. Invalid parts are skipped; they stay in the prompt until the next click. */
function readClicks(text) {
  try {
    const prompt = JSON.parse(text || "{}");
    const points = Array.isArray(prompt.points) ? prompt.points : [];
    const valid = [...points.keys()].filter((index) => numbers(points[index], 2));
    return {
      points: valid.map((index) => points[index]),
      labels: valid.map((index) => (prompt.labels?.[index] === 0 ? 0 : 1)),
      bbox: numbers(prompt.bbox, 4) ? prompt.bbox : null,
    };
  } catch {
    return { points: [], labels: [], bbox: null };
  }
}

/** Return the ids under which ComfyUI runs this node: one for each use of the subgraph that holds it. */
function executionIds(node, graph = rootGraph(), prefix = "") {
  if (node.graph === graph) return [`${prefix}${node.id}`];
  return graph.nodes
    .filter((other) => other.subgraph)
    .flatMap((other) => executionIds(node, other.subgraph, `${prefix}${other.id}:`));
}

/**
 * Ids of jobs, by the list of nodes that each job runs. A node needs the id to recognize the end of its own job. Only
 * the answer to the request holds it, and app.queuePrompt does not return that.
 */
const jobIds = new WeakMap();
const queuePrompt = api.queuePrompt;
api.queuePrompt = async function (number, graph, options, ...rest) {
  const answer = await queuePrompt.call(this, number, graph, options, ...rest);
  if (options?.partialExecutionTargets) jobIds.set(options.partialExecutionTargets, answer.prompt_id);
  return answer;
};

/**
 * Return the error message of a job that has ended, "" if it ended without an error or was removed from the queue; null
 * while it waits or runs, or if ComfyUI does not answer.
 */
async function fetchEnd(jobId) {
  const fetchJson = async (path) => (await api.fetchApi(path)).json();
  try {
    const queue = await fetchJson("/queue");
    if ([...queue.queue_running, ...queue.queue_pending].some(([, id]) => id === jobId)) return null;
    const messages = (await fetchJson(`/history/${jobId}`))[jobId]?.status?.messages ?? [];
    return messages.find(([type]) => type === "execution_error")?.[1].exception_message ?? "";
  } catch {
    return null;
  }
}

class Picker {
  constructor(node) {
    this.node = node;
    // The image: the URL of the connected loader's file, the last one that there was, the image element, and
    // [width, height] of the photo.
    this.loaderUrl = null;
    this.lastUrl = null;
    this.image = null;
    this.size = null;
    // The mask as a canvas to draw over the image.
    this.tint = null;
    // Earlier prompts, for undo, and undone ones, for redo.
    this.history = [];
    this.undone = [];
    // The number of candidates for the clicks; 0 if it is not known.
    this.count = 0;
    // What to say of the last click beside the texts of its run.
    this.note = "";
    // The cursor of the keyboard, [x, y] in pixels of the photo.
    this.cursor = null;
    this.drag = null;
    // The run: whether there is one, the id of its job once it is queued, and end events that came before the id.
    this.running = false;
    this.jobId = null;
    this.earlyEvents = [];
    // Whether the run returned a mask. An older ComfyUI returns nothing if the result is in its cache.
    this.hasResult = false;
    // Whether the node was loaded with clicks whose mask is not shown yet.
    this.needsMask = false;
    // Whether to run once more after this run.
    this.runAgain = false;
    // Pixels of the canvas to one CSS pixel.
    this.sharpness = 1;

    this.element = frame(`Pick an object. ${KEYS.map(([key, action]) => `${key}: ${action}`).join(". ")}.`, HEIGHT);
    // A text field receives the keys: elsewhere ComfyUI handles them itself, and its Ctrl+Z undoes the graph.
    this.element.removeAttribute("tabindex");
    this.keys = document.createElement("input");
    this.keys.readOnly = true;
    this.keys.className = "artmancer-keys";
    this.keys.setAttribute("aria-label", this.element.getAttribute("aria-label"));
    this.canvas = document.createElement("canvas");
    this.words = document.createElement("div");
    this.words.className = "artmancer-words";
    this.makeKeyList();
    this.element.append(this.keys, this.canvas, this.words, this.keyButton, this.keyList);
    this.showHelp();

    this.prompt = node.widgets.find((widget) => widget.name === "prompt");
    this.candidate = node.widgets.find((widget) => widget.name === "candidate");
    // The image shows the clicks, and which candidate it is. Each of ComfyUI's two renderers reads one of these.
    for (const widget of [this.prompt, this.candidate]) {
      hide(widget, true);
      widget.options.hidden = true;
    }
    after(this.prompt, "callback", () => this.draw());
    // The panel of a node's inputs would take the element out of the node.
    const options = { serialize: false, hideOnZoom: false, hideInPanel: true };
    options.getMinHeight = () => HEIGHT + 2 * MARGIN;
    const widget = node.addDOMWidget("picture", "ArtMancer_SmartMask", this.element, options);
    widget.serialize = false;
    // What ComfyUI's App mode calls it.
    widget.label = "object";
    node.expandToFitContent();
    this.listen();
    passToCanvas(this.element);
    after(node, "onConfigure", () => (this.needsMask = Boolean(this.prompt.value)));
    after(node, "onAdded", () => this.start());
    after(node, "onRemoved", () => this.stop());
    after(node, "onExecuted", (output) => this.executed(output));
  }

  listen() {
    const { element } = this;
    element.addEventListener("pointerdown", (event) => this.press(event));
    element.addEventListener("pointermove", (event) => this.move(event));
    element.addEventListener("pointerup", (event) => this.release(event));
    element.addEventListener("pointercancel", () => this.cancelDrag());
    element.addEventListener("contextmenu", (event) => {
      event.preventDefault();
      event.stopPropagation();
    });
    this.keys.addEventListener("keydown", (event) => this.key(event));
    this.resizeObserver = new ResizeObserver(() => this.draw());
    this.onEnd = async (event) => {
      const { type, detail } = event;
      const { jobId } = this;
      if (this.running && !jobId) this.earlyEvents.push(event);
      if (!jobId) return;
      let message = type === "execution_error" ? detail.exception_message : "";
      if (detail?.prompt_id !== jobId) {
        // A job that is removed from the queue has no end event, and a lost connection loses events: only the queue
        // becomes empty. It may also have been empty before this job was queued.
        if (type !== "status" || detail?.exec_info?.queue_remaining !== 0) return;
        message = await fetchEnd(jobId);
        if (message === null || this.jobId !== jobId) return;
      }
      this.setRunning(false);
      this.jobId = null;
      if (message) {
        // The mask of the clicks before is not the answer to these.
        this.tint = null;
        this.showText(message);
        this.draw();
      } else if (!this.hasResult) this.showHelp();
      if (this.runAgain) this.run();
    };
  }

  /** Make the list of keys, and the button that opens and closes it. */
  makeKeyList() {
    this.keyList = document.createElement("dl");
    this.keyList.className = "artmancer-keylist";
    this.keyList.hidden = true;
    for (const [key, action, method] of KEYS) {
      const term = document.createElement("dt");
      const name = Object.assign(document.createElement(method ? "button" : "span"), { textContent: key });
      if (method) {
        name.type = "button";
        name.setAttribute("aria-label", action);
        name.addEventListener("click", (event) => {
          event.stopPropagation();
          this[method]();
        });
      }
      term.append(name);
      this.keyList.append(term, Object.assign(document.createElement("dd"), { textContent: action }));
    }
    this.keyButton = Object.assign(document.createElement("button"), { textContent: "?", title: "Keys", type: "button" });
    this.keyButton.className = "artmancer-keybutton";
    // The keys stay with the picture: without this, the button that is pressed takes the focus.
    this.keyList.addEventListener("mousedown", (event) => event.preventDefault());
    for (const part of [this.keyButton, this.keyList]) {
      part.addEventListener("pointerdown", (event) => event.stopPropagation());
      part.addEventListener("click", () => this.toggleKeyList());
    }
  }

  toggleKeyList() {
    this.keyList.hidden = !this.keyList.hidden;
    this.keyButton.setAttribute("aria-expanded", String(!this.keyList.hidden));
    this.keys.focus({ preventScroll: true });
  }

  // Listeners are added here and not in the constructor: a node that is never added to a graph, such as a copy for the
  // clipboard, could otherwise not be freed.
  start() {
    this.resizeObserver.observe(this.element);
    // A longer text takes more of the height: the picture is drawn smaller.
    this.resizeObserver.observe(this.words);
    for (const name of END_EVENTS) api.addEventListener(name, this.onEnd);
    // A loader shows its image before any run, and there is no event for it.
    this.timer = setInterval(() => this.followLoader(), LOADER_INTERVAL);
  }

  stop() {
    clearInterval(this.timer);
    this.resizeObserver.disconnect();
    for (const name of END_EVENTS) api.removeEventListener(name, this.onEnd);
  }

  /** Show the image of the connected loader, if there is one, at the sharpness of the graph's zoom. */
  async followLoader() {
    const { graph } = this.node;
    // When ComfyUI clears a graph, the nodes in its subgraphs receive no event.
    if (graph !== rootGraph() && rootGraph().subgraphs.get(graph.id) !== graph) return this.stop();
    this.moveIntoView();
    if (Picker.screenSharpness() !== this.sharpness) this.draw();
    const url = this.loaderImageUrl();
    if (url === this.loaderUrl) return;
    this.loaderUrl = url;
    if (!url) return;
    if (this.lastUrl && url !== this.lastUrl && !isPaintedCopy(url)) this.forgetClicks();
    this.lastUrl = url;
    const image = await load(url).catch(() => null);
    if (!image || url !== this.loaderUrl) return;
    this.tint = null;
    this.image = image;
    this.size = [image.naturalWidth, image.naturalHeight];
    this.showHelp();
    this.draw();
    if (this.needsMask && this.canRun()) this.run();
    this.needsMask = false;
  }

  /**
   * Move the element to where the node's inputs are visible. The frontend shows them in several places, the node, the
   * app and its builder, and each takes the element when it opens: in the builder's preview, the hidden node is last.
   */
  moveIntoView() {
    if (this.element.offsetWidth) return;
    const places = document.querySelectorAll(
      `[data-widgets-grid-node-id="${this.node.id}"] [node-type="${this.node.comfyClass}"]`,
    );
    const place = [...places].find((element) => element.offsetWidth && !element.childElementCount);
    place?.append(this.element);
  }

  /** Tell whether the loaded node can run at once: its model is among those of this ComfyUI. */
  canRun() {
    const { value, options } = this.node.widgets.find((widget) => widget.name === "model");
    return options.values.includes(value);
  }

  /** Return the URL of the connected loader's image; null if the image comes from another node. */
  loaderImageUrl() {
    const slot = this.node.inputs.findIndex((input) => input.name === "image");
    const value = this.node.getInputNode?.(slot)?.widgets?.find((widget) => widget.name === "image")?.value;
    const parts = typeof value === "string" && value.match(/^(?:(.*)\/)?([^/]+\.\w+?)(?: \[(input|output|temp)\])?$/);
    return parts ? viewUrl({ subfolder: parts[1] ?? "", filename: parts[2], type: parts[3] ?? "input" }) : null;
  }

  async executed(output) {
    if (!output?.artmancer_picture) return;
    this.hasResult = true;
    const { score, count, width, height } = output.artmancer_choice[0];
    const [image, mask] = await Promise.all(
      [output.artmancer_picture, output.artmancer_mask].map(([file]) => load(viewUrl(file))),
    );
    this.image = image;
    this.size = [width, height];
    this.tint = Picker.tintedMask(mask);
    // The result may be of earlier clicks, whose number of candidates says nothing of the latest.
    if (!this.runAgain) this.count = count;
    const candidate = count > 1 ? `, candidate ${(this.candidate.value % count) + 1} of ${count} (C)` : "";
    this.showText(score ? `${this.note} Score ${score.toFixed(2)}${candidate}`.trim() : NO_OBJECT);
    this.draw();
  }

  /** Return a canvas that is pink where the mask is white, and transparent where it is black. */
  static tintedMask(mask) {
    const canvas = document.createElement("canvas");
    canvas.width = mask.naturalWidth;
    canvas.height = mask.naturalHeight;
    const context = canvas.getContext("2d");
    context.drawImage(mask, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    for (let index = 0; index < pixels.data.length; index += 4) {
      pixels.data[index + 3] = pixels.data[index] * OPACITY;
      pixels.data[index] = TINT[0];
      pixels.data[index + 1] = TINT[1];
      pixels.data[index + 2] = TINT[2];
    }
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  showText(text) {
    this.words.textContent = text;
  }

  showHelp() {
    this.showText(this.size ? HELP : CONNECT);
  }

  /**
   * Return the place of a pointer event in pixels of the photo, whether it is inside, and `zoom`, the CSS pixels of the
   * screen to one pixel of the photo; null if there is no image.
   */
  position(event) {
    if (!this.size) return null;
    // The graph may be zoomed: the element's size on the screen differs from its size in the layout.
    const rectangle = this.element.getBoundingClientRect();
    const graphZoom = rectangle.width / this.element.clientWidth || 1;
    const { left, top, scale } = this.place();
    const x = ((event.clientX - rectangle.left) / graphZoom - left) / scale;
    const y = ((event.clientY - rectangle.top) / graphZoom - top) / scale;
    const inside = x >= 0 && y >= 0 && x < this.size[0] && y < this.size[1];
    return { x, y, inside, zoom: graphZoom * scale };
  }

  /** Return the place of the image in the element, above the words: left, top and scale, in CSS pixels. */
  place() {
    return fit(this.element.clientWidth, this.element.clientHeight - this.words.offsetHeight, ...this.size);
  }

  press(event) {
    if (event.button === 1) return;
    event.stopPropagation();
    this.keys.focus({ preventScroll: true });
    event.preventDefault();
    const position = this.position(event);
    if (!position) {
      this.run();
      return;
    }
    // A second finger is no click.
    if (this.drag) {
      this.cancelDrag();
      return;
    }
    if (!position.inside) {
      this.showText(OUTSIDE);
      return;
    }
    this.element.setPointerCapture(event.pointerId);
    const isTouch = event.pointerType === "touch";
    const negative = event.shiftKey || event.button === 2;
    this.drag = { from: position, to: position, negative, shortest: isTouch ? TOUCH_DRAG : DRAG };
    if (isTouch) this.longPress = setTimeout(() => this.holdFinger(), LONG_PRESS);
  }

  move(event) {
    if (!this.drag) return;
    event.stopPropagation();
    this.drag.to = this.position(event);
    this.draw();
  }

  cancelDrag() {
    clearTimeout(this.longPress);
    if (!this.drag) return;
    this.drag = null;
    this.draw();
  }

  /** A finger that rests marks what is not the object. */
  holdFinger() {
    if (!this.drag || this.draggedBox()) return;
    const { x, y } = this.drag.from;
    this.drag = null;
    this.addPoint(x, y, true);
  }

  release(event) {
    if (!this.drag) return;
    event.stopPropagation();
    clearTimeout(this.longPress);
    const { from, to, negative } = this.drag;
    const isClick = !this.draggedBox();
    this.drag = null;
    if (isClick) {
      this.addPoint(from.x, from.y, negative);
    } else {
      const [width, height] = this.size;
      const clip = (value, limit) => Math.round(Math.min(limit, Math.max(0, value)));
      const [left, right] = [from.x, to.x].sort((a, b) => a - b);
      const [top, bottom] = [from.y, to.y].sort((a, b) => a - b);
      const bbox = [clip(left, width), clip(top, height), clip(right, width), clip(bottom, height)];
      this.change({ ...readClicks(this.prompt.value), bbox });
    }
  }

  /** Add a point to the clicks, and say so where it begins a new choice. */
  addPoint(x, y, negative) {
    const clicks = readClicks(this.prompt.value);
    const changed = Picker.withPoint(clicks, x, y, negative);
    this.change(changed, clicks.bbox && !changed.bbox ? NEW_CHOICE : "");
  }

  /** Return the clicks with one more. A click outside the box chooses another object. */
  static withPoint(clicks, x, y, negative) {
    const [left, top, right, bottom] = clicks.bbox ?? [0, 0, Infinity, Infinity];
    const isInside = x >= left && y >= top && x < right && y < bottom;
    if (!negative && !isInside) return { points: [[Math.floor(x), Math.floor(y)]], labels: [1], bbox: null };
    const points = [...clicks.points, [Math.floor(x), Math.floor(y)]];
    return { ...clicks, points, labels: [...clicks.labels, negative ? 0 : 1] };
  }

  key(event) {
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const command = event.ctrlKey || event.metaKey;
    const letter = event.key.toLowerCase();
    if (command && (letter === "y" || (letter === "z" && event.shiftKey))) {
      this.redo();
    } else if (command && letter === "z") {
      this.undo();
    } else if (command || event.altKey) {
      return;
    } else if (event.key === "?" || (event.key === "Escape" && !this.keyList.hidden)) {
      this.toggleKeyList();
    } else if (letter === "c") {
      this.nextCandidate();
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.clear();
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
      this.addPoint(x, y, event.shiftKey);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  undo() {
    if (!this.history.length) return;
    this.undone.push(this.prompt.value);
    this.set(this.history.pop(), 0);
  }

  redo() {
    if (!this.undone.length) return;
    this.history.push(this.prompt.value);
    this.set(this.undone.pop(), 0);
  }

  clear() {
    this.change({ points: [], labels: [], bbox: null });
  }

  /** Show the next candidate. After the last comes number 0 again: ComfyUI's cache goes by the number. */
  nextCandidate() {
    const { count } = this;
    this.set(this.prompt.value, (this.candidate.value + 1) % (count || 100));
    this.count = count;
  }

  change({ points, labels, bbox }, note = "") {
    this.history.push(this.prompt.value);
    this.undone = [];
    const empty = !points.length && !bbox;
    this.set(empty ? "" : JSON.stringify({ points, labels, ...(bbox && { bbox }) }), 0, note);
  }

  /** Remove the clicks without a run: they were on another photo. */
  forgetClicks() {
    this.history = [];
    this.undone = [];
    this.count = 0;
    this.prompt.value = "";
    this.candidate.value = 0;
  }

  set(text, candidate, note = "") {
    this.prompt.value = text;
    this.candidate.value = candidate;
    this.count = 0;
    this.note = note;
    app.graph.change?.();
    this.draw();
    this.run();
  }

  /** Keep whether a run is under way, also for screen readers. */
  setRunning(running) {
    this.running = running;
    this.element.setAttribute("aria-busy", String(running));
  }

  /** Run this node and the nodes that it depends on, nothing else. A call during a run runs it again afterward. */
  async run() {
    if (this.running) {
      this.runAgain = true;
      return;
    }
    this.setRunning(true);
    this.runAgain = false;
    this.earlyEvents = [];
    this.hasResult = false;
    this.showText(`${this.note} Looking for the object.`.trim());
    const targets = executionIds(this.node);
    try {
      await app.queuePrompt(0, 1, targets);
    } finally {
      this.jobId = jobIds.get(targets) ?? null;
      if (!this.jobId) {
        this.setRunning(false);
        this.showHelp();
      }
    }
    this.earlyEvents.filter(({ detail }) => detail?.prompt_id === this.jobId).forEach(this.onEnd);
  }

  /** Return the pixels of the screen to one CSS pixel of the element. */
  static screenSharpness() {
    return window.devicePixelRatio * Math.min(4, Math.max(1, app.canvas?.ds?.scale ?? 1));
  }

  draw() {
    const { canvas, element } = this;
    const [width, height] = [element.clientWidth, element.clientHeight];
    if (!width || !height) return;
    const sharpness = Picker.screenSharpness();
    this.sharpness = sharpness;
    canvas.width = Math.round(width * sharpness);
    canvas.height = Math.round(height * sharpness);
    const context = canvas.getContext("2d");
    context.setTransform(sharpness, 0, 0, sharpness, 0, 0);
    if (!this.size || !this.image) return;
    const { left, top, scale } = this.place();
    const [imageWidth, imageHeight] = this.size.map((side) => side * scale);
    context.drawImage(this.image, left, top, imageWidth, imageHeight);
    if (this.tint) context.drawImage(this.tint, left, top, imageWidth, imageHeight);
    const toElement = (x, y) => [left + x * scale, top + y * scale];
    const { points, labels, bbox } = readClicks(this.prompt.value);
    const box = this.draggedBox() ?? bbox;
    if (box) {
      const [x0, y0] = toElement(box[0], box[1]);
      const [x1, y1] = toElement(box[2], box[3]);
      context.setLineDash([5, 4]);
      context.strokeStyle = "#fff";
      context.strokeRect(x0, y0, x1 - x0, y1 - y0);
      context.setLineDash([]);
    }
    points.forEach(([x, y], index) => {
      context.beginPath();
      context.arc(...toElement(x + 0.5, y + 0.5), 5, 0, 2 * Math.PI);
      context.fillStyle = labels[index] ? "#3fbf5f" : "#e04040";
      context.fill();
      context.lineWidth = 1.5;
      context.strokeStyle = "#fff";
      context.stroke();
    });
    if (this.cursor) {
      const [x, y] = toElement(...this.cursor);
      context.strokeStyle = "#fff";
      context.strokeRect(x - 8, y, 16, 0);
      context.strokeRect(x, y - 8, 0, 16);
    }
  }

  /** Return the box that is being dragged; null if there is none yet. */
  draggedBox() {
    if (!this.drag) return null;
    const { from, to, shortest } = this.drag;
    const length = Math.hypot(to.x - from.x, to.y - from.y) * from.zoom;
    return length >= shortest ? [from.x, from.y, to.x, to.y] : null;
  }
}

app.registerExtension({
  name: "ArtMancer.SmartMask",
  nodeCreated(node) {
    if (node.comfyClass === "ArtMancer_SmartMask") new Picker(node);
  },
});
