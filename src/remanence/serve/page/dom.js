// Making elements, and saying numbers and times. Text always becomes a text node: nothing that was told is read as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** An HTML element: el("p", {class: "note"}, "text", otherElement). `on...` attributes are listeners. */
export const el = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);

/** The same for SVG. */
export const svg = (name, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, name), attributes, children);

/** The element with an id. */
export const at = (id) => document.getElementById(id);

/** 12,345. */
export const count = (number) => Math.round(number).toLocaleString("en");

/** "1 write", "2 writes". */
export const many = (number, one, more = `${one}s`) => `${count(number)} ${Math.round(number) === 1 ? one : more}`;

/** A score with its sign, two places. */
export const signed = (score) => `${score < 0 ? "−" : "+"}${Math.abs(score).toFixed(2)}`;

/** Bytes in the largest unit that leaves a number above one. */
export function bytes(number) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  const unit = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(number, 1)) / 3));
  return `${(number / 1000 ** unit).toFixed(unit && number / 1000 ** unit < 10 ? 1 : 0)} ${units[unit]}`;
}

/** How long ago a time in seconds since 1970 was, in words. */
export function ago(seconds) {
  const past = Date.now() / 1000 - seconds;
  if (past < 45) return "just now";
  for (const [size, name] of [[86400 * 365, "year"], [86400 * 30, "month"], [86400, "day"], [3600, "hour"], [60, "minute"]]) {
    if (past >= size) return `${many(Math.floor(past / size), name)} ago`;
  }
  return "a minute ago";
}

/** A <time> element: how long ago, with the full date as its title. */
export function when(seconds) {
  const date = new Date(seconds * 1000);
  return el("time", { datetime: date.toISOString(), title: date.toLocaleString() }, ago(seconds));
}

/** Names of places, as the page says them. */
export const PLACE = { "long-term": "in the store", "short-term": "in the pool", window: "waiting", gone: "no longer kept" };

/** A text as it is shown: without the white space at its ends, which a write keeps; or that there is none. */
export const words = (text) => el("p", { class: text === null ? "words soft" : "words" }, text === null ? "Its text is not stored." : text.trim());

/** Say something to screen readers without showing it. */
export function say(text) {
  at("said").textContent = text;
}
