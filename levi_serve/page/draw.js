// Plots that are tables: each row has its name and its number in text, and a drawing for the eye in between.
// Lengths are shares of the width, so a plot is as wide as there is room for and its text stays as large as it is.

import { el, svg } from "./dom.js";
import { number } from "./words.js";

// One row per head, early layers first: a dot at its `value`. A head's `low` to `high` is drawn as a band and its
// `reference` as a tick. With a `line`, which is drawn through all rows, dots are joined. Heads may leave the scale.
export function dots(caption, heads, { from, to, line }) {
  const values = heads.flatMap(({ value, low, high, reference }) => [value, low, high, reference]);
  const scale = wide(from, to, values.filter(Number.isFinite));
  const ticks = whole(from, to);
  const rows = heads.map(({ value, low, high, reference }, i) => {
    const next = heads[i + 1]?.value;
    const marks = [
      ...ticks.map((tick) => upright(scale, tick, "grid")),
      upright(scale, line, "mean"),
      across(scale, low, high, "50%", "band"),
      upright(scale, reference, "reference"),
      Number.isFinite(line) && across(scale, value, next, "150%", "path"),
      Number.isFinite(value) && svg("circle", { cx: at(scale, value), cy: "50%", r: "0.26em", class: "dot" }),
    ];
    const name = `${i + 1}${i === 0 ? " early" : i === heads.length - 1 ? " late" : ""}`;
    return row(name, marks, number(value));
  });
  const below = ticks.map((tick) => svg("text", { x: at(scale, tick), y: "1em", "text-anchor": "middle" }, `${tick}`));
  const axis = el("tr", {}, el("td"), el("td", {}, drawing(below)), el("td"));
  return table(caption, rows, el("tfoot", { "aria-hidden": "true" }, axis));
}

// One bar per row, from nothing; `limit` is a line through all of them.
export function bars(caption, rows, { to, limit }) {
  const scale = { from: 0, to };
  const drawn = rows.map(({ name, value, text, kind }) =>
    row(name, [...filled(scale, value), upright(scale, limit, "limit")], text, kind),
  );
  return table(caption, drawn);
}

// A single bar from 0 to 1, for a cell.
export const bar = (share) => drawing(filled({ from: 0, to: 1 }, share));

// Counts by equal parts of 0 to 1. What stands above the line, where each would be if all were alike, is marked.
export function histogram(caption, counts, said, ends) {
  const marks = counts.some(Boolean) ? columns(counts) : [];
  return el(
    "figure",
    {},
    el("figcaption", {}, caption),
    svg("svg", { class: "histogram", role: "img", "aria-label": said }, ...marks),
    el("p", { class: "ends", "aria-hidden": "true" }, ...ends.map((end) => el("span", {}, end))),
  );
}

function columns(counts) {
  const level = counts.reduce((sum, value) => sum + value, 0) / counts.length;
  const highest = Math.max(...counts, level * 1.6);
  const width = 100 / counts.length;
  const y = `${100 - (100 * level) / highest}%`;
  const part = (i, low, high, kind) => {
    const place = { x: `${(i + 0.08) * width}%`, width: `${0.84 * width}%` };
    const height = { y: `${100 - (100 * high) / highest}%`, height: `${(100 * (high - low)) / highest}%` };
    return svg("rect", { ...place, ...height, class: kind });
  };
  return [
    ...counts.map((value, i) => part(i, 0, Math.min(value, level), "usual")),
    ...counts.map((value, i) => part(i, level, Math.max(value, level), "filled")),
    svg("line", { x1: 0, x2: "100%", y1: y, y2: y, class: "limit" }),
  ];
}

const table = (caption, rows, foot = "") =>
  el("table", { class: "plot" }, el("caption", {}, caption), el("tbody", {}, ...rows), foot);

const row = (name, marks, text, kind) =>
  el(
    "tr",
    { class: kind },
    el("th", { scope: "row" }, name),
    el("td", {}, drawing(marks)),
    el("td", { class: "number" }, text),
  );

const drawing = (marks) => svg("svg", { class: "drawing", "aria-hidden": "true" }, ...marks.filter(Boolean));

const filled = (scale, value) => [
  svg("rect", { width: "100%", y: "25%", height: "50%", class: "track" }),
  Number.isFinite(value) && svg("rect", { width: at(scale, value), y: "25%", height: "50%", class: "filled" }),
];

const upright = (scale, value, kind) =>
  Number.isFinite(value) && svg("line", { x1: at(scale, value), x2: at(scale, value), y1: 0, y2: "100%", class: kind });

const across = (scale, from, to, y2, kind) =>
  Number.isFinite(from) &&
  Number.isFinite(to) &&
  svg("line", { x1: at(scale, from), x2: at(scale, to), y1: "50%", y2, class: kind });

const at = ({ from, to }, value) => `${(100 * (Math.min(Math.max(value, from), to) - from)) / (to - from)}%`;

const wide = (from, to, values) => ({ from: Math.min(from, ...values), to: Math.max(to, ...values) });

// The whole numbers of a rating scale, or about ten of them.
function whole(from, to) {
  const step = Math.max(1, Math.ceil((to - from) / 10));
  const ticks = [];
  for (let tick = Math.ceil(from); tick <= to; tick += step) ticks.push(tick);
  return ticks;
}
