// A slider over the pictures in Edit Sampler and Compare: the photo before on its left, after on its right.
import { app } from "../../scripts/app.js";
import { after, frame, viewUrl } from "./widget.js";

const [EMPTY, SHOWN] = [28, 220]; // CSS pixels, at least

function slider(node) {
  // Edit Sampler and Stitch need no room for it until they have run.
  let height = node.comfyClass === "ArtMancer_Compare" ? SHOWN : EMPTY;
  const element = frame("Before and after the edit", height);
  element.setAttribute("role", "slider");
  element.setAttribute("aria-valuemin", "0");
  element.setAttribute("aria-valuemax", "100");
  const [edited, original] = [new Image(), new Image()];
  const line = document.createElement("div");
  line.style.cssText = "position:absolute;top:0;bottom:0;width:2px;margin-left:-1px;background:#fff;pointer-events:none";
  const words = document.createElement("div");
  words.className = "artmancer-words";
  words.textContent = "Run to compare before and after.";
  const pictures = [edited, original, line];
  for (const part of pictures) part.hidden = true; // until there is something to compare
  element.append(...pictures, words);

  const move = (percent) => {
    const at = Math.min(100, Math.max(0, percent));
    element.setAttribute("aria-valuenow", String(Math.round(at)));
    original.style.clipPath = `inset(0 ${100 - at}% 0 0)`;
    line.style.left = `${at}%`;
  };
  const follow = (event) => {
    const place = element.getBoundingClientRect();
    move((100 * (event.clientX - place.left)) / place.width);
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
  widget.serialize = false; // nor into the workflow, where inputs that come later would take its place
  after(node, "onExecuted", (output) => {
    if (!output?.artmancer_before) return;
    original.src = viewUrl(output.artmancer_before[0]);
    edited.src = viewUrl(output.artmancer_after[0]);
    for (const part of pictures) part.hidden = false;
    words.textContent = "before | after";
    height = SHOWN;
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
