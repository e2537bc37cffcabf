// The best of the catalogue for one user.

import { ask, latest } from "./api.js";
import { byId, el, propose, say } from "./dom.js";
import { bar } from "./draw.js";
import { put } from "./predict.js";
import { number, percent, spaced } from "./words.js";

let model;

export function describe(given) {
  model = given;
  const [{ name, id_type: type = "integer" }] = given.entities;
  say(byId("recommend-name"), spaced(name));
  byId("recommend-id").inputMode = type === "integer" ? "numeric" : "text";
  byId("recommend-form").hidden = false;
}

export function suggest(ids) {
  propose(byId("recommend-id"), ids[model.entities[0].name]);
}

const recommend = latest(async (signal) => {
  const [user, item] = model.entities;
  const query = new URLSearchParams({
    [user.name]: byId("recommend-id").value.trim(),
    k: byId("recommend-count").value.trim(),
    exclude_rated: byId("recommend-unrated").checked,
  });
  let [said, drawn, problem] = ["", [], ""];
  try {
    const answer = await ask(`recommend?${query}`, { signal });
    const whom = `for ${spaced(user.name)} ${answer[user.name]}`;
    const count = answer.items.length;
    said = count ? `The best ${count} ${whom}. Choose one to put it into the form above.` : `Nothing is left ${whom}.`;
    drawn = [table(answer, user, item)];
  } catch (error) {
    if (error.name === "AbortError") throw error;
    problem = error.message;
  }
  say(byId("recommend-said"), said);
  say(byId("recommend-problem"), problem);
  byId("recommend-answer").replaceChildren(...drawn);
});

byId("recommend-form").addEventListener("submit", (event) => {
  event.preventDefault();
  recommend();
});

function table(answer, user, item) {
  const head = ["", spaced(item.name), "rating", "disagrees more than"];
  const rows = answer.items.map((best, i) =>
    el(
      "tr",
      { click: () => put({ [user.name]: answer[user.name], [item.name]: best[item.name] }) },
      el("td", { class: "number" }, `${i + 1}`),
      el("th", { scope: "row" }, ...title(best, item)),
      el("td", { class: "number" }, number(best.rating)),
      el("td", {}, el("div", { class: "share" }, bar(best.ood_score), el("span", {}, percent(best.ood_score)))),
    ),
  );
  return el(
    "table",
    { class: "best", "aria-labelledby": "recommend-title" },
    el("thead", {}, el("tr", {}, ...head.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...rows),
  );
}

// A button, for the keyboard; its click reaches the row. The first text attribute is what people call the item.
function title(best, item) {
  const id = best[item.name];
  const given = best.attributes ?? {};
  const text = item.attributes?.find(({ kind, name }) => kind === "text" && given[name])?.name;
  const others = Object.keys(given).filter((name) => name !== text);
  const told = [...(text ? [id] : []), ...others.map((name) => [given[name]].flat().join(", "))];
  return [
    el("button", { type: "button", class: "plain" }, String(text ? given[text] : id)),
    ...(best.cold_start.includes(item.name) ? [" ", el("span", { class: "badge" }, "new")] : []),
    el("small", {}, told.join(" \u00b7 ")),
  ];
}
