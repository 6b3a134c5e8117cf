// The two pictures of a memory: which writes each layer read, and scores by distance. Both are SVG, and both have their
// content in words beside them: the strip as buttons, the curve as a table.

import { count, el, many, signed, svg } from "./dom.js";

const LEFT = 44; // room for the labels of the vertical axis

const text = (x, y, words, anchor = "start") => svg("text", { x, y, "text-anchor": anchor }, words);

/** How strongly a score is drawn: 0 for what hardly counts (below zero), up to 1 for the best one. */
function strength(score, best) {
  return score <= 0 || best <= 0 ? 0 : 0.35 + 0.65 * (score / best);
}

/**
 * Layers from top to bottom, writes from left (oldest) to right (newest); a cell is lit where a layer read a write.
 * @param {Element} place is emptied and filled
 * @param {{layers: number, writes: number[], where: Map<number, string>, waiting: boolean}} memory writes: the numbers
 *   of the oldest and the newest one. where: "long-term" or "short-term", of the writes that are known.
 * @param {{read: number[][], sources: object[]} | null} answer
 * @param {(write: number) => void} onPick called when a source is chosen
 */
export function strip(place, memory, answer, onPick) {
  const width = Math.max(260, place.clientWidth);
  const [first, last] = memory.writes;
  const total = Math.max(0, last - first + 1);
  const tail = memory.waiting ? 1 : 0; // what waits has a column of its own at the end
  const columns = Math.max(1, Math.min(total, Math.floor((width - LEFT) / 7) - tail));
  const wide = Math.min(24, (width - LEFT) / (columns + tail));
  const tall = Math.max(3, Math.min(14, Math.floor(132 / Math.max(1, memory.layers))));
  const thin = tall < 7 ? "thin" : ""; // no room for an outline
  const top = 12;
  const bottom = top + memory.layers * tall;
  const columnOf = (write) => Math.min(columns - 1, Math.floor(((write - first) * columns) / Math.max(1, total)));
  const xOf = (column) => LEFT + column * wide;

  const picture = svg("svg", { viewBox: `0 0 ${width} ${bottom + 20}`, width, height: bottom + 20, role: "img" });
  const places = Array.from({ length: columns }, () => "");
  if (total) for (const [write, where] of memory.where) if (write >= first && write <= last) places[columnOf(write)] = where;
  places.forEach((where, column) => {
    if (total) picture.append(svg("rect", { class: `place ${where}`, x: xOf(column) + 0.5, y: 0, width: wide - 1, height: 5, rx: 1 }));
  });
  if (tail) picture.append(svg("rect", { class: "place window", x: xOf(columns) + 0.5, y: 0.5, width: wide - 1, height: 4, rx: 1 }));
  for (let layer = 0; layer < memory.layers; layer += 1) {
    picture.append(svg("rect", { class: "lane", x: LEFT, y: top + layer * tall + 0.5, width: (columns + tail) * wide, height: tall - 1 }));
  }

  const sources = answer?.sources ?? [];
  const scores = new Map(sources.map((source) => [source.write, source.score]));
  const best = Math.max(0, ...scores.values());
  const lit = new Map(); // "layer,column" -> the best score there
  (answer?.read ?? []).forEach((writes, layer) => {
    for (const write of writes) {
      const waits = write < 0;
      if (!waits && (write < first || write > last)) continue; // forgotten since
      const spot = `${layer},${waits ? columns : columnOf(write)}`;
      lit.set(spot, Math.max(lit.get(spot) ?? -Infinity, scores.get(write) ?? 0));
    }
  });
  if (tail && sources.some((source) => source.where === "window")) {
    for (let layer = 0; layer < memory.layers; layer += 1) lit.set(`${layer},${columns}`, 0);
  }
  for (const [spot, score] of lit) {
    const [layer, column] = spot.split(",").map(Number);
    const power = strength(score, best);
    picture.append(svg("rect", {
      class: power ? "lit" : `lit faint ${thin}`, "fill-opacity": power || null,
      x: xOf(column) + 0.75, y: top + layer * tall + 0.75, width: wide - 1.5, height: tall - 1.5, rx: 1,
    }));
  }
  picture.append(
    text(0, top + 9, "layer 0"), memory.layers > 1 ? text(LEFT - 5, bottom - 1, memory.layers - 1, "end") : "",
    text(LEFT, bottom + 14, total > 1 ? "oldest write" : ""),
    text(Math.max(LEFT + 150, xOf(columns + tail)), bottom + 14, tail ? "newest, and what waits" : "newest", "end"),
  );
  const layersOf = (write) => (answer?.read ?? []).filter((writes) => writes.includes(write)).length;
  const written = sources.filter((source) => source.write >= 0);
  picture.setAttribute("aria-label", answer
    ? `${many(written.filter((source) => layersOf(source.write)).length, "write")} of ${count(total)} read. The same as buttons below.`
    : `${many(total, "write")}, ${many(memory.layers, "layer")}. Nothing was read yet.`);

  const buttons = sources.filter((source) => source.write >= 0).map((source) => {
    const layers = layersOf(source.write);
    return el("li", {}, el(
      "button",
      { type: "button", class: layers ? "chip" : "chip passed", onclick: () => onPick(source.write) },
      el("strong", {}, `write ${source.write}`), ` ${signed(source.score)}`,
      el("span", { class: "soft" }, layers ? ` ${layers} of ${many(memory.layers, "layer")}` : " passed over"),
    ));
  });
  place.replaceChildren(
    picture,
    el("ul", { class: "legend", "aria-label": "What the colours mean" },
      el("li", {}, el("i", { class: "key lit" }), "read, stronger for higher scores"),
      el("li", {}, el("i", { class: `key lit faint ${thin}` }), "read, at or below zero"),
      el("li", {}, el("i", { class: "key short-term" }), "pool"),
      el("li", {}, el("i", { class: "key long-term" }), "store"),
      tail ? el("li", {}, el("i", { class: "key window" }), "waiting") : null),
    buttons.length ? el("ul", { class: "chips", "aria-label": "What was looked at, best first" }, buttons) : "",
  );
}

