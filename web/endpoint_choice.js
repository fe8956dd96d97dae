import { app } from "../../scripts/app.js";

// The drop-down list of Endpoint Choice offers what stands in its "choices", one a line.
app.registerExtension({
  name: "ArtMancer.EndpointChoice",
  nodeCreated(node) {
    if (node.comfyClass !== "ArtMancer_EndpointChoice") return;
    const [value, choices] = ["value", "choices"].map((name) => node.widgets.find((widget) => widget.name === name));
    Object.defineProperty(value.options, "values", {
      get: () => choices.value.split("\n").filter((line) => line),
      set: () => {}, // ComfyUI's refresh writes the lists it knows
      configurable: true,
    });
  },
});
