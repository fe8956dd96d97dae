// Zoom and pan of the photo: by wheel, pinch, drag and buttons. The frame holds the photo, and lies in the viewport.

/** The largest zoom: times the size that fits the viewport, or CSS pixels for each pixel of the photo. */
const MAX_ZOOM = 8;

/** Zoom of one press of a button or key. */
const STEP = 1.5;

/** How much a wheel zooms: exponent for each CSS pixel of its movement. */
const WHEEL_SPEED = 0.0015;

/** CSS pixels that a pointer moves before it counts as a drag, not as a click. */
const DRAG_START = 5;

/** Elements that use the space key themselves. */
const USES_SPACE = "button, a, summary, select, textarea, dialog *, input:not([type=range], [type=radio])";

const clamp = (value, min, max) => Math.min(max, Math.max(min, value));

/** Return the middle of some points, and their distance from it. */
function spread(points) {
  const x = points.reduce((sum, point) => sum + point.x, 0) / points.length;
  const y = points.reduce((sum, point) => sum + point.y, 0) / points.length;
  return { x, y, radius: Math.hypot(points[0].x - x, points[0].y - y) };
}

export class View {
  /** Place of the frame in the viewport, in CSS pixels. */
  left = 0;
  top = 0;
  /** Size of the frame as a multiple of the size that fits the viewport, at least 1. */
  zoom = 1;
  #photo = null;
  /** Pointers that are down, by id: {x, y}. */
  #pointers = new Map();
  /** Where the gesture that is under way was last: middle and radius of its pointers. */
  #gesture = null;
  /** A pointer that is down and may become a drag: where it went down. */
  #press = null;
  #spaceHeld = false;
  /** True from the end of a gesture to its click, which must not count. */
  #swallowClick = false;

  /**
   * @param {HTMLElement} viewport
   * @param {HTMLElement} frame
   * @param {{onChange: () => void, onGesture: () => void, dragPans: () => boolean}} listener `onGesture`: a gesture
   *   begins, so what the first pointer did is void; `dragPans`: a plain drag moves the photo
   */
  constructor(viewport, frame, listener) {
    this.viewport = viewport;
    this.frame = frame;
    this.listener = listener;
    this.#listen();
  }

  /** Show a photo of this size, fitted. */
  open(photo) {
    this.#photo = photo;
    this.viewport.style.setProperty("--ratio", photo.width / photo.height);
    this.fit();
  }

  get zoomed() {
    return this.zoom > 1;
  }

  /** CSS pixels for each pixel of the photo, where it fits the viewport. */
  get #fitScale() {
    const { clientWidth, clientHeight } = this.viewport;
    return Math.min(clientWidth / this.#photo.width, clientHeight / this.#photo.height);
  }

  get width() {
    return this.#photo.width * this.#fitScale * this.zoom;
  }

  get height() {
    return this.#photo.height * this.#fitScale * this.zoom;
  }

  /** CSS pixels for each pixel of the photo. */
  get scale() {
    return this.#fitScale * this.zoom;
  }

  fit() {
    this.zoom = 1;
    this.#place();
  }

  /** Zoom in (1) or out (-1) by a step, around the viewport's middle. */
  step(direction) {
    this.#zoomAt(STEP ** direction, this.viewport.clientWidth / 2, this.viewport.clientHeight / 2);
  }

  /** Move a point of the photo into the viewport. */
  reveal([x, y]) {
    const { clientWidth, clientHeight } = this.viewport;
    const left = this.left + x * this.scale;
    const top = this.top + y * this.scale;
    this.#pan(clamp(left, 0, clientWidth) - left, clamp(top, 0, clientHeight) - top);
  }

  #zoomAt(factor, x, y) {
    const before = this.zoom;
    this.zoom = clamp(before * factor, 1, Math.max(MAX_ZOOM, MAX_ZOOM / this.#fitScale));
    const change = this.zoom / before;
    this.left = x - (x - this.left) * change;
    this.top = y - (y - this.top) * change;
    this.#place();
  }

  #pan(right, down) {
    this.left += right;
    this.top += down;
    this.#place();
  }

