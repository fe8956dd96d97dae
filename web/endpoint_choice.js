// The drop-down list of Endpoint Choice: its options are the lines of the node's input choices. The line that stands for
// model sets, whose names only the node knows, is none.
import { app } from "../../scripts/app.js";

const MODEL_SETS = "(model sets)";

app.registerExtension({
  name: "ArtMancer.EndpointChoice",
  nodeCreated(node) {
    if (node.comfyClass !== "ArtMancer_EndpointChoice") return;
    const widget = (name) => node.widgets.find((candidate) => candidate.name === name);
    const value = widget("value");
    const choices = widget("choices");
    Object.defineProperty(value.options, "values", {
      get: () => choices.value.split("\n").filter((line) => line && line !== MODEL_SETS),
      // When ComfyUI refreshes the lists, it writes the options of the node's schema, which are empty.
      set: () => {},
      configurable: true,
    });
  },
});
