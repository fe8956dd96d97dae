// The form's values: kept, put back, and turned into the fields of an edit request.

const NUMBERS = ["num_inference_steps", "true_cfg_scale", "seed", "context"];
const TEXTS = ["negative_prompt", "input_quality", "recipe", "frame", "editor", "regions", "output_format"];

const form = document.getElementById("form");

/** Return the values of all fields by name; a checkbox that is off has none. */
export const values = () => Object.fromEntries(new FormData(form));

/** Put values back that `values` returned. */
export function apply(saved) {
  for (const element of form.elements) {
    const { name, type } = element;
    if (!name) continue;
    if (type === "checkbox") element.checked = name in saved;
    else if (type === "radio") element.checked = name in saved ? saved[name] === element.value : element.checked;
    else element.value = saved[name] ?? element.value;
  }
}

/** Return the fields of an edit request, without its images. */
export function requestFields() {
  const { elements } = form;
  const fields = { prompt: elements.prompt.value, task_type: elements.task.value };
  for (const name of NUMBERS) if (elements[name].value !== "") fields[name] = Number(elements[name].value);
  for (const name of TEXTS) if (elements[name].value) fields[name] = elements[name].value;
  const size = elements.condition_size.value;
  if (size) fields.condition_size = size === "crop" ? size : Number(size);
  return fields;
}
