// The pack's page in ComfyUI's settings. locales/*/settings.json holds the same texts for translation.
import { app } from "../../scripts/app.js";

const EDITOR = "ArtMancer.DefaultEditor";
const FEATHER = "ArtMancer.DefaultFeather";
const PREVIEW = "ArtMancer.Preview";
const IN_NODE = "in the node";

/** Tell whether Edit Sampler and Stitch show the edit, or only Compare does. */
export const previewInNode = () => (app.ui.settings.getSettingValue(PREVIEW) ?? IN_NODE) === IN_NODE;

/** Inputs that a setting gives their first value, by the class of the node: the setting and the input's name. */
const DEFAULTS = {
  ArtMancer_LoadEditor: [EDITOR, "editor"],
  ArtMancer_SplitConditions: [FEATHER, "feather"],
};

app.registerExtension({
  name: "ArtMancer.Settings",
  settings: [
    {
      id: EDITOR,
      category: ["ArtMancer", "New nodes", "Editor"],
      name: "Editor of a new Load Editor",
      tooltip: "auto: the first Qwen-Image-Edit model there is, or else the draft editor.",
      type: "combo",
      options: ["draft", "lama", "auto"],
      defaultValue: "draft",
    },
    {
      id: FEATHER,
      category: ["ArtMancer", "New nodes", "Feather"],
      name: "Feather of a new Split Conditions",
      tooltip: "Pixels over which the edit fades into the photo, outward from the mask.",
      type: "number",
      attrs: { min: 0, max: 512, step: 1 },
      defaultValue: 16,
    },
    {
      id: PREVIEW,
      category: ["ArtMancer", "Preview", "Before and after"],
      name: "Before/after slider of Edit Sampler and Stitch",
      tooltip: "Used for nodes that are added or loaded afterward. Compare always has the slider.",
      type: "combo",
      options: [IN_NODE, "only in Compare"],
      defaultValue: IN_NODE,
    },
  ],
  nodeCreated(node) {
    const [setting, input] = DEFAULTS[node.comfyClass] ?? [];
    const value = setting && app.ui.settings.getSettingValue(setting);
    if (value != null) node.widgets.find((widget) => widget.name === input).value = value;
  },
});