/** Distances on a logarithmic axis: 1 K for 1,000. */
const short = (tokens) => (tokens >= 1e6 ? `${tokens / 1e6} M` : tokens >= 1000 ? `${tokens / 1000} K` : `${tokens}`);

function axes(width, height, xs, ys, { label, words }) {
  const [low, high] = xs;
  const [down, up] = ys;
  const x = (tokens) => LEFT + 6 + ((Math.log10(Math.max(tokens, low)) - Math.log10(low)) / (Math.log10(high) - Math.log10(low))) * (width - LEFT - 22);
  const y = (value) => 10 + (1 - (value - down) / (up - down)) * (height - 44);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": words });
  for (let tokens = low; tokens <= high; tokens *= 10) {
    picture.append(
      svg("line", { class: "grid", x1: x(tokens), x2: x(tokens), y1: 10, y2: height - 34 }),
      text(x(tokens), height - 20, tokens === low && low < 1000 ? `≤ ${low}` : short(tokens), "middle"),
    );
  }
  picture.append(text(width - 16, height - 4, label, "end"));
  return { picture, x, y };
}

const table = (caption, heads, rows) => el("details", {}, el("summary", {}, "As a table"), el("div", { class: "wide" }, el(
  "table", {}, el("caption", { class: "sr" }, caption),
  el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
  el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell) => el("td", {}, cell))))),
)));

/**
 * Scores of what this person's answers looked at, by how many tokens were told since.
 * @param {Element} place is emptied and filled
 * @param {{question: string, write: number, distance: number, score: number, best: boolean}[]} points
 */
