// The page on which a person orders replies. Whatever a model wrote is set by textContent, never as HTML.
"use strict";

const DONE = "ordered";
const list = $("answers");
const cards = () => [...list.children];
const arrangement = () => cards().map((card) => Number(card.dataset.place));

// ------------------------------------------------------------------ showing

function cardOf(text, place) {
  const card = element("li", "card");
  card.tabIndex = 0;
  card.dataset.place = place;
  const moves = element("span", "moves");
  for (const [sign, name, step] of [["▲", "Move up", -1], ["▼", "Move down", 1]]) {
    const button = element("button", "", sign);
    button.type = "button";
    button.tabIndex = -1; // the arrow keys do it
    button.setAttribute("aria-label", name);
    button.addEventListener("click", () => move(card, cards().indexOf(card) + step));
    moves.append(button);
  }
  const empty = !text.trim();
  card.append(element("span", "rank"), element("div", empty ? "text empty" : "text", empty ? "(nothing)" : text), moves);
  return card;
}

function show() {
  drag = null;
  showCounts();
  $("work").hidden = !state.item;
  $("end").hidden = Boolean(state.item);
  list.replaceChildren();
  $("prompt").replaceChildren();
  if (!state.item) {
    return showEnd();
  }
  $("stop").textContent = "End";
  $("prompt").append(...state.item.prompt.map(turnOf));
  list.append(...state.item.start.map((place) => cardOf(state.item.replies[place], place)));
  $("last").textContent = Math.min(9, list.children.length);
  since = performance.now();
  number();
  window.scrollTo(0, 0);
  list.firstElementChild.focus({ preventScroll: true });
}

function number() {
  cards().forEach((card, i) => {
    card.firstElementChild.textContent = i + 1;
    card.lastElementChild.firstElementChild.disabled = i === 0;
    card.lastElementChild.lastElementChild.disabled = i === list.children.length - 1;
  });
}

// ------------------------------------------------------------------ moving

function glide(change) {
  const before = new Map(cards().map((card) => [card, card.offsetTop]));
  change();
  number();
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const [card, top] of before) {
    const by = top - card.offsetTop;
    if (by && card !== drag?.card) card.animate([{ transform: `translateY(${by}px)` }, {}], { duration: 140, easing: "ease-out" });
  }
}

function move(card, to) {
  const others = cards().filter((other) => other !== card);
  const rank = Math.max(0, Math.min(to, others.length));
  if (drag || busy || cards()[rank] === card) return;
  glide(() => list.insertBefore(card, others[rank] ?? null));
  card.focus({ preventScroll: true });
  card.scrollIntoView({ block: "nearest" });
  $("spoken").textContent = `Rank ${rank + 1} of ${list.children.length}`;
}

list.addEventListener("pointerdown", (event) => {
  const card = event.target.closest(".card");
  if (!card || drag || busy || event.button !== 0 || event.target.closest("button")) return;
  if (event.pointerType !== "mouse" && !event.target.closest(".rank")) return; // elsewhere a finger scrolls
  event.preventDefault();
  card.focus({ preventScroll: true });
  const grab = event.clientY - card.getBoundingClientRect().top;
  drag = { card, grab, pointer: event.pointerId, y: event.clientY, before: cards() };
  list.setPointerCapture(event.pointerId); // the list's: the cards change places under the pointer
  card.classList.add("held");
  requestAnimationFrame(scrollAtEdges);
});

// without this a drag that ends in a flick counts as a fling, and the tap after it is swallowed
list.addEventListener("touchstart", (event) => event.target.closest(".rank") && event.preventDefault(), { passive: false });

list.addEventListener("pointermove", (event) => {
  if (event.pointerId !== drag?.pointer) return;
  drag.y = event.clientY;
  follow();
});

function follow() {
  const { card } = drag;
  const top = drag.y - drag.grab - list.getBoundingClientRect().top; // where the held card's top is, in the list
  const middle = (other) => other.offsetTop + other.offsetHeight / 2;
  let other;
  while ((other = card.previousElementSibling) && top < middle(other)) swap(other, card.nextElementSibling);
  while ((other = card.nextElementSibling) && top + card.offsetHeight > middle(other)) swap(other, card);
  card.style.transform = `translateY(${top - card.offsetTop}px)`;
}

// the others move, not the held card: a node that is moved loses its focus
const swap = (other, before) => glide(() => list.insertBefore(other, before));

function scrollAtEdges() {
  if (!drag) return;
  const bottom = innerHeight - document.querySelector("nav").offsetHeight;
  const by = drag.y < 60 ? -10 : drag.y > bottom - 50 ? 10 : 0;
  if (by) {
    window.scrollBy(0, by);
    follow();
  }
  requestAnimationFrame(scrollAtEdges);
}

function drop(kept) {
  const { card, before } = drag;
  drag = null;
  card.classList.remove("held");
  card.style.transform = "";
  if (!kept) list.append(...before);
  number();
  card.focus({ preventScroll: true });
  $("spoken").textContent = `Rank ${cards().indexOf(card) + 1} of ${list.children.length}`;
}

list.addEventListener("pointerup", (event) => event.pointerId === drag?.pointer && drop(true));
list.addEventListener("pointercancel", (event) => event.pointerId === drag?.pointer && drop(false));

// ------------------------------------------------------------------ saving

function submit() {
  if (!state?.item) return;
  const [item, order] = [state.item.id, arrangement()];
  send("/rank", { item, order, decision: idFor(`rank ${item} ${order} ${state.last}`), seconds: seconds() });
}

once("submit", submit);

document.addEventListener("keydown", (event) => {
  if (ended || !state) return;
  const plain = !event.ctrlKey && !event.metaKey && !event.altKey;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (drag) {
    if (key === "Escape") drop(false);
    return;
  }
  if (key === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey) {
    event.preventDefault();
    return undo();
  }
  if (!plain) return;
  if (event.target.closest("button") && (key === "Enter" || key === " ")) return; // the button's own
  const card = document.activeElement?.closest?.(".card");
  const at = cards().indexOf(card);
  if (key === "Enter" && !event.repeat) submit();
  else if (key === "s" && !event.repeat) skip();
  else if (key === "u" && !event.repeat) undo();
  else if (key === "ArrowUp" || key === "ArrowDown") {
    if (!state.item) return;
    event.preventDefault();
    if (card) move(card, at + (key === "ArrowUp" ? -1 : 1));
    else list.firstElementChild.focus();
  } else if (card && /^[1-9]$/.test(key) && Number(key) <= list.children.length) {
    event.preventDefault();
    move(card, Number(key) - 1);
  }
});
