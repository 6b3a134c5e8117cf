// The left side: turns, answers as they come, and what each was read from.

import * as api from "./api.js";
import { PLACE, at, el, many, say, signed, when, words } from "./dom.js";

const TURNS = 8; // of this conversation that are sent along at most

let hooks = {}; // what others do for us: memory(), model(), answered(question, answer), changed(), show(answer), forget(...), failed(error, again)
let turns = []; // of this conversation: what was said, what was answered
let running = null; // the AbortController of the answer at work

/** Tell this side what to call. */
export function start(callbacks) {
  hooks = callbacks;
  const box = at("question");
  at("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = box.value.trim();
    if (!text || running || !hooks.memory()) return;
    box.value = "";
    box.dispatchEvent(new Event("input"));
    ask(text);
  });
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      at("composer").requestSubmit();
    }
  });
  box.addEventListener("input", () => {
    box.style.blockSize = "auto";
    box.style.blockSize = `${Math.min(box.scrollHeight + 2, 180)}px`;
    note(box.value);
  });
  at("keep").addEventListener("click", () => {
    const text = box.value.trim();
    if (text && !running && hooks.memory()) keep(text);
  });
  at("stop").addEventListener("click", () => running?.abort());
}

/** A new conversation, with another memory. */
export function clear() {
  running?.abort();
  turns = [];
  at("turns").replaceChildren();
  note("");
}

/** What is shown before the first turn. */
export function welcome(...content) {
  at("turns").replaceChildren(el("div", { class: "welcome" }, ...content));
}

function note(text) {
  const tokens = hooks.draft(text);
  at("keep").hidden = !text.trim();
  at("draft-note").textContent = !text.trim()
    ? "Enter sends. Shift and Enter begin a new line."
    : text.trimEnd().endsWith("?")
      ? "A question: it will not be remembered."
      : `Will be remembered, about ${many(tokens, "token")}.`;
}

function busy(controller) {
  running = controller;
  at("send").hidden = Boolean(controller);
  at("stop").hidden = !controller;
}

/** Scroll to the end, unless somebody reads further up. */
function follow(place, was) {
  if (was) place.scrollTop = place.scrollHeight;
}

async function ask(text) {
  const place = at("turns");
  place.querySelector(".welcome")?.remove();
  const name = hooks.memory();
  const answer = el("p", { class: "text" });
  const foot = el("div", { class: "foot" });
  const reply = el("article", { class: "turn model", "aria-label": "Answer" }, el("h2", {}, "Answer"), answer, foot);
  const own = el("article", { class: "turn own", "aria-label": "You" }, el("h2", {}, "You"), el("p", { class: "text" }, text));
  place.append(own, reply);
  place.scrollTop = place.scrollHeight;
  reply.classList.add("working");
  at("notice").hidden = true;
  const controller = new AbortController();
  busy(controller);
  try {
    const messages = [...turns.slice(-TURNS).flatMap(([said, told]) => [{ role: "user", content: said }, { role: "assistant", content: told }]), { role: "user", content: text }];
    const read = await api.ask(name, hooks.model(), messages, (piece) => {
      const end = place.scrollHeight - place.scrollTop - place.clientHeight < 60;
      answer.append(piece);
      follow(place, end);
    }, controller.signal);
    if (hooks.memory() !== name) return;
    turns.push([text, answer.textContent]);
    const whole = { question: text, recalled: false, score: 0, sources: [], read: [], remembered: false, ...read };
    const end = place.scrollHeight - place.scrollTop - place.clientHeight < 60;
    if (!answer.textContent) answer.append(el("span", { class: "soft" }, whole.remembered ? "No answer: this is longer than a turn may be. It is remembered." : "No answer."));
    foot.append(...footOf(whole));
    follow(place, end);
    say(`${answer.textContent}. ${summary(whole)}`);
    busy(null);
    await hooks.answered(text, whole);
  } catch (error) {
    if (error.name === "AbortError") {
      foot.append(el("p", { class: "note" }, "Stopped."));
      say("Stopped.");
    } else {
      if (!answer.textContent) {
        own.remove(); // nothing was said: the words go back to where they were typed
        reply.remove();
        const box = at("question");
        box.value ||= text;
        box.dispatchEvent(new Event("input"));
        hooks.failed(error, () => at("composer").requestSubmit());
      } else {
        foot.append(el("p", { class: "wrong" }, "This answer is not whole."));
        hooks.failed(error);
      }
    }
  } finally {
    reply.classList.remove("working");
    if (running === controller) busy(null);
    if (at("question").disabled === false && document.activeElement === document.body) at("question").focus();
  }
}

