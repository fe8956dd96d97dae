// Tells the user about a result: the automatic check's verdict, its facts, and the file to download.
const VERDICTS = {
  good: { title: "Looks good", text: "The automatic check found no fault." },
  look: { title: "Worth a look", text: "The automatic check is not sure:" },
  failed: { title: "Did not work", text: "The automatic check found a fault. Another try may help." },
};

const EXTENSIONS = { "image/png": "png", "image/webp": "webp", "image/jpeg": "jpg" };

const byId = (id) => document.getElementById(id);

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

/** Show the verdict of a report; a job of an earlier version has none. */
function showVerdict({ verdict, verdict_reasons: reasons }) {
  const box = byId("verdict");
  box.hidden = !verdict;
  if (!verdict) return;
  const { title, text } = VERDICTS[verdict];
  box.dataset.verdict = verdict;
  const list = document.createElement("ul");
  list.append(...reasons.map((reason) => element("li", reason)));
  box.replaceChildren(element("strong", title), element("p", text), ...(reasons.length ? [list] : []));
}

function showFacts(facts) {
  const rows = Object.entries(facts).map(([name, value]) => {
    const row = document.createElement("div");
    row.append(element("dt", name), element("dd", value));
    return row;
  });
  byId("facts").replaceChildren(...rows);
}

/**
 * Show a result.
 * @param {{file: Blob, name: string, answer: object}} picture `answer` is that of the gateway, without images
 */
export function show({ file, name, answer }) {
  const { seed, seconds, model, report } = answer;
  showVerdict(report);
  showFacts({ Model: model, Seed: seed, Time: `${seconds.toFixed(1)} s` });
  const download = byId("download");
  URL.revokeObjectURL(download.href);
  download.href = URL.createObjectURL(file);
  download.download = `${name.replace(/\.[^.]*$/, "")}-edited.${EXTENSIONS[file.type]}`;
  byId("result").hidden = false;
}
