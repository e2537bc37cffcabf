// What is in service.

import { byId, el } from "./dom.js";
import { number, spaced, time } from "./words.js";

const VIEWS = { entity: "one text per user and per item", pair: "one text per pair" };

let shown;

export function describe(name, model) {
  const state = JSON.stringify(model);
  if (state === shown) return;
  shown = state;
  const facts = {
    version: `${name}/${model.version}`,
    views: `${model.views}: ${VIEWS[model.views] ?? ""}`,
    heads: `${model.heads}, one per layer of the backbone`,
    ratings: `${model.rating_min} to ${model.rating_max}`,
    "ood score": `in-distribution quantile of the ${spaced(model.score)}`,
    checked: `${model.golden_examples} recorded predictions, off by ${brief(model.golden_difference)} at most`,
  };
  const terms = Object.fromEntries(Object.entries(model.licences).map(([of, text]) => [`licence of ${of}`, text]));
  const { fitted, exported, ...origin } = model.run;
  const times = { fitted: time(fitted), exported: time(exported) };
  byId("model").replaceChildren(
    list(facts),
    el("h3", {}, "Measured at export"),
    list(model.metrics),
    el("details", {}, el("summary", {}, "Where it comes from"), list({ ...origin, ...times, ...terms })),
  );
}

function list(facts) {
  const told = (value) => (typeof value === "number" ? brief(value) : String(value));
  const row = ([name, value]) => [el("dt", {}, spaced(name)), el("dd", {}, told(value))];
  return el("dl", { class: "facts" }, ...Object.entries(facts).flatMap(row));
}

// Four digits; small ones as a power of ten.
function brief(value) {
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) < 1e-3 ? value.toExponential(1) : number(value, 4);
}
