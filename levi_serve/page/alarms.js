// The list of alarms, and the button that says somebody has seen one.

import { ask } from "./api.js";
import { byId, el, say } from "./dom.js";
import { cause, number, time } from "./words.js";

let shown;

// Drawn anew only when something differs, so that nobody loses the button that they are about to press.
export function showAlarms(alarms) {
  const state = JSON.stringify(alarms);
  if (state === shown) return;
  shown = state;
  const none = el("p", { class: "note" }, "None so far.");
  const list = el("ul", { class: "alarms" }, ...alarms.map(entry).reverse());
  byId("alarms").replaceChildren(alarms.length ? list : none);
}

function entry(alarm) {
  const { raised, acknowledged, evidence } = alarm;
  const seen = acknowledged ? `, acknowledged ${time(acknowledged)}` : "";
  const label = `Acknowledge the alarm of ${time(raised)}`;
  const button = el("button", { type: "button", "aria-label": label, click: () => acknowledge(alarm) }, "Acknowledge");
  return el(
    "li",
    {},
    el(
      "div",
      {},
      el("p", {}, cause(alarm)),
      el("small", {}, el("time", { datetime: raised }, time(raised)), `, evidence ${number(evidence, 1)}${seen}`),
    ),
    ...(acknowledged ? [] : [button]),
  );
}

async function acknowledge({ id }) {
  try {
    await ask(`monitor/alarms/${encodeURIComponent(id)}/acknowledge`, { body: "" });
    say(byId("alarms-problem"), "");
    // The button is about to go; the keyboard stays near.
    byId("alarms-title").focus();
    document.dispatchEvent(new Event("acknowledged"));
  } catch (error) {
    say(byId("alarms-problem"), error.message);
  }
}
