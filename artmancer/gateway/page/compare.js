// Shows the result over the photo, with a slider that reveals one or the other.
const byId = (id) => document.getElementById(id);

const slider = byId("slider");
const frame = byId("compare");
const moveDivider = () => frame.style.setProperty("--at", `${slider.value}%`);
slider.addEventListener("input", moveDivider);

/**
 * Show a result.
 * @param {Blob} after the result
 * @param {Blob} [before] the photo; missing if the page was reloaded since
 */
export async function show(after, before) {
  await load(byId("after"), after);
  await load(byId("before"), before);
  const { naturalWidth, naturalHeight } = byId("after");
  frame.style.setProperty("--ratio", naturalWidth / naturalHeight);
  frame.classList.toggle("alone", !before);
  slider.value = 50;
  moveDivider();
}

async function load(image, file) {
  URL.revokeObjectURL(image.src);
  image.removeAttribute("src");
  if (!file) return;
  image.src = URL.createObjectURL(file);
  await image.decode();
}
