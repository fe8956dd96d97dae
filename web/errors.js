// Show the sentence of an error of the pack's nodes. ComfyUI's frontend of 2026 shows it only in a log, behind "View details".
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addStyle } from "./widget.js";

/** A setting of the frontends that show errors in a panel; older ones open a dialog with the sentence. */
const ERRORS_PANEL = "Comfy.RightSidePanel.ShowErrorsTab";
/** Milliseconds for which the sentence is shown. */
const LIFE = 30_000;

let shown = null;

/** Close the sentence of an earlier run. */
function close() {
  if (shown) app.extensionManager.toast.remove(shown);
  shown = null;
}

function show({ detail }) {
  if (!detail.exception_type.includes(".artmancer.errors.")) return;
  close();
  const summary = window.LiteGraph.registered_node_types[detail.node_type]?.title ?? detail.node_type;
  // The style moves it below the frontend's own card of the error, whose button it would cover.
  const options = { severity: "error", life: LIFE, styleClass: "artmancer-error" };
  shown = { ...options, summary, detail: detail.exception_message.trim() };
  app.extensionManager.toast.add(shown);
}

app.registerExtension({
  name: "ArtMancer.Errors",
  setup() {
    if (app.ui.settings.getSettingValue(ERRORS_PANEL) === undefined) return;
    addStyle();
    api.addEventListener("execution_start", close);
    api.addEventListener("execution_error", show);
  },
});
