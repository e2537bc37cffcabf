// Begins, and looks again every few seconds for as long as somebody looks at the page.

import { ask, latest, token } from "./api.js";
import { byId, say } from "./dom.js";
import * as facts from "./model.js";
import { verdict, watch } from "./monitor.js";
import * as predict from "./predict.js";
import * as recommend from "./recommend.js";
import { time } from "./words.js";

const EVERY_MS = 5_000;

let timer;
let heard;
let suggested = false;

const look = latest(async (signal) => {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    const info = await ask("info", { signal });
    serve(info);
    predict.compare(await watch(info.model, signal));
    heard = new Date().toISOString();
    if (info.model && !suggested) await suggest(signal);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (error.status === 401) return;
    verdict("lost", heard ? `${error.message} What is below is of ${time(heard)}.` : error.message);
  }
  timer = setTimeout(look, EVERY_MS);
});

function serve(info) {
  byId("token-form").hidden = true;
  byId("guarded").hidden = !token.get();
  const name = info.model ? `${info.name}/${info.model.version}` : info.name;
  say(byId("serving"), `${name} is ${info.status}${info.reason ? `: ${info.reason}` : ""}`);
  if (!info.model) return;
  facts.describe(info.name, info.model);
  predict.describe(info.model);
  recommend.describe(info.model);
}

// The API's description has ids that the catalogue knows, so that a newcomer need not guess. It may be kept from us.
async function suggest(signal) {
  let parameters = [];
  try {
    const { paths } = await ask("openapi.json", { signal });
    parameters = paths["/predict"].get.parameters;
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  suggested = true;
  const ids = Object.fromEntries(parameters.map(({ name, example }) => [name, example]));
  predict.suggest(ids);
  recommend.suggest(ids);
}

document.addEventListener("unauthorized", () => {
  const form = byId("token-form");
  say(byId("token-said"), token.get() ? "The server refused this token." : "This server wants a token.");
  verdict("lost", "Nothing is known without the server\u2019s token.");
  if (form.hidden) {
    form.hidden = false;
    byId("token").focus();
  }
});

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token.set(byId("token").value);
  byId("token").value = "";
  look();
});

byId("forget").addEventListener("click", () => {
  token.forget();
  location.reload();
});

document.addEventListener("visibilitychange", look);
document.addEventListener("acknowledged", look);
look();
