// One prediction: a form in the schema's own words, and what the model says.

import { ask, latest } from "./api.js";
import { byId, el, propose, say } from "./dom.js";
import { bars, dots } from "./draw.js";
import { side } from "./side.js";
import { disagrees, number, percent, spaced } from "./words.js";

let model;
let sides = [];
let usual = [];

// Draws the form for a model, unless the one that is there already asks the same.
export function describe(given) {
  const known = JSON.stringify(model?.entities) === JSON.stringify(given.entities);
  model = given;
  if (known) return;
  sides = given.entities.map(side);
  byId("predict-sides").replaceChildren(...sides.map(({ field }) => field));
  byId("predict-form").hidden = false;
}

// What disagreement is usual in distribution, by rating, from the next prediction on.
export function compare(given) {
  usual = given;
}

// Ids that are in the catalogue, for fields that nobody has touched.
export function suggest(ids) {
  for (const { name, id } of sides) propose(id, ids[name]);
}

// Fills the form with a known pair and leaves the keyboard at its button.
export function put(ids) {
  for (const { name, put: into } of sides) into(String(ids[name]));
  byId("predict-button").focus();
}

const predict = latest(async (signal) => {
  byId("predict-plots").setAttribute("aria-busy", "true");
  const start = performance.now();
  try {
    show(await asked(signal), performance.now() - start);
    say(byId("predict-problem"), "");
  } catch (error) {
    if (error.name === "AbortError") throw error;
    byId("predict-answer").replaceChildren();
    byId("predict-plots").replaceChildren();
    say(byId("predict-problem"), error.message);
  }
  byId("predict-plots").removeAttribute("aria-busy");
});

byId("predict-form").addEventListener("submit", (event) => {
  event.preventDefault();
  predict();
});

async function asked(signal) {
  if (sides.every(({ isNew }) => !isNew())) {
    const query = new URLSearchParams(sides.map(({ name, id }) => [name, id.value.trim()]));
    return ask(`predict?${query}`, { signal });
  }
  const pair = sides.map(({ name, json }) => `${JSON.stringify(name)}:${json()}`);
  const answers = await ask("predict", { body: `{"pairs":[{${pair}}]}`, signal });
  return answers[0];
}

function show(answer, took) {
  const { rating_min: from, rating_max: to, entities } = model;
  const mean = answer.heads.reduce((sum, value) => sum + value, 0) / answer.heads.length;
  const pair = entities.map(({ name }) => told(name, answer[name])).join(" and ");
  const scale = `on a scale of ${from} to ${to}`;
  const share = { name: "more than", value: answer.ood_score, text: percent(answer.ood_score) };
  const heads = answer.heads.map((value) => ({ value }));
  byId("predict-answer").replaceChildren(
    el("p", { class: "rating" }, el("strong", {}, number(answer.rating)), el("span", {}, `${pair}, ${scale}`)),
    el("p", {}, disagrees(answer.ood_score)),
    ...notes(answer),
  );
  byId("predict-plots").replaceChildren(
    bars("Disagreement, against in-distribution pairs", [share], { to: 1 }),
    dots("Each head\u2019s rating, from early to late layers", heads, { from, to, line: mean }),
    el(
      "p",
      { class: "note" },
      `The line is their mean, ${number(mean)}; their standard deviation is ${number(answer.disagreement, 3)}`,
      `${ordinary(answer.rating)}. `,
      `${answer.model}/${answer.version} took ${number(took, 0)} ms, the way there and back included.`,
    ),
  );
}

// The last part whose ratings begin no higher, as the server sorts them in.
function ordinary(rating) {
  const like = usual.findLast(({ rating_from: from }) => from <= rating);
  if (!like || like.low === null) return "";
  const { rating_from: from, rating_to: to, low, high } = like;
  return `; usual for ratings of ${number(from)} to ${number(to)}: ${number(low)} to ${number(high)}`;
}

const told = (name, given) => (typeof given === "object" ? `new ${spaced(name)}` : `${spaced(name)} ${given}`);

function notes(answer) {
  const cold = answer.cold_start.map((name) => [`${spaced(name)} is new`, "the model was not fitted on it"]);
  const missing = (answer.degraded ?? []).map((name) => [
    `${spaced(name)} is missing`,
    "its vector cannot be fetched at the moment; that of an unknown one stands in",
  ]);
  return [...cold, ...missing].map(([badge, why]) => el("p", {}, el("span", { class: "badge" }, badge), ` ${why}`));
}
