import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

// The templates show the pack's example photos as artmancer/NAME in the input folder. Where such a photo is missing
// when a graph is opened, it is put there, so that the graph runs as it comes.
const SUBFOLDER = "artmancer";
const PACK = new URL(import.meta.url).pathname.split("/").at(-2);

const isExample = (value) => typeof value === "string" && value.startsWith(`${SUBFOLDER}/`);

async function provide(example) {
  const name = example.slice(SUBFOLDER.length + 1);
  const wanted = new URLSearchParams({ filename: name, subfolder: SUBFOLDER, type: "input" });
  if ((await api.fetchApi(`/view?${wanted}`, { method: "HEAD" })).ok) return;
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
    await Promise.all([...new Set(values.filter(isExample))].map(provide));
  },
  loadedGraphNode(node) {
    // ComfyUI lists no subfolders, and takes a value that is not in its list for a missing file.
    for (const { value, options } of node.widgets ?? []) {
      if (isExample(value) && Array.isArray(options?.values) && !options.values.includes(value)) {
        options.values.push(value);
      }
    }
  },
});
