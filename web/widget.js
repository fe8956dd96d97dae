// What the widgets share: pictures from ComfyUI, and the look.
import { api } from "../../scripts/api.js";

/** Where a picture that a node showed is to be had. */
export const viewUrl = ({ filename, subfolder, type }) =>
  api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);

/** Load a picture; resolves to the image element once it can be drawn. */
export async function load(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}

/** Call `then` after `object`'s own method of this name, or in its place where it has none. */
export function after(object, name, then) {
  const before = object[name];
  object[name] = function (...given) {
    const result = before?.apply(this, given);
    then.apply(this, given);
    return result;
  };
}

/** Where a picture of this size lies in an element that shows all of it: left, top and scale, in CSS pixels. */
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

/** An element for a DOM widget, at least `height` CSS pixels high, whose mouse and keys ComfyUI's canvas leaves to it. */
export function frame(label, height) {
  if (!document.getElementById("artmancer-style")) {
    const style = Object.assign(document.createElement("style"), { id: "artmancer-style", textContent: STYLE });
    document.head.append(style);
  }
  const element = document.createElement("div");
  element.className = "artmancer-picture";
  element.style.minHeight = `${height}px`; // Vue goes by this, the canvas by the widget's getMinHeight
  element.tabIndex = 0;
  element.setAttribute("aria-label", label);
  return element;
}