/** Remember a text, and ask for no answer. It may be longer than a turn may be. */
async function keep(text) {
  const name = hooks.memory();
  const box = at("question");
  at("notice").hidden = true;
  at("keep").disabled = true;
  try {
    const { tokens, held_back: held = [] } = await api.write(name, text);
    if (hooks.memory() !== name) return;
    const place = at("turns");
    place.querySelector(".welcome")?.remove();
    const done = [tokens || !held.length ? `Remembered, ${many(tokens, "token")}.` : "", heldBack(held)].filter(Boolean).join(" ");
    place.append(el("article", { class: "turn own", "aria-label": "You" }, el("h2", {}, "You"), el("p", { class: "text" }, text), el("p", { class: "note" }, done)));
    place.scrollTop = place.scrollHeight;
    box.value = "";
    box.dispatchEvent(new Event("input"));
    box.focus();
    say(done);
    await hooks.changed();
  } catch (error) {
    hooks.failed(error, () => keep(text));
  } finally {
    at("keep").disabled = false;
  }
}

/** What is said of parts that a policy of the memory held back. */
function heldBack(held) {
  return held.length ? `Held back, and not remembered: ${[...new Set(held.map((one) => one.reason))].join("; ")}.` : "";
}

function summary(answer) {
  if (!answer.recalled) return "Answered without memory.";
  if (!answer.sources.length) return "The memory held nothing to read.";
  if (answer.sources.every((source) => source.where === "window")) return "Read from what waits.";
  const read = new Set(answer.read.flat().filter((write) => write >= 0));
  return `Read ${many(read.size, "past write")}${answer.score > 0 ? "" : "; none matched well"}.`;
}

function footOf(answer) {
  const state = !answer.recalled ? "plain" : answer.score > 0 ? "good" : "weak";
  const parts = [el("span", { class: `badge ${state}` }, answer.recalled ? `From memory, ${signed(answer.score)}` : "Answered without memory")];
  if (answer.recalled && answer.score <= 0) parts.push(el("span", { class: "note" }, answer.sources.some((source) => source.where === "window") ? "nothing written matched well" : "nothing matched well: do not rely on it"));
  const held = heldBack(answer.held_back ?? []);
  const kept = answer.remembered || held ? el("span", { class: "note" }, held || "What you said is remembered.") : null;
  if (!answer.recalled) return [el("p", {}, ...parts, ...(kept ? [kept] : []))];
  parts.push(el("button", { type: "button", class: "link", onclick: () => hooks.show(answer, true) }, "Show in memory"));
  if (kept) parts.push(kept);
  const best = Math.max(1e-9, ...answer.sources.map((source) => source.score));
  const layers = (write) => {
    const number = answer.read.filter((writes) => writes.includes(write)).length;
    return number ? `read in ${many(number, "layer")}` : "passed over";
  };
  const entryOf = (source) => {
    const bar = el("span", { class: "score", "aria-hidden": "true" }, el("i"));
    bar.firstChild.style.inlineSize = `${Math.max(0, Math.min(1, source.score / best)) * 100}%`;
    const waits = source.where === "window";
    return el("li", { class: "source" },
      el("p", { class: "facts" },
        waits ? null : bar, el("strong", {}, waits ? "waiting" : signed(source.score)),
        el("span", {}, source.label || "no source"), source.time ? when(source.time) : null, el("span", {}, PLACE[source.where] ?? source.where),
        waits ? null : el("span", {}, layers(source.write))),
      words(source.text),
      waits ? null : el("button", { type: "button", class: "quiet small", "aria-label": `Forget write ${source.write}`, onclick: () => hooks.forget([[`write ${source.write}`, { writes: [source.write] }]]) }, "Forget"));
  };
  const good = answer.sources.filter((source) => source.score > 0 || source.where === "window");
  const weak = answer.sources.filter((source) => !good.includes(source));
  const list = (sources, one, more) => (sources.length
    ? el("details", { class: "sources" }, el("summary", {}, many(sources.length, one, more)), el("ol", {}, sources.map(entryOf)))
    : "");
  return [el("p", {}, ...parts), list(good, "source"), list(weak, "weak match, at or below zero", "weak matches, at or below zero")];
}
