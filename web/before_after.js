// The before/after slider in Edit Sampler, Stitch and Compare: before on the left, after on the right.
import { app } from "../../scripts/app.js";
import { after, frame, viewUrl } from "./widget.js";

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
  const afterImage = new Image();
  const beforeImage = new Image();
  const line = document.createElement("div");
  line.style.cssText = "position:absolute;top:0;bottom:0;width:2px;margin-left:-1px;background:#fff;pointer-events:none";
  const words = document.createElement("div");
  words.className = "artmancer-words";
  words.textContent = "Run to compare before and after.";
  const parts = [afterImage, beforeImage, line];
  // Hidden until there are images to compare.
  for (const part of parts) part.hidden = true;
  element.append(...parts, words);

  const move = (percent) => {
    const position = Math.min(100, Math.max(0, percent));
    element.setAttribute("aria-valuenow", String(Math.round(position)));
    beforeImage.style.clipPath = `inset(0 ${100 - position}% 0 0)`;
    line.style.left = `${position}%`;
  };
  const follow = (event) => {
    const rectangle = element.getBoundingClientRect();
    move((100 * (event.clientX - rectangle.left)) / rectangle.width);
  };
  element.addEventListener("pointerdown", (event) => {
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
    getMinHeight: () => height,
  });
  // Saved in a workflow, its value would be read as the value of an input that is added to the node later.
  widget.serialize = false;
  after(node, "onExecuted", (output) => {
    if (!output?.artmancer_before) return;
    beforeImage.src = viewUrl(output.artmancer_before[0]);
    afterImage.src = viewUrl(output.artmancer_after[0]);
    for (const part of parts) part.hidden = false;
    words.textContent = "before | after";
    height = IMAGE_HEIGHT;
    element.style.minHeight = `${height}px`;
    const needed = node.computeSize();
    node.setSize([Math.max(node.size[0], needed[0]), Math.max(node.size[1], needed[1])]);
  });
}

app.registerExtension({
  name: "ArtMancer.BeforeAfter",
  nodeCreated(node) {
    if (["ArtMancer_EditSampler", "ArtMancer_Stitch", "ArtMancer_Compare"].includes(node.comfyClass)) slider(node);
  },
});
