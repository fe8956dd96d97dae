// The before/after slider in Edit Sampler, Stitch and Compare: before on the left, after on the right.
import { app } from "../../scripts/app.js";
import { previewInNode } from "./settings.js";
import { MARGIN, after, fit, frame, passToCanvas, viewUrl } from "./widget.js";

// Smallest heights in CSS pixels, without and with images.
const EMPTY_HEIGHT = 28;
const IMAGE_HEIGHT = 220;

function slider(node) {
  // Edit Sampler and Stitch take little room for it until they have run.
  let height = node.comfyClass === "ArtMancer_Compare" ? IMAGE_HEIGHT : EMPTY_HEIGHT;
  const element = frame("Before and after the edit", height);
  element.setAttribute("role", "slider");
  element.setAttribute("aria-valuemin", "0");
  element.setAttribute("aria-valuemax", "100");
  // The images and the line between them, in the place of the image.
  const stage = document.createElement("div");
  stage.className = "artmancer-stage";
  // Hidden until there are images to compare.
  stage.hidden = true;
  const afterImage = new Image();
  const beforeImage = new Image();
  const line = document.createElement("div");
  stage.append(afterImage, beforeImage, line);
  const words = document.createElement("div");
  words.className = "artmancer-words";
  words.textContent = "Run to compare before and after.";
  element.append(stage, words);

  const arrange = () => {
    const { naturalWidth, naturalHeight } = afterImage;
    if (!naturalWidth) return;
    const area = [element.clientWidth, element.clientHeight - words.offsetHeight];
    const { left, top, scale } = fit(...area, naturalWidth, naturalHeight);
    const pixels = { left, top, width: naturalWidth * scale, height: naturalHeight * scale };
    for (const [name, value] of Object.entries(pixels)) stage.style[name] = `${value}px`;
  };
  afterImage.addEventListener("load", arrange);
  new ResizeObserver(arrange).observe(element);
  const move = (percent) => {
    const position = Math.min(100, Math.max(0, percent));
    element.setAttribute("aria-valuenow", String(Math.round(position)));
    beforeImage.style.clipPath = `inset(0 ${100 - position}% 0 0)`;
    // The line is 2 pixels wide.
    line.style.left = `calc(${position / 100} * (100% - 2px))`;
  };
  const follow = (event) => {
    const rectangle = stage.getBoundingClientRect();
    if (rectangle.width) move((100 * (event.clientX - rectangle.left)) / rectangle.width);
  };
  element.addEventListener("pointerdown", (event) => {
    if (event.button === 1) return;
    event.stopPropagation();
    element.setPointerCapture(event.pointerId);
    follow(event);
  });
  element.addEventListener("pointermove", (event) => {
    if (element.hasPointerCapture(event.pointerId)) follow(event);
  });
  element.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -2, ArrowRight: 2 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    move(Number(element.getAttribute("aria-valuenow")) + step);
  });
  move(50);

  const widget = node.addDOMWidget("before_after", "ArtMancer_BeforeAfter", element, {
    serialize: false,
    getMinHeight: () => height + 2 * MARGIN,
    hideOnZoom: false,
    hideInPanel: true,
  });
  // Saved in a workflow, its value would be read as the value of an input that is added to the node later.
  widget.serialize = false;
  node.expandToFitContent();
  passToCanvas(element);
  after(node, "onExecuted", (output) => {
    if (!output?.artmancer_before) return;
    beforeImage.src = viewUrl(output.artmancer_before[0]);
    afterImage.src = viewUrl(output.artmancer_after[0]);
    stage.hidden = false;
    words.textContent = "before | after";
    height = IMAGE_HEIGHT;
    element.style.minHeight = `${height}px`;
    node.expandToFitContent();
  });
}

app.registerExtension({
  name: "ArtMancer.BeforeAfter",
  nodeCreated(node) {
    const places = previewInNode() ? ["ArtMancer_EditSampler", "ArtMancer_Stitch"] : [];
    if (["ArtMancer_Compare", ...places].includes(node.comfyClass)) slider(node);
  },
});
