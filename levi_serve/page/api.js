// Asks the server. Addresses are relative, so that the page also works below a path of some proxy.

const KEY = "levi-token";
const PATIENCE_MS = 10_000;

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

// An answer that is no success; its message is for people. Status 0: there was no answer.
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// The JSON that the server answers. `body` makes it a POST and is sent as it is.
export async function ask(path, { body, signal } = {}) {
  const headers = { Accept: "application/json" };
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const method = body === undefined ? "GET" : "POST";
  const signals = [AbortSignal.timeout(PATIENCE_MS), ...(signal ? [signal] : [])];
  let answer, text;
  try {
    answer = await fetch(path, { method, headers, body, signal: AbortSignal.any(signals), cache: "no-store" });
    text = await answer.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const late = error.name === "TimeoutError";
    throw new Refusal(0, late ? `The server took longer than ${PATIENCE_MS / 1000} s.` : "The server does not answer.");
  }
  if (!answer.ok) {
    if (answer.status === 401) document.dispatchEvent(new Event("unauthorized"));
    throw new Refusal(answer.status, complaint(answer, text));
  }
  return parsed(text);
}

// Runs one piece of work at a time: a newer call ends the one before, whose outcome nobody wants any more.
export function latest(work) {
  let running;
  return async (...given) => {
    running?.abort();
    const mine = (running = new AbortController());
    try {
      await work(mine.signal, ...given);
    } catch (error) {
      if (error.name !== "AbortError") throw error;
    }
  };
}

function complaint(answer, text) {
  let problem = {};
  try {
    problem = JSON.parse(text) ?? {};
  } catch {
    // Whatever stands between this page and the server may answer in other forms.
  }
  const listed = (problem.errors ?? []).map((error) => `${error.where}: ${error.reason}`);
  if (listed.length > 1) return listed.join("; ");
  return problem.detail ?? `The server answered ${answer.status} ${answer.statusText}`.trim();
}

// An id has up to 64 bits, a JavaScript number keeps 53: larger ones stay text, as they were written.
function parsed(text) {
  const exact = (_key, value, context) =>
    Number.isInteger(value) && !Number.isSafeInteger(value) ? (context?.source ?? value) : value;
  try {
    return JSON.parse(text, exact);
  } catch {
    throw new Refusal(0, "What answers here is not the server: it does not send JSON.");
  }
}
