// The page as a whole: which memory is shown, and who is told when something changes.

import * as api from "./api.js";
import * as chat from "./chat.js";
import * as dialogs from "./dialogs.js";
import { at, el } from "./dom.js";
import * as memory from "./memory.js";

let entries = []; // of GET /v1/memories
let chosen = "";
let model = "";

/** Say plainly what went wrong, and offer what can be done. again: does the same once more. */
function failed(error, again) {
  const place = at("notice");
  const retry = again ?? reload;
  const tools = [];
  if (error.kind === "key") tools.push(el("button", { type: "button", class: "quiet small", onclick: () => dialogs.askKey() }, "Enter a key"));
  tools.push(el("button", { type: "button", class: "quiet small", onclick: () => { place.hidden = true; retry(); } }, "Try again"));
  place.replaceChildren(el("p", {}, error.message || String(error)), el("div", { class: "tools" }, tools));
  place.dataset.kind = error.kind ?? "broken";
  place.hidden = false;
  if (!error.kind) console.error(error); // a mistake of ours
}

/** Do something, and say what went wrong. */
async function trying(work, again) {
  try {
    await work();
  } catch (error) {
    failed(error, again);
  }
}

/** The memory that the address names. */
function named() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return ""; // a lone %
  }
}

const reload = () => trying(listed, reload);

/** Fetch the list of memories; show the one that was shown or that the address names, or the newest. */
async function listed() {
  at("notice").hidden = true;
  const [list, known] = await Promise.all([api.memories(), api.models()]);
  entries = list.data;
  model = known.data[0]?.id ?? "";
  const wanted = named();
  const names = entries.map((entry) => entry.name);
  const newest = [...entries].sort((a, b) => b.updated - a.updated)[0]?.name ?? "";
  picker();
  if (chosen && names.includes(chosen)) await memory.refresh(); // the conversation goes on
  else await show(names.includes(wanted) ? wanted : newest);
}

function picker() {
  const choice = at("memory-choice");
  choice.replaceChildren(...entries.map((entry) => el("option", { value: entry.name }, entry.name)));
  if (!entries.length) choice.append(el("option", { value: "" }, "no memory yet"));
  choice.disabled = !entries.length;
  choice.value = chosen;
}

/** Show a memory. */
async function show(name) {
  chosen = name;
  history.replaceState(null, "", name ? `#${encodeURIComponent(name)}` : location.pathname);
  picker();
  chat.clear();
  at("question").disabled = !name;
  at("send").disabled = !name;
  document.title = name ? `${name} · Remanence` : "Remanence";
  if (name) {
    chat.welcome(el("h2", {}, name), el("p", {}, "Tell it something today, and ask for it tomorrow. The memory is on the right: what it holds, and what each answer read in it."));
  } else {
    chat.welcome(el("h2", {}, "A memory for each person"), el("p", {}, "Make a memory, tell it something, and ask for it later. It stays on this server's disk."),
      el("button", { type: "button", class: "primary", onclick: dialogs.showMemories }, "Make a memory"));
  }
  await memory.open(name);
  if (name && document.activeElement === document.body && matchMedia("(hover: hover)").matches) at("question").focus();
}

/** A memory was changed: show what it holds now. */
async function changed() {
  await memory.refresh();
  entries = (await api.memories()).data;
  picker();
}

function view(which) {
  document.body.dataset.view = which;
  for (const button of document.querySelectorAll("[data-show]")) button.setAttribute("aria-pressed", String(button.dataset.show === which));
}

memory.start({ forget: dialogs.forget, failed });
dialogs.start({
  memory: () => chosen,
  entries: () => entries,
  changed: () => trying(changed),
  choose: (name) => trying(async () => {
    entries = (await api.memories()).data;
    await show(name);
  }),
  listed: reload,
});
chat.start({
  memory: () => chosen,
  model: () => model,
  draft: memory.draft,
  changed: () => trying(changed),
  forget: dialogs.forget,
  failed,
  show: (answer, go) => {
    memory.show(answer);
    if (go) {
      view("memory");
      at("reads-title").scrollIntoView({ block: "nearest" });
    }
  },
  answered: (question, answer) => trying(async () => {
    const name = chosen;
    await changed();
    if (name === chosen) await memory.answered(question, answer);
  }, () => trying(changed)),
});
at("memory-choice").addEventListener("change", ({ target }) => trying(() => show(target.value)));
for (const button of document.querySelectorAll("[data-show]")) button.addEventListener("click", () => view(button.dataset.show));
addEventListener("hashchange", () => {
  const name = named();
  if (name !== chosen && entries.some((entry) => entry.name === name)) trying(() => show(name));
});
document.addEventListener("visibilitychange", () => { // another tab or program may have told it something
  if (!document.hidden && chosen && at("notice").hidden) trying(changed);
});
addEventListener("online", () => { if (at("notice").dataset.kind === "offline" && !at("notice").hidden) reload(); });
reload();
