// Fold away the inputs that few people need: those marked as advanced, and those that the connected editor ignores.
// ComfyUI's Vue renderer folds advanced inputs itself; its classic renderer shows all of them.
import { app } from "../../scripts/app.js";
import { after, hide, isClassic } from "./widget.js";

/** Inputs of Edit Sampler that an editor without a diffusion model ignores. */
const FOR_DIFFUSION = ["prompt", "negative", "steps", "cfg", "match_colors"];
const ALWAYS_SHOW = "Comfy.Node.AlwaysShowAdvancedWidgets";
const SHOW = "Show advanced inputs";
const HIDE = "Hide advanced inputs";
/** Height of the font of a text box's name, in pixels of the graph. It fits into the margin above the box. */
const NAME_HEIGHT = 9;

/** Whether a graph is being loaded. */
let isLoading = false;

/** Tell whether the connected Load Editor loads no diffusion model. */
function isWithoutDiffusion(node) {
  // A node has links and no graph while it moves into a subgraph.
  if (!node.graph) return false;
  const slot = node.inputs.findIndex((input) => input.name === "editor");
  const loader = node.getInputNode?.(slot);
  if (loader?.comfyClass !== "ArtMancer_LoadEditor") return false;
  const { value, options } = loader.widgets.find((widget) => widget.name === "editor");
  // "auto" is the draft editor where the list holds no base, but only draft, lama and auto.
  return ["draft", "lama"].includes(value) || (value === "auto" && options.values.length === 3);
}

/** Show or hide each widget. */
function apply(node) {
  const { advanced, button } = node.artmancerFold;
  const ignored = node.comfyClass === "ArtMancer_EditSampler" && isWithoutDiffusion(node) ? FOR_DIFFUSION : [];
  const isAlwaysOpen = Boolean(app.ui.settings.getSettingValue(ALWAYS_SHOW));
  for (const widget of node.widgets.filter(({ name }) => advanced.has(name) || FOR_DIFFUSION.includes(name))) {
    const isConnected = node.inputs.some((input) => input.widget?.name === widget.name && input.link != null);
    const isAdvanced = !isConnected && (advanced.has(widget.name) || ignored.includes(widget.name));
    widget.options.advanced = isAdvanced;
    // The classic renderer does not draw an advanced widget, and leaves a gap unless it is hidden too.
    widget.advanced = isAdvanced && !isAlwaysOpen;
    hide(widget, widget.advanced && isClassic() && !node.showAdvanced);
  }
  button.hidden = isAlwaysOpen;
  button.label = node.showAdvanced ? HIDE : SHOW;
}

/** Show or hide each widget after a change, and make the node as much higher or lower as that needs. */
function fold(node, change = () => {}) {
  const before = node.computeSize()[1];
  change();
  apply(node);
  const height = node.computeSize()[1];
  // The Vue renderer reads a widget's options again where the list of widgets changes.
  if (!isClassic()) node.widgets.push(node.widgets.pop());
  // A node that is being loaded or pasted has its size already. The Vue renderer makes a node as high as its widgets need.
  if (height !== before && !isLoading && !node.artmancerFold.isPasted) {
    node.setSize([node.size[0], isClassic() ? Math.max(height, node.size[1] + height - before) : height]);
  }
  node.setDirtyCanvas?.(true, true);
}

/** Fold the nodes of the graph and of its subgraphs. */
function foldAll() {
  const root = app.rootGraph ?? app.graph;
  const graphs = [root, ...(root?.subgraphs?.values() ?? [])];
  for (const node of graphs.flatMap((graph) => graph.nodes)) {
    if (node.artmancerFold) fold(node);
  }
}

/** Make a node foldable that has advanced inputs. */
function prepare(node) {
  const advanced = new Set(node.widgets?.filter((widget) => widget.options?.advanced).map((widget) => widget.name));
  if (!advanced.size) return;
  const options = { canvasOnly: true, serialize: false };
  const button = node.addWidget("button", "advanced", null, () => node.toggleAdvanced(), options);
  button.serialize = false;
  node.artmancerFold = { advanced, button };
  // Above the before/after slider, whichever of the two is made first.
  node.widgets.sort((one, other) => (one.name === "before_after") - (other.name === "before_after"));
  // ComfyUI's own leaves gaps in the classic renderer.
  node.toggleAdvanced = () => fold(node, () => (node.showAdvanced = !node.showAdvanced));
  after(node, "onConnectionsChange", () => fold(node));
  after(node, "onConfigure", () => {
    apply(node);
    // A pasted node gets its links right after its values.
    node.artmancerFold.isPasted = true;
    queueMicrotask(() => (node.artmancerFold.isPasted = false));
  });
  apply(node);
  node.setSize([node.size[0], node.computeSize()[1]]);
}

/** Write the name above each text box that holds text, if only a space; an empty box shows its name itself. */
function nameTextBoxes(node) {
  const isNamed = (widget) => widget.type === "customtext" && widget.value && node.isWidgetVisible(widget);
  after(node, "onDrawForeground", (context) => {
    if (node.flags.collapsed || app.canvas.low_quality) return;
    context.save();
    context.font = `${NAME_HEIGHT}px sans-serif`;
    context.textAlign = "left";
    context.fillStyle = window.LiteGraph.WIDGET_SECONDARY_TEXT_COLOR;
    for (const box of node.widgets.filter(isNamed)) {
      context.fillText(box.label ?? box.name, 11, box.y + NAME_HEIGHT - 1);
    }
    context.restore();
  });
}

app.registerExtension({
  name: "ArtMancer.Advanced",
  setup() {
    for (const setting of [ALWAYS_SHOW, "Comfy.VueNodes.Enabled"]) {
      app.ui.settings.addEventListener(`${setting}.change`, foldAll);
    }
  },
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("ArtMancer_")) return;
    prepare(node);
    if (node.widgets?.some((widget) => widget.type === "customtext")) nameTextBoxes(node);
    if (node.comfyClass === "ArtMancer_LoadEditor") {
      after(node.widgets.find((widget) => widget.name === "editor"), "callback", foldAll);
    }
  },
  beforeConfigureGraph() {
    isLoading = true;
  },
  afterConfigureGraph() {
    foldAll();
    isLoading = false;
  },
});
