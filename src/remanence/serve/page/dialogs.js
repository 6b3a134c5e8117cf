// What asks before it does something: the key, forgetting with a preview, and the memories themselves.

import * as api from "./api.js";
import { at, bytes, count, el, many, say, when } from "./dom.js";

let hooks = {}; // what others do for us: memory(), entries(), changed(), choose(name), listed()

/** Tell the dialogs what to call. */
export function start(callbacks) {
  hooks = callbacks;
  for (const dialog of document.querySelectorAll("dialog")) {
    for (const button of dialog.querySelectorAll("[data-close]")) button.addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); }); // beside it
  }
  at("open-key").addEventListener("click", () => askKey());
  at("open-memories").addEventListener("click", () => showMemories());
  at("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    api.key.set(at("key").value.trim());
    at("key").value = "";
    at("key-dialog").close();
    hooks.listed();
  });
  at("new-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = at("new-name").value.trim();
    within(async () => {
      await api.make(name);
      at("new-name").value = "";
      at("memories-dialog").close();
      await hooks.choose(name);
    });
  });
  at("import-file").addEventListener("change", ({ target }) => {
    const [file] = target.files;
    target.value = "";
    if (file) askName("Import", `Name of the memory from ${file.name}`, (name) => api.take(name, file));
  });
}

/** Ask for the key. */
export function askKey(why) {
  at("key-why").textContent = `${why ? `${why} ` : ""}It is kept in this tab only, and gone when you close the tab. An empty key forgets the one that was entered.`;
  at("key-dialog").showModal();
  at("key").focus();
}

/**
 * Show what would be forgotten, then forget it if that is wanted.
 * @param {[string, object][]} choices what may be forgotten, in words and as the server takes it; the first is chosen
 */
export function forget(choices) {
  const name = hooks.memory();
  const body = at("forget-body");
  const yes = at("forget-yes");
  let what = null;
  let asked = 0;

  const preview = async (choice, place) => {
    asked += 1;
    const mine = asked;
    what = null;
    yes.disabled = true;
    place.replaceChildren(el("p", { class: "note" }, "Looking …"));
    try {
      const found = await api.forget(name, choice, true);
      if (mine !== asked) return;
      if (!found.texts.length && !found.tokens) {
        place.replaceChildren(el("p", {}, "Nothing in this memory fits that."));
        return;
      }
      what = choice;
      yes.disabled = false;
      place.replaceChildren(
        el("p", {}, `Gone for good: ${many(found.tokens, "token")}.`
          + (found.written_again ? ` What was told later is written again without it: ${many(found.written_again, "token")}, which takes as long as telling them did.` : " Nothing has to be written again.")),
        el("ul", { class: "texts", tabindex: "0", "aria-label": "What would be forgotten" }, found.texts.map((text) => el("li", {}, text))),
      );
    } catch (error) {
      if (mine === asked) place.replaceChildren(el("p", { class: "wrong" }, error.message));
    }
  };

  const place = el("div");
  const radios = choices.length < 2 ? null : el("fieldset", {}, el("legend", {}, "What to forget"), choices.map(([words, choice], i) => el(
    "label", {}, el("input", { type: "radio", name: "what", checked: i === 0, onchange: () => preview(choice, place) }), words,
  )));
  at("forget-title").textContent = choices.length < 2 ? `Forget ${choices[0][0]}?` : "Forget";
  body.replaceChildren(radios ?? "", place);
  yes.textContent = "Forget for good";
  yes.onclick = async () => {
    if (!what) return;
    yes.disabled = true;
    yes.textContent = "Forgetting …";
    try {
      const done = await api.forget(name, what, false);
      at("forget-dialog").close();
      toast(`Forgotten: ${many(done.tokens, "token")}.${done.written_again ? ` ${count(done.written_again)} were written again.` : ""}`);
      await hooks.changed();
    } catch (error) {
      place.replaceChildren(el("p", { class: "wrong" }, error.message));
      yes.textContent = "Forget for good";
    }
  };
  at("forget-dialog").showModal();
  preview(choices[0][1], place);
}

/** Say what was done, for a while. */
export function toast(words) {
  document.querySelector(".toast")?.remove();
  const note = el("p", { class: "toast" }, words);
  document.body.append(note);
  say(words);
  setTimeout(() => note.remove(), 6000);
}

/** List the memories, and what can be done with them. */
export function showMemories() {
  wrong("");
  const chosen = hooks.memory();
  at("memories-list").replaceChildren(...hooks.entries().map((entry) => el(
    "li", {},
    el("div", {},
      el("strong", {}, entry.name), entry.name === chosen ? el("span", { class: "badge plain" }, "shown") : null,
      el("p", { class: "facts" }, el("span", {}, many(entry.writes, "write")), el("span", {}, many(entry.tokens, "token")), el("span", {}, bytes(entry.bytes)),
        entry.updated ? el("span", {}, "told ", when(entry.updated)) : null)),
    el("div", { class: "tools" },
      entry.name === chosen ? null : button("Show", `Show ${entry.name}`, () => { at("memories-dialog").close(); hooks.choose(entry.name); }),
      button("Copy", `Copy ${entry.name}`, () => askName("Copy", `Name of the copy of ${entry.name}`, (name) => api.fork(entry.name, name))),
      button("Export", `Export ${entry.name}`, () => within(() => save(entry.name))),
      button("Delete", `Delete ${entry.name}`, () => askDelete(entry.name), "danger-text")),
  )));
  if (!at("memories-dialog").open) at("memories-dialog").showModal();
}

const button = (words, label, onclick, kind = "") => el("button", { type: "button", class: `quiet small ${kind}`, "aria-label": label, onclick }, words);

function wrong(words) {
  at("memories-error").textContent = words;
  at("memories-error").hidden = !words;
}

/** Do something in the dialog of memories, and say there what went wrong. */
async function within(work) {
  wrong("");
  try {
    await work();
  } catch (error) {
    wrong(error.message);
  }
}

async function save(name) {
  const address = URL.createObjectURL(await api.give(name));
  el("a", { href: address, download: `${name}.memory` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}

/** Put a form into the list's place, and go on when it is filled in. */
function askName(verb, words, work) {
  const input = el("input", { id: "other-name", required: true, maxlength: 100, pattern: "[A-Za-z0-9_@\\-][A-Za-z0-9._@\\-]*", autocomplete: "off", spellcheck: "false" });
  instead(el("label", { for: "other-name" }, words), input, verb, "primary", () => within(async () => {
    const name = input.value.trim();
    await work(name);
    at("memories-dialog").close();
    await hooks.choose(name);
  }));
}

function askDelete(name) {
  const input = el("input", { id: "other-name", required: true, autocomplete: "off", spellcheck: "false" });
  instead(el("label", { for: "other-name" }, "This deletes ", el("strong", {}, name), " for good, with all that it was told. Type its name to go on."), input, "Delete for good", "danger", () => within(async () => {
    if (input.value.trim() !== name) {
      wrong(`That is not “${name}”. Nothing was deleted.`);
      return;
    }
    await api.remove(name);
    toast(`${name} is deleted.`);
    await hooks.listed();
    showMemories();
  }));
}

function instead(label, input, verb, kind, work) {
  wrong("");
  at("memories-list").replaceChildren(el("li", { class: "ask" }, el(
    "form", { class: "row", onsubmit: (event) => { event.preventDefault(); work(); } },
    label, input, el("button", { type: "submit", class: kind }, verb), el("button", { type: "button", class: "quiet", onclick: showMemories }, "Back"),
  )));
  input.focus();
}
