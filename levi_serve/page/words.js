// Numbers, times and names as people read them.

const NOTHING = "\u2013";
const COUNT = new Intl.NumberFormat("en-GB");
const CLOCK = { hour: "2-digit", minute: "2-digit" };
const TODAY = new Intl.DateTimeFormat("en-GB", CLOCK);
const EARLIER = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", ...CLOCK });

const SCORES = {
  spread: "the heads\u2019 spread",
  contrast: "the heads\u2019 contrast",
  depth_gap: "the gap between late and early heads",
  level: "the level of ratings",
  support_user: "the distance from fitted users",
  support_item: "the distance from fitted items",
  new_user: "the share of new users",
  new_item: "the share of new items",
};
const WAYS = {
  mean: ["high", "is higher than it should be"],
  upper: ["very high", "is very high too often"],
  lower: ["low", "is lower than it should be"],
};

export const number = (value, digits = 2) =>
  Number.isFinite(value) ? value.toFixed(digits).replace("-", "\u2212") : NOTHING;

export const count = (value) => (Number.isFinite(value) ? COUNT.format(value) : NOTHING);

// Rounded down, since 99.96 % must not read as all; the sum undoes what binary fractions take off (0.29 * 100 < 29).
export function percent(share) {
  if (!Number.isFinite(share)) return NOTHING;
  const digits = (share > 0 && share < 0.01) || (share >= 0.99 && share < 1) ? 1 : 0;
  const down = Math.floor(share * 100 * 10 ** digits + 1e-9) / 10 ** digits;
  return `${down.toFixed(digits)}\u202f%`;
}

export function time(text) {
  const when = new Date(text);
  if (Number.isNaN(when.getTime())) return String(text);
  return (when.toDateString() === new Date().toDateString() ? TODAY : EARLIER).format(when);
}

export const spaced = (name) => name.replaceAll("_", " ");

export const streamName = ({ score, kind }) => `${spaced(score)}, ${WAYS[kind]?.[0] ?? spaced(kind)}`;

export const cause = ({ score, kind }) =>
  `${SCORES[score] ?? spaced(score)} ${WAYS[kind]?.[1] ?? `is not as it should be (${spaced(kind)})`}`;

export function disagrees(share) {
  if (!Number.isFinite(share)) return "How unusual their disagreement is, is not known.";
  if (share >= 1) return "The heads disagree more than on any in-distribution pair.";
  if (share <= 0) return "The heads disagree less than on any in-distribution pair.";
  return `The heads disagree more than on ${percent(share)} of in-distribution pairs.`;
}
