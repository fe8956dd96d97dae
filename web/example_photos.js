// The templates' example photos. A template names them as artmancer/NAME in the input folder; when it is opened,
// missing photos are uploaded there, so that it runs unchanged.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const SUBFOLDER = "artmancer";
const PACK = new URL(import.meta.url).pathname.split("/").at(-2);

const isExample = (value) => typeof value === "string" && value.startsWith(`${SUBFOLDER}/`);

/** Upload an example photo to the input folder if it is missing there. */
async function upload(example) {
  const name = example.slice(SUBFOLDER.length + 1);
  const file = new URLSearchParams({ filename: name, subfolder: SUBFOLDER, type: "input" });
  if ((await api.fetchApi(`/view?${file}`, { method: "HEAD" })).ok) return;
  const photo = await api.fetchApi(`/workflow_templates/${PACK}/examples/${encodeURIComponent(name)}`);
  if (!photo.ok) return;
  const body = new FormData();
  body.append("image", await photo.blob(), name);
  body.append("subfolder", SUBFOLDER);
  await api.fetchApi("/upload/image", { method: "POST", body });
}

app.registerExtension({
  name: "ArtMancer.ExamplePhotos",
  async beforeConfigureGraph(graph) {
    const values = graph.nodes.flatMap((node) => Object.values(node.widgets_values ?? {}));
    await Promise.all([...new Set(values.filter(isExample))].map(upload));
  },
  loadedGraphNode(node) {
    // ComfyUI lists no files in subfolders, and marks a value that is not in its list as a missing file.
    for (const { value, options } of node.widgets ?? []) {
      if (isExample(value) && Array.isArray(options?.values) && !options.values.includes(value)) {
        options.values.push(value);
      }
    }
  },
});