export function scatter(place, points) {
  if (!points.length) {
    place.replaceChildren(el("p", { class: "empty" }, "No answer has read a past write yet. Each one that does adds its points here."));
    return;
  }
  const width = Math.max(260, place.clientWidth);
  const height = 170;
  const scores = points.map((point) => point.score);
  const down = Math.floor(Math.min(0, ...scores)) - 1;
  const up = Math.ceil(Math.max(0, ...scores)) + 1;
  const far = Math.max(1000, ...points.map((point) => point.distance));
  const { picture, x, y } = axes(width, height, [10, 10 ** Math.ceil(Math.log10(far))], [down, up], {
    label: "tokens told since",
    words: `${many(points.length, "point")}: scores from ${signed(Math.min(...scores))} to ${signed(Math.max(...scores))}, `
      + `at ${count(Math.min(...points.map((point) => point.distance)))} to ${count(Math.max(...points.map((point) => point.distance)))} tokens. The same as a table below.`,
  });
  picture.append(
    svg("line", { class: "zero", x1: LEFT + 6, x2: width - 16, y1: y(0), y2: y(0) }),
    text(LEFT, y(0) + 4, "0", "end"), text(LEFT, y(up) + 8, `+${up}`, "end"), text(LEFT, y(down), `−${-down}`, "end"),
  );
  for (const point of points) {
    picture.append(svg("circle", { class: point.best ? "dot best" : "dot", cx: x(point.distance), cy: y(point.score), r: point.best ? 4.5 : 3 },
      svg("title", {}, `write ${point.write}, ${signed(point.score)}, ${count(point.distance)} tokens: ${point.question}`)));
  }
  place.replaceChildren(
    picture,
    el("ul", { class: "legend", "aria-label": "What the marks mean" },
      el("li", {}, el("i", { class: "key round" }), "best of an answer"),
      el("li", {}, el("i", { class: "key round hollow" }), "others it looked at"),
      el("li", {}, el("i", { class: "key dash" }), "0: no better than nothing relevant")),
    table("Scores by distance", ["Question", "Write", "Tokens since", "Score"],
      points.map((point) => [point.question, point.write, count(point.distance), signed(point.score)])),
  );
}

/**
 * The curve that was measured for a model: right answers by distance, with the long-term store and without it.
 * @param {Element} place is emptied and filled
 * @param {{by: string, facts: number, rows: {distance: number, with: number, without: number}[]}} curve
 */
export function measured(place, curve) {
  const width = Math.max(260, place.clientWidth);
  const height = 150;
  const { picture, x, y } = axes(width, height, [1000, 1e6], [0, 1], {
    label: "tokens since told",
    words: `Facts answered exactly: ${curve.rows.map((row) => `${Math.round(row.with * 100)} % at ${count(row.distance)} tokens`).join(", ")}.`,
  });
  const path = (name) => curve.rows.map((row, i) => `${i ? "L" : "M"}${x(row.distance).toFixed(1)} ${y(row[name]).toFixed(1)}`).join("");
  picture.append(
    text(LEFT, y(1) + 4, "100 %", "end"), text(LEFT, y(0) + 4, "0 %", "end"),
    svg("path", { class: "curve without", d: path("without") }), svg("path", { class: "curve", d: path("with") }),
  );
  place.replaceChildren(
    el("h3", {}, "Measured for this model"),
    el("p", { class: "note" }, `Share of ${count(curve.facts)} facts of made-up people that were answered exactly. ${curve.by}`),
    picture,
    el("ul", { class: "legend", "aria-label": "What the lines mean" },
      el("li", {}, el("i", { class: "key line" }), "with long-term store"),
      el("li", {}, el("i", { class: "key dash" }), "without it")),
    table("Facts answered exactly, by distance", ["Tokens since told", "With store", "Without"],
      curve.rows.map((row) => [count(row.distance), `${Math.round(row.with * 100)} %`, `${Math.round(row.without * 100)} %`])),
  );
}
