// The right side: what a memory holds, what an answer read in it, and the time line of what was told.

import * as api from "./api.js";
import { measured, scatter, strip } from "./charts.js";
import { PLACE, at, bytes, count, el, many, signed, when, words } from "./dom.js";

const PAGE = 100; // writes of the time line that are fetched at once
const MOST = 1000; // that the server gives at once
const FEW = 4; // writes of one text that are shown one by one; more are folded
const FARTHEST = 20; // pages that are looked through for a source, to say how far back it is

let hooks = {}; // what others do for us: forget(what, label), failed(error)
let name = "";
let shape = null; // of GET /v1/memories/NAME
let line = []; // writes, newest first
let total = 0;
let waiting = [];
let forgotten = [];
let shown = null; // the answer whose reading is drawn
let points = []; // of the distance curve, of this tab
let curves = null; // what was measured, by model
let draftText = "";
const unfolded = new Set(); // groups of the time line that are open
let turn = 0; // of asking the server anew: what belongs to an older one is dropped
let opened = 0; // memories so far: the same

/** Tell this side what to call. */
export function start(callbacks) {
  hooks = callbacks;
  at("find").addEventListener("submit", find);
  at("forget-words").addEventListener("click", () => {
    const words = at("find-words").value.trim();
    if (words) hooks.forget([[`every sentence with “${words}”`, { words }]]);
    else at("find-words").focus();
  });
  at("older").addEventListener("click", () => more().catch(hooks.failed));
  let before = 0;
  new ResizeObserver(([{ contentRect }]) => {
    if (Math.abs(contentRect.width - before) < 2) return;
    before = contentRect.width;
    if (shape) charts();
  }).observe(at("memory"));
}

/** Show another memory, or none. */
export async function open(other) {
  turn += 1;
  opened += 1;
  name = other;
  shape = null;
  line = [];
  points = [];
  shown = null;
  at("found").hidden = true;
  at("find-words").value = "";
  if (!name) {
    for (const id of ["meters", "strip", "curve", "measured", "line"]) at(id).replaceChildren();
    for (const id of ["holds-sum", "reads-sum", "curve-sum", "line-sum"]) at(id).textContent = "";
    return;
  }
  await refresh();
}

/** Ask the server anew what the memory holds. */
export async function refresh() {
  turn += 1;
  const mine = turn;
  const [detail, page] = await Promise.all([api.memory(name), api.history(name, 0, Math.min(MOST, Math.max(PAGE, line.length)))]);
  if (mine !== turn) return;
  shape = detail;
  line = page.data;
  ({ total, waiting = [], forgotten = [] } = page);
  meters();
  timeline();
  charts();
  await curve();
}

/** The next page of the time line. */
async function more() {
  const mine = turn;
  const page = await api.history(name, line.length, PAGE);
  if (mine !== turn) return;
  const known = new Set(line.map((write) => write.write));
  line.push(...page.data.filter((write) => !known.has(write.write)));
  total = page.total;
  timeline();
  charts();
}

/** How many tokens were told since a write, or null if it is too far back to look for. */
async function distanceOf(number) {
  const mine = opened;
  for (let page = 0; mine === opened && page < FARTHEST && !line.some((write) => write.write === number) && line.length < total; page += 1) {
    await more();
  }
  if (mine !== opened) return null;
  let since = shape.pending_tokens;
  for (const write of line) {
    if (write.write === number) return since;
    since += write.tokens;
  }
  return null;
}

/** Add what an answer read to the distance curve, and draw where it was. */
export async function answered(question, answer) {
  const mine = opened;
  const sources = answer.sources.filter((source) => source.write >= 0);
  for (const [place, source] of sources.entries()) {
    const distance = await distanceOf(source.write);
    if (mine !== opened) return; // another memory is shown
    if (distance !== null) {
      points.push({ question, write: source.write, distance, score: source.score, best: place === 0 });
    }
  }
  show(answer);
}

/** Draw what an answer read. */
export function show(answer) {
  shown = answer;
  timeline();
  charts();
}

/** What is being typed: how it would fill the memory. Tokens are estimated from what this memory holds already. */
export function draft(text) {
  draftText = text;
  if (shape) meters();
  return shape ? tokensOf(text) : 0;
}

function tokensOf(text) {
  let letters = 0;
  let tokens = 0;
  for (const write of line) {
    if (write.text) {
      letters += write.text.length;
      tokens += write.tokens;
    }
  }
  return Math.round(text.trim().length * (tokens > 200 ? tokens / letters : 0.25)); // some four letters a token
}

