// A message as the model reads it: every token in a colour, its probability and what could have stood in its place.

import { ask, shown } from "./chat_stream.js";
import { button, element, icon } from "./chat_parts.js";

const STEPS = [0.01, 0.1, 0.5, 0.9]; // the classes p0 (rarest) to p4
const ALTERNATIVES = 5;

export function percent(probability) {
  if (typeof probability !== "number") return "none";
  const value = 100 * probability;
  if (value > 0 && value < 0.01) return "< 0.01 %";
  return `${value >= 99.95 ? 100 : value >= 10 ? value.toFixed(1) : Number(value.toPrecision(2))} %`;
}

const visible = (text) => (text === "" ? "(empty)" : shown(text).replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥"));

// Tokens of neighbours with one role stay together; the message's own are those of the last question or after it.
export function ownPart(tokens, role) {
  let end = tokens.length;
  if (role === "user") while (end > 0 && tokens[end - 1].role !== "user") end--;
  let start = end;
  while (start > 0 && (role === "user") === (tokens[start - 1].role === "user")) start--;
  return end > start ? [start, end] : [0, tokens.length];
}

function detail(card, token) {
  const top = element("p", "of");
  top.append(element("code", "", visible(token.text)), element("b", "", percent(token.probability)));
  const why = typeof token.probability === "number" ? "" : ", nothing stands before it";
  top.append(element("small", "", `token ${token.id}${token.written ? ", the model's own" : ", given to it"}${why}`));
  const list = element("ul");
  for (const other of (token.alternatives ?? []).slice(0, ALTERNATIVES)) {
    const row = element("li", other.id === token.id ? "taken" : "");
    const bar = element("i");
    bar.style.width = `${Math.max(1, 100 * other.probability)}%`;
    const track = element("span", "track");
    track.append(bar);
    row.append(element("code", "", visible(other.text)), track, element("small", "", percent(other.probability)));
    list.append(row);
  }
  card.replaceChildren(top, list);
}

function coloured(tokens, card) {
  const list = element("div", tokens.some((token) => token.written) ? "tokens its-own" : "tokens");
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", "Tokens");
  let active = null;
  const pick = (span) => {
    if (active) {
      active.tabIndex = -1;
      active.setAttribute("aria-selected", "false");
    }
    active = span;
    span.tabIndex = 0;
    span.setAttribute("aria-selected", "true");
    detail(card, tokens[span.dataset.at]);
  };
  tokens.forEach((token, at) => {
    const rare = typeof token.probability === "number" ? `p${STEPS.filter((step) => token.probability >= step).length}` : "";
    const text = shown(token.text).replace(/\t/g, "⇥\t").replace(/\n/g, "⏎\n");
    const span = element("span", `c${at % 6} ${rare} ${token.written ? "written" : ""}`, text || "∅");
    span.dataset.at = at;
    span.tabIndex = -1;
    span.setAttribute("role", "option");
    span.setAttribute("aria-selected", "false");
    span.setAttribute("aria-label", `${visible(token.text)}, ${percent(token.probability)}`);
    list.append(span);
  });
  for (const kind of ["pointerover", "focusin", "click"])
    list.addEventListener(kind, (event) => event.target.dataset.at && pick(event.target));
  list.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (!step || !active) return;
    event.preventDefault();
    list.children[Math.max(0, Math.min(tokens.length - 1, Number(active.dataset.at) + step))].focus();
  });
  const first = tokens.findIndex((token) => token.written);
  if (list.children.length) pick(list.children[Math.max(0, first)]);
  return list;
}

function legend() {
  const row = element("p", "legend");
  STEPS.forEach((step, at) => row.append(element("span", `p${at}`, `< ${100 * step} %`)));
  row.append(element("span", `p${STEPS.length}`, `≥ ${100 * STEPS.at(-1)} %`));
  return row;
}

// The view of the last message of `messages`; `models` can each be asked how likely they find it.
export function tokenView(models, model, messages, role, close) {
  const view = element("section", "token-view by-token");
  view.setAttribute("aria-label", "Tokens of this message");
  const top = element("div", "token-top"), body = element("div");
  const who = element("select");
  who.setAttribute("aria-label", "The checkpoint that reads it");
  who.append(...models.map((name) => element("option", "", name)));
  who.value = model;
  const paint = button("small", "Probability", () => {
    const on = view.classList.toggle("by-probability");
    view.classList.toggle("by-token", !on);
    paint.setAttribute("aria-pressed", on);
  });
  paint.title = "Colour the tokens by their probability";
  paint.setAttribute("aria-pressed", false);
  const leave = icon("close", "Close the token view", close);
  top.append(element("label", "", "Read by "), paint, leave);
  top.firstChild.append(who);
  view.append(top, body);

  async function load() {
    body.replaceChildren(element("p", "quiet", "Reading …"));
    body.setAttribute("aria-busy", "true");
    const wanted = who.value;
    try {
      const { tokens } = await (await ask("api/tokens", { model: wanted, messages })).json();
      if (wanted !== who.value) return;
      const [start, end] = ownPart(tokens, role);
      const card = element("div", "token-card");
      const own = tokens.slice(start, end);
      const count = `${own.length} token${own.length === 1 ? "" : "s"}, ${own.filter((token) => token.written).length} of them the model's own (underlined: they bear the loss in training).`;
      body.replaceChildren(coloured(own, card), card, legend(), element("p", "quiet", count));
      if (start) {
        const before = element("details");
        before.append(element("summary", "", `The ${start} token${start === 1 ? "" : "s"} before`));
        before.addEventListener("toggle", () => before.open && !before.children[1] && before.append(coloured(tokens.slice(0, start), card)));
        body.append(before);
      }
    } catch (error) {
      const failed = element("p", "failed", shown(error.message) + " ");
      failed.append(button("small", "Try again", load));
      body.replaceChildren(failed);
    } finally {
      body.removeAttribute("aria-busy");
      view.scrollIntoView({ block: "nearest" });
    }
  }
  who.addEventListener("change", load);
  load();
  return view;
}
