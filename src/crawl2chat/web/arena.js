// The page on which a person says which of two replies is better. Whatever a model wrote is set by textContent.
"use strict";

const DONE = "judged";
const BUTTONS = { left: "left", right: "right", tie: "tie", "both-bad": "both bad" };
const KEYS = { ArrowLeft: "left", ArrowRight: "right", t: "tie", b: "both bad" };
const sides = [...document.querySelectorAll(".side")];

function show() {
  showCounts();
  $("work").hidden = !state.item;
  $("end").hidden = Boolean(state.item);
  $("prompt").replaceChildren();
  for (const id of Object.keys(BUTTONS)) $(id).classList.toggle("before", state.item?.start === BUTTONS[id]);
  if (!state.item) return showEnd();
  $("stop").textContent = "End";
  $("prompt").append(...state.item.prompt.map(turnOf));
  sides.forEach((side, i) => {
    const text = state.item.replies[i], empty = !text.trim();
    side.firstElementChild.textContent = empty ? "(nothing)" : text;
    side.firstElementChild.className = empty ? "text empty" : "text";
    side.firstElementChild.scrollTop = 0;
  });
  since = performance.now();
  window.scrollTo(0, 0);
}

function judge(verdict) {
  if (!state?.item) return;
  const item = state.item.id;
  send("/judge", { item, verdict, decision: idFor(`judge ${item} ${verdict} ${state.last}`), seconds: seconds() });
}

for (const [id, verdict] of Object.entries(BUTTONS)) once(id, () => judge(verdict));

document.addEventListener("keydown", (event) => {
  if (ended || !state || event.repeat) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey) {
    event.preventDefault();
    return undo();
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  if (key === "s") skip();
  else if (key === "u") undo();
  else if (key in KEYS) {
    event.preventDefault();
    judge(KEYS[key]);
  }
});