  /** Put the frame in its place: in the middle where it is smaller than the viewport, else without a gap. */
  #place() {
    if (!this.#photo) return;
    const { width, height } = this;
    const { clientWidth, clientHeight } = this.viewport;
    const place = (start, size, room) => (size <= room ? (room - size) / 2 : clamp(start, room - size, 0));
    this.left = place(this.left, width, clientWidth);
    this.top = place(this.top, height, clientHeight);
    Object.assign(this.frame.style, {
      left: `${this.left}px`,
      top: `${this.top}px`,
      width: `${width}px`,
      height: `${height}px`,
    });
    this.viewport.classList.toggle("zoomed", this.zoomed);
    this.listener.onChange();
  }

  #listen() {
    const { viewport } = this;
    new ResizeObserver(() => this.#place()).observe(viewport);
    viewport.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    // Captured: a gesture must not reach what lies in the viewport.
    const options = { capture: true };
    viewport.addEventListener("pointerdown", (event) => this.#down(event), options);
    viewport.addEventListener("pointermove", (event) => this.#move(event), options);
    for (const type of ["pointerup", "pointercancel"]) {
      viewport.addEventListener(type, (event) => this.#up(event), options);
    }
    // Otherwise the middle button would scroll the page.
    viewport.addEventListener("mousedown", (event) => event.button === 1 && event.preventDefault());
    viewport.addEventListener(
      "click",
      (event) => {
        if (this.#swallowClick) event.stopPropagation();
        this.#swallowClick = false;
      },
      options,
    );
    addEventListener("keydown", (event) => {
      if (event.key !== " " || event.target.matches(USES_SPACE)) return;
      if (!event.target.matches("[type=radio]")) event.preventDefault();
      this.#holdSpace(true);
    });
    addEventListener("keyup", (event) => event.key === " " && this.#holdSpace(false));
    addEventListener("blur", () => this.#holdSpace(false));
  }

  #holdSpace(isHeld) {
    this.#spaceHeld = isHeld;
    this.viewport.classList.toggle("grab", isHeld);
  }

  #wheel(event) {
    if (!this.#photo) return;
    const pixels = event.deltaMode ? event.deltaY * 40 : event.deltaY;
    // A wheel that cannot zoom out any further scrolls the page.
    if (pixels > 0 && !this.zoomed && !event.ctrlKey) return;
    event.preventDefault();
    const box = this.viewport.getBoundingClientRect();
    // Browsers send a pinch on a touchpad as small steps of the wheel with Ctrl.
    const speed = WHEEL_SPEED * (event.ctrlKey ? 6 : 1);
    this.#zoomAt(Math.exp(-pixels * speed), event.clientX - box.left, event.clientY - box.top);
  }

  #down(event) {
    if (!this.#photo) return;
    if (event.isPrimary) this.#pointers.clear();
    this.#swallowClick = false;
    this.#pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    const isPan = event.button === 1 || (event.button === 0 && this.#spaceHeld);
    if (this.#pointers.size > 1 || isPan) {
      this.#begin(event);
    } else if (event.button === 0 && this.zoomed && this.listener.dragPans() && !event.target.matches("input")) {
      this.#press = { x: event.clientX, y: event.clientY };
    }
  }

  #begin(event) {
    event.preventDefault();
    event.stopPropagation();
    this.#press = null;
    this.#gesture = spread([...this.#pointers.values()]);
    this.viewport.classList.add("grabbing");
    this.viewport.setPointerCapture(event.pointerId);
    this.listener.onGesture();
  }

  #move(event) {
    if (!this.#pointers.has(event.pointerId)) return;
    if (this.#press) {
      const { x, y } = this.#press;
      if (Math.hypot(event.clientX - x, event.clientY - y) < DRAG_START) return;
      this.#begin(event);
    }
    this.#pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (!this.#gesture) return;
    event.stopPropagation();
    const before = this.#gesture;
    const now = spread([...this.#pointers.values()]);
    this.#gesture = now;
    const box = this.viewport.getBoundingClientRect();
    this.left += now.x - before.x;
    this.top += now.y - before.y;
    this.#zoomAt(before.radius && now.radius ? now.radius / before.radius : 1, now.x - box.left, now.y - box.top);
  }

  #up(event) {
    this.#pointers.delete(event.pointerId);
    this.#press = null;
    if (!this.#gesture) return;
    event.stopPropagation();
    this.#swallowClick = true;
    if (this.#pointers.size) {
      this.#gesture = spread([...this.#pointers.values()]);
    } else {
      this.#gesture = null;
      this.viewport.classList.remove("grabbing");
    }
  }
}
