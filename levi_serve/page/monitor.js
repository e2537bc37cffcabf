// Whether live traffic still looks like the data that the model was fitted on, for a person on call.

import { showAlarms } from "./alarms.js";
import { ask } from "./api.js";
import { byId, el, say } from "./dom.js";
import { bars, dots, histogram } from "./draw.js";
import { cause, count, number, percent, spaced, streamName, time } from "./words.js";

const STREAMS = 6;

const OFF = "The shift monitor is off.";

// Asks once, draws, and returns what disagreement is usual. `model` may be null: the scale of ratings is then not
// known, and the heads are not drawn.
export async function watch(model, signal) {
  const found = await ask("monitor", { signal });
  const on = found.status !== "off";
  byId("monitor").hidden = !on;
  verdict(found.status, on ? sentence(found) : OFF);
  say(byId("monitor-said"), on ? watched(found) : OFF);
  if (!on) return [];
  byId("monitor-evidence").replaceChildren(evidence(found));
  byId("monitor-bins").replaceChildren(bins(found.bins));
  byId("monitor-facts").replaceChildren(facts(found));
  byId("monitor-heads").replaceChildren(...(model ? [heads(found.heads, model)] : []));
  showAlarms(found.alarms);
  return found.usual;
}

// The one sentence on top of the page.
export function verdict(kind, text) {
  byId("verdict").dataset.kind = kind;
  say(byId("verdict"), text);
}

function sentence({ status, since, alarms }) {
  if (status === "ok") return "Live traffic looks like the data this model was fitted on.";
  if (status === "warming") return "Too few predictions so far to judge live traffic.";
  const alarm = alarms.findLast(({ acknowledged }) => !acknowledged) ?? alarms.at(-1);
  return `Shift alarm${since ? ` since ${time(since)}` : ""}${alarm ? `: ${cause(alarm)}` : ""}.`;
}

function watched({ predictions, passed_over: more, budget: { days, rate } }) {
  const budget = `at most one false alarm in ${count(days)} days at ${count(rate)} predictions a second`;
  return `${count(predictions)} predictions watched${more ? `, ${count(more)} passed over` : ""}; ${budget}.`;
}

function evidence({ evidence: { value, threshold }, streams }) {
  const kind = value >= threshold ? "over" : "sum";
  const all = { name: "all together", value, text: number(value, 1), kind };
  const strength = (stream) => stream.evidence ?? -Number.MAX_VALUE; // JSON has no minus infinity: none at all is null
  const strongest = [...streams].sort((a, b) => strength(b) - strength(a)).slice(0, STREAMS);
  const each = strongest.map((one) => {
    return { name: streamName(one), value: one.evidence, text: number(one.evidence, 1), kind: "part" };
  });
  const to = Math.max(threshold * 1.2, ...[all, ...each].map((row) => row.value).filter(Number.isFinite));
  const caption = `Evidence of a shift, as a natural logarithm; at ${number(threshold, 1)} the alarm is raised`;
  return bars(caption, [all, ...each], { to, limit: threshold });
}

function bins(counts) {
  const total = counts.reduce((sum, value) => sum + value, 0);
  const shares = counts.map((value) => percent(value / total)).join(", ");
  return histogram(
    "How much the heads disagree in live traffic; in distribution every column reaches the line",
    counts,
    `Shares of live predictions by twentieths of in-distribution disagreement, least first: ${shares}; usual: 5 %`,
    ["agree most", "disagree most"],
  );
}

function facts({ estimated_rmse: estimated, id_rmse: inside, true_rmse: measured, unknown }) {
  const rows = [
    ["RMSE, estimated without labels", Number.isFinite(estimated) ? number(estimated, 3) : "not known yet"],
    ...(Number.isFinite(measured) ? [["RMSE of predictions with feedback", number(measured, 3)]] : []),
    ["RMSE in distribution, measured", number(inside, 3)],
    ...Object.entries(unknown).map(([name, share]) => [`predictions with unknown ${spaced(name)}`, percent(share)]),
  ];
  return el("dl", { class: "facts" }, ...rows.flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]));
}

function heads(found, { rating_min: from, rating_max: to }) {
  const rows = found.map(({ mean, deviation, id_mean: reference }) => {
    const around = mean === null ? {} : { low: mean - deviation, high: mean + deviation };
    return { value: mean, ...around, reference };
  });
  const caption = "Each head\u2019s mean rating and deviation in live traffic; the tick is its mean in distribution";
  return dots(caption, rows, { from, to });
}
