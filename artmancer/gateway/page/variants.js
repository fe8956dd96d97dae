// The kinds of edits by task_type: texts for the user, the default prompt, and the tool to begin with.
export const VARIANTS = {
  removal: {
    name: "Remove",
    hint: "Removes what you mark, and fills the gap.",
    legend: "What to remove",
    prompt: "remove the object",
    tool: "click",
    instructions: { click: "Click the object in the photo.", brush: "Paint over the object." },
    maskMissing: "Mark what to remove: click it in the photo, or paint over it.",
  },
  insertion: {
    name: "Insert",
    hint: "Inserts an object where you mark.",
    legend: "Where to insert it",
    prompt: "insert the object",
    tool: "brush",
    instructions: { click: "Click something that it replaces.", brush: "Paint a place for it." },
    maskMissing: "Mark where the object goes: click something that it replaces, or paint a place for it.",
  },
  "white-balance": {
    name: "White balance",
    hint: "Removes a color cast from what you mark, or from the whole photo.",
    legend: "Where (optional)",
    prompt: "correct the white balance",
    tool: "brush",
    instructions: {
      click: "Nothing is marked: the whole photo changes.",
      brush: "Nothing is marked: the whole photo changes.",
    },
  },
};
