// The form's fields for one entity: the id of a known one, or the attributes of a new one.

import { el } from "./dom.js";
import { spaced } from "./words.js";

export function side({ name, id_type: type = "integer", attributes = [] }) {
  const inputmode = type === "integer" ? "numeric" : "text";
  const id = el("input", { name, inputmode, required: true, autocomplete: "off" });
  const inputs = attributes.map((attribute) => ({ ...attribute, input: input(name, attribute) }));
  const known = el("fieldset", {}, el("label", {}, "id ", id));
  const fresh = el("fieldset", { disabled: true, hidden: true }, ...inputs.map(labelled));
  const choose = (isNew) => {
    fresh.disabled = fresh.hidden = !isNew;
    known.disabled = known.hidden = isNew;
  };
  const radios = ["known", "new"].map((value) => {
    const change = () => choose(value === "new");
    return el("input", { type: "radio", name: `${name}-is`, value, checked: value === "known", change });
  });
  const choice = el("p", { class: "choice" }, ...radios.map((radio) => el("label", {}, radio, ` ${radio.value}`)));
  choice.hidden = !attributes.length;
  return {
    name,
    id,
    field: el("fieldset", { class: "side" }, el("legend", {}, spaced(name)), choice, known, fresh),
    isNew: () => known.disabled,
    json: () => (known.disabled ? JSON.stringify(values(inputs)) : idAsJson(id.value.trim(), type)),
    put(value) {
      id.value = value;
      radios[0].checked = true;
      choose(false);
    },
  };
}

const input = (name, { name: attribute, kind }) => {
  const inputmode = kind === "number" ? "decimal" : "text";
  return el("input", { name: `${name}.${attribute}`, inputmode, autocomplete: "off" });
};

const labelled = ({ name, many, input: field }) =>
  el("label", {}, `${spaced(name)}${many ? ", with commas between" : ""} `, field);

// The attributes that were filled in. What is no number where one is wanted goes as it is: the server says so better.
function values(inputs) {
  const given = {};
  for (const { name, kind, many, input: field } of inputs) {
    const text = field.value.trim();
    if (!text) continue;
    if (many) given[name] = text.split(",").map((part) => part.trim());
    else given[name] = kind === "number" && Number.isFinite(Number(text)) ? Number(text) : text;
  }
  return given;
}

// An integer is copied digit by digit, since a JavaScript number cannot hold all of them.
function idAsJson(text, type) {
  const digits = /^(-?)0*([0-9]+)$/.exec(text);
  return type === "integer" && digits ? digits[1] + digits[2] : JSON.stringify(text);
}