function meter({ term, value, part, ghost = 0, note, kind }) {
  const bar = el("div", { class: `meter ${kind}`, "aria-hidden": "true" }, el("i", { class: "full" }), ghost ? el("i", { class: "ghost" }) : null);
  bar.querySelector(".full").style.inlineSize = `${Math.min(100, part * 100)}%`;
  if (ghost) bar.querySelector(".ghost").style.inlineSize = `${Math.max(0, Math.min(100 - part * 100, ghost * 100))}%`;
  return el("div", {}, el("dt", {}, term), el("dd", {}, el("span", { class: "value" }, value), bar, el("span", { class: "note" }, note)));
}

function meters() {
  const { pool, store, chunk_tokens: chunk, pending_tokens: pending, layers } = shape;
  const ghost = draftText && !draftText.trimEnd().endsWith("?") ? tokensOf(draftText) : 0;
  at("holds-sum").textContent = `${many(shape.writes, "write")} · ${many(shape.tokens, "token")} · ${bytes(shape.bytes)}`;
  const full = ghost && pending + ghost >= chunk;
  at("meters").replaceChildren(
    meter({
      term: "Waiting", kind: "window", value: `${count(pending)} of ${count(chunk)} tokens`, part: pending / chunk, ghost: ghost / chunk,
      note: ghost ? `about ${count(ghost)} more with what you type${full ? ": becomes a write" : ""}` : "text that does not fill a chunk yet",
    }),
    meter({
      term: "Short-term pool", kind: "short-term", value: `${count(pool.size)} of ${count(pool.N)} vectors`, part: pool.N ? pool.size / pool.N : 0,
      note: `in each of ${many(layers, "layer")}; what leaves it is in the store`,
    }),
    meter({
      term: "Long-term store", kind: "long-term", value: many(store.size, "vector"), part: Math.log10(1 + store.size) / 7,
      note: "in each layer; no limit (logarithmic bar, to ten million)",
    }),
  );
}

function charts() {
  const where = new Map(line.map((write) => [write.write, write.where]));
  const newest = line.length ? line[0].write : -1;
  const first = line.length && line.length >= total ? line.at(-1).write : 0;
  strip(at("strip"), { layers: shape.layers, writes: [first, newest], where, waiting: shape.pending_tokens > 0 }, shown, pick);
  at("reads-sum").textContent = !shown
    ? "Ask something, and see which past writes each layer read."
    : shown.recalled ? `“${shown.question}”` : "The last turn was answered without memory.";
  scatter(at("curve"), points);
  at("curve-sum").textContent = "Your own answers in this tab: how well the writes they looked at matched, and how far back these were.";
}

async function curve() {
  try {
    curves ??= await (await fetch(new URL("curve.json", import.meta.url))).json();
  } catch {
    return; // the server is gone, and others say so
  }
  if (curves[shape.model]) measured(at("measured"), curves[shape.model]);
  else at("measured").replaceChildren(el("p", { class: "note" }, "No curve over distance has been measured for this model."));
}

