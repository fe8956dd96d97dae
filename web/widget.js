// Helpers that the DOM widgets of the nodes share: images from ComfyUI, and the style.
import { api } from "../../scripts/api.js";

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

/** Call `callback` after `object`'s own method of this name, or in its place if it has none. */
export function after(object, name, callback) {
  const original = object[name];
  object[name] = function (...args) {
    const result = original?.apply(this, args);
    callback.apply(this, args);
    return result;
  };
}

/** Return the place of an image of this size in an element that shows all of it: left, top and scale, in CSS pixels. */
export function fit(element, width, height) {
  const scale = Math.min(element.clientWidth / width, element.clientHeight / height) || 0;
  const left = (element.clientWidth - width * scale) / 2;
  const top = (element.clientHeight - height * scale) / 2;
  return { left, top, scale };
}

const STYLE = `
.artmancer-picture { position: relative; width: 100%; height: 100%; overflow: hidden; border-radius: 4px;
  background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd); touch-action: none; user-select: none;
  font: 12px/1.4 sans-serif; box-sizing: border-box; }
.artmancer-picture > .artmancer-keys { position: absolute; width: 1px; height: 1px; opacity: 0; }
.artmancer-picture:focus-visible, .artmancer-picture:has(> .artmancer-keys:focus) { outline: 2px solid var(--p-primary-color, #4b9cf5); outline-offset: -2px; }
.artmancer-picture > canvas, .artmancer-picture > img { position: absolute; inset: 0; width: 100%; height: 100%; }
.artmancer-picture > img { object-fit: contain; pointer-events: none; }
.artmancer-picture > .artmancer-words { position: absolute; left: 0; right: 0; bottom: 0; padding: 2px 6px;
  background: color-mix(in srgb, var(--comfy-menu-bg, #222) 80%, transparent); pointer-events: none; }
`;

/** Make the element of a DOM widget, at least `height` CSS pixels high. It receives the mouse and the keys itself. */
export function frame(label, height) {
  if (!document.getElementById("artmancer-style")) {
    const style = Object.assign(document.createElement("style"), { id: "artmancer-style", textContent: STYLE });
    document.head.append(style);
  }
  const element = document.createElement("div");
  element.className = "artmancer-picture";
  // ComfyUI's Vue renderer uses this height, its canvas renderer the widget's getMinHeight.
  element.style.minHeight = `${height}px`;
  element.tabIndex = 0;
  element.setAttribute("aria-label", label);
  return element;
}
