// The result, and how it was before, under one slider.
const byId = (id) => document.getElementById(id);

const slider = byId("slider");
const frame = byId("compare");
const follow = () => frame.style.setProperty("--at", `${slider.value}%`);
slider.addEventListener("input", follow);

/**
 * @param {Blob} after
 * @param {Blob} [before] missing where the page was loaded anew since
 */
export async function show(after, before) {
  await load(byId("after"), after);
  await load(byId("before"), before);
  const { naturalWidth, naturalHeight } = byId("after");
  frame.style.setProperty("--ratio", naturalWidth / naturalHeight);
  frame.classList.toggle("alone", !before);
  slider.value = 50;
  follow();
}

async function load(image, file) {
  URL.revokeObjectURL(image.src);
  image.removeAttribute("src");
  if (!file) return;
  image.src = URL.createObjectURL(file);
  await image.decode();
}