/** Go to a write in the time line. */
function pick(number) {
  const entry = at("line").querySelector(`[data-write="${number}"]`);
  if (!entry) return;
  entry.closest("details")?.setAttribute("open", "");
  entry.scrollIntoView({ block: "center", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  entry.focus({ preventScroll: true });
}

/** The ways to forget a write: it alone, or all that came from where it came. */
function choices(write) {
  const labels = (write.source ?? "").split("; ").filter(Boolean);
  const alone = write.write >= 0
    ? [`write ${write.write}`, { writes: [write.write] }]
    : ["this text, also what of it is written already", { since: write.time, until: write.time + 0.001 }]; // it has no number
  return [alone, ...labels.map((label) => [`everything from “${label}”`, { source: label }])];
}

/** An entry of the time line. score: if the answer that is shown read it. since: tokens told after it. */
function entryOf(write, score, since) {
  const waits = write.write < 0;
  return el(
    "li",
    { class: `entry ${write.where} ${score === undefined ? "" : "read"}`, "data-write": write.write, tabindex: "-1" },
    el("p", { class: "facts" },
      el("strong", {}, waits ? "Waiting" : `Write ${write.write}`), when(write.time), el("span", {}, write.source || "no source"),
      write.tokens ? el("span", {}, many(write.tokens, "token")) : null,
      since === undefined ? null : el("span", { title: "tokens that were told after it" }, since ? `${many(since, "token")} ago` : "newest"), waits ? null : el("span", { class: "where" }, PLACE[write.where] ?? write.where),
      score === undefined ? null : el("span", { class: "mark" }, `read, ${signed(score)}`)),
    el("button", { type: "button", class: "quiet small", "aria-label": waits ? "Forget what waits" : `Forget write ${write.write}`, onclick: () => hooks.forget(choices(write)) }, "Forget"),
    words(write.text ?? null),
  );
}

/** Neighbours in the time line that were told at once from one source. */
function groups() {
  const found = [];
  for (const write of line) {
    const last = found.at(-1);
    if (last && last[0].source === write.source && last[0].time === write.time) last.push(write);
    else found.push([write]);
  }
  return found;
}

/** A long text as one entry of the time line, which opens to its writes. */
function fold(group, entries, since) {
  const [newest, oldest] = [group[0], group.at(-1)];
  const read = entries.filter((entry) => entry.classList.contains("read")).length;
  const id = `${newest.source} ${newest.time}`;
  const tokens = group.reduce((sum, write) => sum + write.tokens, 0);
  return el("li", { class: `entry group ${newest.where} ${read ? "read" : ""}` },
    el("p", { class: "facts" }, el("strong", {}, `Writes ${oldest.write} to ${newest.write}`), when(newest.time), el("span", {}, newest.source || "no source"),
      el("span", {}, many(tokens, "token")), el("span", { title: "tokens that were told after it" }, since ? `${many(since, "token")} ago` : "newest"),
      read ? el("span", { class: "mark" }, `${read} read`) : null),
    newest.source ? el("button", { type: "button", class: "quiet small", "aria-label": `Forget all of ${newest.source}`, onclick: () => hooks.forget([[`everything from “${newest.source}”`, { source: newest.source }]]) }, "Forget") : "",
    el("details", { open: unfolded.has(id), ontoggle: ({ target }) => { if (target.open) unfolded.add(id); else unfolded.delete(id); } },
      el("summary", {}, `${many(group.length, "write")}`), el("ol", { class: "line" }, entries)));
}

function timeline() {
  const read = new Set((shown?.read ?? []).flat()); // not all that was looked at
  const scores = new Map((shown?.sources ?? []).filter((source) => read.has(source.write)).map((source) => [source.write, source.score]));
  const entries = waiting.map((text) => [text.time, entryOf({ ...text, write: -1, where: "window" })]).reverse();
  let since = shape.pending_tokens;
  for (const group of groups()) {
    const begin = since;
    const own = group.map((write) => {
      since += write.tokens;
      return entryOf(write, scores.get(write.write), since - write.tokens);
    });
    entries.push(...(group.length < FEW ? own.map((entry, i) => [group[i].time, entry]) : [[group[0].time, fold(group, own, begin)]]));
  }
  const whole = line.length >= total;
  for (const gap of forgotten) {
    if (!whole && line.length && gap.time < line.at(-1).time) continue;
    const place = entries.findIndex(([time]) => time <= gap.time);
    const entry = el("li", { class: "entry gone" }, el("p", { class: "facts" }, el("strong", {}, "Forgotten"), when(gap.time), el("span", {}, many(gap.tokens, "token"))));
    entries.splice(place < 0 ? entries.length : place, 0, [gap.time, entry]);
  }
  at("line").replaceChildren(...entries.map(([, entry]) => entry));
  at("line-sum").textContent = entries.length
    ? whole ? "Newest first." : `Newest first. ${count(line.length)} of ${count(total)} writes are shown.`
    : "Nothing yet. Tell it something: it is remembered unless it ends with a question mark.";
  at("older").hidden = whole;
}

async function find(event) {
  event.preventDefault();
  const words = at("find-words").value.trim();
  const place = at("found");
  place.hidden = !words;
  if (!words || !name) return;
  try {
    const mine = opened;
    const { data } = await api.search(name, words);
    if (mine !== opened) return;
    const written = data.filter((write) => write.write >= 0).length; // behind them comes what waits
    const sum = [written ? `${many(written, "write")}, best first` : "", written < data.length ? "what waits" : ""].filter(Boolean);
    place.replaceChildren(
      el("p", { class: "facts", role: "status" }, sum.join("; then ") || "Nothing found."),
      el("ol", { class: "line" }, data.map((write) => entryOf({ ...write, source: write.label }, write.write < 0 ? undefined : write.score))),
      el("button", { type: "button", class: "quiet small", onclick: () => { place.hidden = true; at("find-words").value = ""; at("find-words").focus(); } }, "Close the search"),
    );
    for (const entry of place.querySelectorAll(".mark")) entry.textContent = entry.textContent.replace("read, ", "score ");
  } catch (error) {
    hooks.failed(error);
  }
}
