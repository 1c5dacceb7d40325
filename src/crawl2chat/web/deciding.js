// What the pages on which a person decides have in common: asking the server, saving once, taking back, ending. A page
// has the ids used here, a script of its own with DONE (the state's name for what is decided) and show(), and gives the
// buttons that decide the class `decides`. Whatever a model wrote is set by textContent, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
let state = null; // what the server said last
let attempt = { key: "", id: "" }; // a submission that is sent again keeps its id
let busy = false, ended = false, since = 0;
let drag = null; // what the pointer holds, on a page where it can hold something

function element(tag, name, text) {
  const made = document.createElement(tag);
  made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

function idFor(key) {
  if (attempt.key !== key) {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    attempt = { key, id: [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("") };
  }
  return attempt.id;
}

function notify(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function turnOf(message) {
  const role = ["user", "assistant", "system", "tool"].includes(message.role) ? message.role : "other";
  const turn = element("div", `turn ${role}`);
  if (role !== "user") turn.append(element("small", "", String(message.role)));
  const { content } = message;
  turn.append(document.createTextNode(typeof content === "string" ? content : JSON.stringify(content ?? "")));
  if (message.tool_calls) turn.append(element("small", "", JSON.stringify(message.tool_calls)));
  return turn;
}

function showCounts() {
  const done = state[DONE] + state.skipped;
  $("progress").max = state.total;
  $("progress").value = done;
  $("counts").textContent = `${done} of ${state.total}` + (state.skipped ? `, ${state.skipped} skipped` : "");
  $("labeler").textContent = state.labeler;
  $("undo").disabled = busy || !state.last;
  for (const button of document.querySelectorAll("nav .decides")) {
    button.disabled = busy || !state.item;
    button.hidden = !state.item;
  }
}

function showEnd() {
  $("agreement").replaceChildren(...state.agreement.map((line) => element("li", "", line)));
  $("stop").textContent = "Finish";
}

// ------------------------------------------------------------------ saving

async function ask(path, body) {
  const post = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, post);
  const value = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(value.error), { status: answer.status });
  return value;
}

async function send(path, body) {
  if (busy || ended || drag || !state) return;
  busy = true;
  showCounts();
  let fresh = null, said = "";
  try {
    fresh = await ask(path, body);
  } catch (error) {
    said = error.status ? `Not saved: ${error.message}.` : "Not saved: the server does not answer; start its command again, with --port " + location.port + " for this page to go on. What was submitted before is saved.";
    if (error.status === 409 || error.status === 404) fresh = await ask("/state").catch(() => null);
  }
  busy = false;
  notify(said);
  if (fresh?.ended) return goodbye();
  if (!fresh) return showCounts();
  const same = said && fresh.item && fresh.item.id === state.item?.id;
  state = fresh;
  same ? showCounts() : show();
}

const seconds = () => Math.round((performance.now() - since) / 100) / 10;

function skip() {
  if (!state?.item) return;
  const item = state.item.id;
  send("/skip", { item, decision: idFor(`skip ${item} ${state.last}`), seconds: seconds() });
}

function undo() {
  if (state?.last) send("/undo", { retracts: state.last, decision: idFor(`undo ${state.last}`) });
}

function goodbye() {
  ended = true;
  $("work").hidden = $("end").hidden = document.querySelector("nav").hidden = true;
  notify(`Saved: ${state[DONE]} ${DONE}, ${state.skipped} skipped of ${state.total}. This page may be closed.`);
}

// the second half of a double click would decide the next prompt unseen
const once = (id, decide) => $(id).addEventListener("click", (event) => event.detail < 2 && decide());
once("skip", skip);
$("undo").addEventListener("click", undo);
$("stop").addEventListener("click", () => send("/end", {}));

// another tab may have decided meanwhile
document.addEventListener("visibilitychange", async () => {
  if (document.hidden || busy || ended || drag || !state) return;
  const fresh = await ask("/state").catch(() => null);
  if (!fresh || busy || drag) return;
  const same = fresh.item?.id === state.item?.id && Boolean(fresh.item) === Boolean(state.item);
  state = fresh;
  same ? showCounts() : show();
});

// when the page's own script has been read, too
document.addEventListener("DOMContentLoaded", () =>
  ask("/state").then(
    (fresh) => {
      state = fresh;
      show();
    },
    (error) => notify(`The server does not answer: ${error.message}.`),
  ),
);
