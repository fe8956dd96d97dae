// Helpers that the DOM widgets of the nodes share: images from ComfyUI, and the style.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

/** Margin around the element of a DOM widget in ComfyUI's classic renderer, in pixels of the graph. */
export const MARGIN = 10;

/** Return the URL of an image file that a node returned to the page. */
export const viewUrl = ({ filename, subfolder, type }) =>
  api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);

/** Load an image; resolves to the image element once it can be drawn. */
export async function load(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}

/** Tell whether ComfyUI draws the nodes on its canvas, and not with Vue. */
export const isClassic = () => !window.LiteGraph.vueNodesMode;

/** Hide a widget in the classic renderer. An older one leaves a gap unless the widget has no height. */
export function hide(widget, isHidden) {
  widget.hidden = isHidden;
  widget.computeSize = isHidden ? () => [0, -4] : undefined;
}

/** Zoom with the wheel and pan with the middle button over an element too; the Vue renderer does so itself. */
export function passToCanvas(element) {
  element.addEventListener("wheel", (event) => {
    if (!isClassic()) return;
    event.preventDefault();
    app.canvas.processMouseWheel(event);
  });
  const pass = (type, isMiddle, handler) =>
    element.addEventListener(type, (event) => {
      if (isClassic() && isMiddle(event)) app.canvas[handler](event);
    });
  pass("pointerdown", ({ button }) => button === 1, "processMouseDown");
  pass("pointermove", ({ buttons }) => buttons & 4, "processMouseMove");
  pass("pointerup", ({ button }) => button === 1, "processMouseUp");
}

/** Call `callback` after `object`'s own method of this name, or in its place if it has none. */
export function after(object, name, callback) {
  const original = object[name];
  object[name] = function (...args) {
    const result = original?.apply(this, args);
    callback.apply(this, args);
    return result;
  };
}

/** Return the place of an image in an area that shows all of it: left, top and scale, in CSS pixels. */
export function fit(areaWidth, areaHeight, width, height) {
  const scale = Math.max(0, Math.min(areaWidth / width, areaHeight / height)) || 0;
  return { left: (areaWidth - width * scale) / 2, top: (areaHeight - height * scale) / 2, scale };
}

const STYLE = `
.artmancer-picture { position: relative; width: 100%; height: 100%; overflow: hidden; border-radius: 4px;
  background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd); touch-action: none; user-select: none;
  font: 12px/1.4 sans-serif; box-sizing: border-box; }
.artmancer-picture > .artmancer-keys { position: absolute; width: 1px; height: 1px; opacity: 0; }
.artmancer-picture:focus-visible, .artmancer-picture:has(> .artmancer-keys:focus) { outline: 2px solid var(--p-primary-color, #4b9cf5); outline-offset: -2px; }
.artmancer-picture > canvas { position: absolute; inset: 0; width: 100%; height: 100%; }
.artmancer-picture > .artmancer-stage { position: absolute; }
.artmancer-stage > img { position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none; }
.artmancer-stage > div { position: absolute; top: 0; bottom: 0; width: 2px; background: #fff; pointer-events: none; }
.artmancer-picture > .artmancer-words { position: absolute; left: 0; right: 0; bottom: 0; padding: 2px 6px;
  max-height: 52px; overflow: hidden; background: var(--comfy-menu-bg, #222); pointer-events: none; }
.artmancer-picture:has(> .artmancer-keybutton) > .artmancer-words { padding-right: 26px; }
.artmancer-picture > .artmancer-keybutton { position: absolute; right: 3px; bottom: 2px; width: 17px; height: 17px; padding: 0;
  border: 1px solid currentColor; border-radius: 50%; background: none; color: inherit; font: inherit; line-height: 1; cursor: pointer; }
.artmancer-picture > .artmancer-keylist { position: absolute; left: 6px; bottom: 28px; margin: 0; padding: 6px 10px; cursor: pointer;
  background: var(--comfy-menu-bg, #222); border: 1px solid var(--border-color, #555); border-radius: 4px;
  display: grid; grid-template-columns: auto auto; gap: 1px 12px; }
.artmancer-picture > .artmancer-keylist[hidden] { display: none; }
.artmancer-keylist > dt { font-weight: bold; }
.artmancer-keylist button { padding: 0 6px; border: 1px solid currentColor; border-radius: 4px; background: none; color: inherit; font: inherit; cursor: pointer; }
.artmancer-keylist > dd { margin: 0; }
.artmancer-error { margin-top: 190px; }
`;

/** Add the style to the page. */
export function addStyle() {
  if (document.getElementById("artmancer-style")) return;
  document.head.append(Object.assign(document.createElement("style"), { id: "artmancer-style", textContent: STYLE }));
}

/** Make the element of a DOM widget, at least `height` CSS pixels high. It receives the mouse and the keys itself. */
export function frame(label, height) {
  addStyle();
  const element = document.createElement("div");
  element.className = "artmancer-picture";
  // ComfyUI's Vue renderer uses this height, its canvas renderer the widget's getMinHeight.
  element.style.minHeight = `${height}px`;
  element.tabIndex = 0;
  element.setAttribute("aria-label", label);
  return element;
}
