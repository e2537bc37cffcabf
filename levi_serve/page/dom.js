// Elements are made here and nowhere else. What a server said becomes text nodes and is never parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

export const el = (name, attributes, ...children) => complete(document.createElement(name), attributes, children);

export const svg = (name, attributes, ...children) =>
  complete(document.createElementNS(SVG, name), attributes, children);

// A live region that is written anew is read out anew, so only what differs is written.
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// A field's default shows until somebody writes; it is not put below the fingers of one who is about to.
export function propose(field, text = "") {
  if (field !== document.activeElement) field.defaultValue = text;
}

// A function is a listener of the event that its key names; false and undefined leave an attribute out.
function complete(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== false && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}
