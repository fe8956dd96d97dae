// Lays the result over the photo, with a slider that reveals one or the other.
const byId = (id) => document.getElementById(id);

export class Compare {
  active = false;

  /** @param {import("./view.js").View} view */
  constructor(view) {
    this.view = view;
    this.slider = byId("slider");
    this.slider.addEventListener("input", () => this.update());
    const { viewport } = view;
    const follow = (event) => {
      if (!this.active || view.zoomed || !event.buttons || event.target === this.slider) return;
      const box = this.slider.getBoundingClientRect();
      this.slider.value = (100 * (event.clientX - box.left)) / box.width;
      this.update();
    };
    viewport.addEventListener("pointerdown", follow);
    viewport.addEventListener("pointermove", follow);
  }

  /** Lay a result over the photo. */
  async show(file) {
    const after = byId("after");
    URL.revokeObjectURL(after.src);
    after.src = URL.createObjectURL(file);
    await after.decode();
    this.slider.value = 50;
    this.#switch(true);
  }

  hide() {
    this.#switch(false);
  }

  #switch(active) {
    this.active = active;
    this.view.viewport.classList.toggle("comparing", active);
    byId("photo").alt = active ? "The photo before the edit" : "";
    this.update();
  }

  /** Place the slider over the part of the frame that is in view, and cut the result at it. */
  update() {
    if (!this.active) return;
    const { viewport, frame, left, width } = this.view;
    const start = Math.max(0, left);
    const end = Math.min(viewport.clientWidth, left + width);
    const at = start + ((end - start) * this.slider.value) / 100;
    viewport.style.setProperty("--start", `${start}px`);
    viewport.style.setProperty("--length", `${end - start}px`);
    viewport.style.setProperty("--at", `${at}px`);
    frame.style.setProperty("--cut", `${at - left}px`);
  }
}
