// The chat page: who answers and how, asking, showing, and the keys.

import { button, element, enterSends, fit, icon, isOn, paint, textOf } from "./chat_parts.js";
import { followSettings, info, settings, showSettings } from "./chat_settings.js";
import { ask, complete, shown, spoken, useKey } from "./chat_stream.js";
import { beside, choose, forget, historyOf, keep, newReply, newRound, path, restore, siblings, talk } from "./chat_talk.js";
import { tokenView } from "./chat_tokens.js";

const $ = (id) => document.getElementById(id);
const HUES = 5; // checkpoints' colours in chat.css
let running = null; // the AbortController of the replies that are coming
let editing = null; // the round whose question is being edited
let following = true; // the newest words are scrolled to
let lost = ""; // what could not be read from the browser's storage

// ------------------------------------------------------------------ who answers

const messagesTo = (round, model) => historyOf(round, model, settings().system);

function save() {
  if (!keep()) notify("This conversation is too long for the browser to keep: export it before the page is closed.");
}

function showModels() {
  const names = info.models.map((model) => model.id);
  talk.picked = names.filter((name) => talk.picked.includes(name));
  if (!talk.picked.length) talk.picked = names.slice(-1);
  $("models").replaceChildren(
    ...info.models.map((model, at) => {
      const pill = button(`pill hue${at % HUES}`, shown(model.id), () => pick(model.id));
      pill.setAttribute("aria-pressed", talk.picked.includes(model.id));
      pill.title = [model.parameters && `${(model.parameters / 1e6).toFixed(1)} M parameters`, model.context && `${model.context} tokens of context`, model.base && "a base model: it continues documents"].filter(Boolean).join(", ");
      return pill;
    }),
  );
  $("empty-said").hidden = names.length < 2;
}

function pick(name) {
  const picked = info.models.map((model) => model.id).filter((other) => talk.picked.includes(other) !== (other === name));
  if (!picked.length) return notify("One checkpoint at least has to answer.");
  talk.picked = picked;
  info.models.forEach((model, at) => $("models").children[at].setAttribute("aria-pressed", picked.includes(model.id)));
  notify("");
  save();
  render();
}

// ------------------------------------------------------------------ asking

function send(text, parent) {
  if (running || !text.trim()) return false;
  if (!talk.picked.length) return notify("The server has not said which checkpoints there are.", load), false;
  const round = newRound(parent, text.trim(), talk.picked.map(newReply));
  answer(round, round.replies);
  return true;
}

async function answer(round, replies) {
  running = new AbortController();
  editing = null;
  following = true;
  notify("");
  busy(true);
  render();
  save();
  const { temperature, top_p, max_tokens, run_tools } = settings();
  const { signal } = running;
  await Promise.all(
    replies.map(async (reply) => {
      const request = { model: reply.model, messages: messagesTo(round, reply.model), temperature, top_p };
      request.seed = crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
      if (max_tokens) request.max_tokens = max_tokens;
      if (info.tools.length && run_tools) request.run_tools = true;
      await complete(reply, request, signal, () => grown(reply));
      showReply(reply);
      const what = { failed: `failed: ${reply.error}`, stopped: "was stopped." }[reply.state] ?? `says: ${shown(textOf(reply)).slice(0, 600)}`;
      $("spoken").textContent = `${reply.model} ${what}`;
    }),
  );
  running = null;
  busy(false);
  render();
  save();
}

// A round beside this one, with this reply made anew and the others as they are.
function again(round, reply) {
  if (running) return;
  const made = newReply(reply.model);
  if (!reply.messages.length) {
    round.replies = round.replies.map((other) => (other === reply ? made : other)); // there is nothing to keep
    return answer(round, [made]);
  }
  answer(beside(round, reply, made), [made]);
  if (!settings().temperature) notify("At temperature 0 a reply comes out the same each time; raise it in the settings for others.");
}

function busy(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
  $("talk").setAttribute("aria-busy", on);
  for (const { item } of made.values()) for (const one of item.querySelectorAll("[data-idle]")) one.disabled = on;
}

// ------------------------------------------------------------------ showing

function notify(text, action, label = "Try again") {
  const [said, pressed] = $("notice").children;
  said.textContent = shown(text);
  pressed.textContent = label;
  pressed.hidden = !action;
  pressed.onclick = action ?? null;
  $("notice").hidden = !text;
}

function idle(one) {
  one.dataset.idle = "";
  one.disabled = Boolean(running);
  return one;
}

const hue = (model) => `hue${Math.max(0, info.models.findIndex((one) => one.id === model)) % HUES}`;

function copier(text) {
  return icon("copy", "Copy", async (event) => {
    const pressed = event.currentTarget;
    try {
      await navigator.clipboard.writeText(text());
      pressed.classList.add("done");
      $("spoken").textContent = "Copied.";
      setTimeout(() => pressed.classList.remove("done"), 1200);
    } catch {
      notify("The browser does not let this page copy: it does so at localhost and over https.");
    }
  });
}

// A button that opens and closes the token view at the end of `place`.
function tokensButton(place, model, messages, role) {
  const toggle = icon("tokens", "Tokens", () => {
    const open = place.querySelector(".token-view");
    toggle.setAttribute("aria-expanded", !open);
    if (open) return open.remove();
    const close = () => (toggle.click(), toggle.focus());
    place.append(tokenView(info.models.map((one) => one.id), model(), messages(), role, close));
  });
  toggle.classList.add("open-tokens");
  toggle.setAttribute("aria-expanded", false);
  return toggle;
}

function editor(round) {
  const form = element("form", "editor");
  const text = element("textarea");
  text.value = round.text;
  text.setAttribute("aria-label", "Edit your message");
  const submit = element("button", "small strong", "Send");
  form.append(text, button("small", "Cancel", () => edit(null)), idle(submit));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(text.value, round.parent);
  });
  text.addEventListener("keydown", (event) => enterSends(event, form));
  text.addEventListener("input", () => fit(text));
  requestAnimationFrame(() => {
    fit(text);
    text.focus();
  });
  return form;
}

function edit(round) {
  if (running) return;
  editing = round?.id ?? null;
  render();
  if (!round) $("draft").focus();
}

function question(round) {
  const box = element("div", "question");
  if (editing === round.id) {
    box.append(editor(round));
    return box;
  }
  const words = element("div", "said text", shown(round.text));
  words.dir = "auto";
  const foot = element("div", "actions");
  const all = siblings(round), at = all.indexOf(round);
  if (all.length > 1) {
    const [back, on] = [[-1, "back", "The version before"], [1, "on", "The version after"]].map(([step, name, label]) => {
      const turn = idle(icon(name, label, () => (choose(all[at + step]), save(), render())));
      turn.disabled ||= !all[at + step];
      if (!all[at + step]) delete turn.dataset.idle;
      return turn;
    });
    foot.append(back, element("span", "pager", `${at + 1} / ${all.length}`), on);
  }
  const reader = () => round.replies[0]?.model ?? talk.picked[0];
  foot.append(idle(icon("edit", "Edit", () => edit(round))), copier(() => round.text), tokensButton(box, reader, () => messagesTo(round, reader()), "user"));
  box.append(words, foot);
  return box;
}

function replyBox(round, reply) {
  const box = element("article", `reply ${hue(reply.model)}`);
  box.dataset.reply = reply.id;
  box.setAttribute("aria-label", `Reply of ${shown(reply.model)}`);
  const foot = element("div", "actions");
  const messages = () => [...messagesTo(round, reply.model), ...spoken(reply.messages)];
  foot.append(element("small", "meta"), copier(() => textOf(reply)), idle(icon("again", "Reply again", () => again(round, reply))), tokensButton(box, () => reply.model, messages, "assistant"));
  const failed = element("p", "failed");
  failed.setAttribute("role", "alert");
  failed.append(element("span"), idle(button("small", "Try again", () => again(round, reply))));
  box.append(element("h3", "", shown(reply.model)), element("div", "body"), failed, foot);
  showReply(reply, box);
  return box;
}

function showReply(reply, box = document.querySelector(`[data-reply="${Number(reply.id)}"]`)) {
  if (!box) return; // it is on a branch that is not shown
  const [, body, failed, foot] = box.children;
  paint(body, reply);
  failed.hidden = reply.state !== "failed";
  failed.firstChild.textContent = failed.hidden ? "" : shown(reply.error) + " ";
  const parts = [reply.tokens && `${reply.tokens} tokens`, reply.seconds && `${reply.seconds.toFixed(1)} s`];
  const room = info.models.find((model) => model.id === reply.model)?.context;
  if (reply.context > 0.75 * room) parts.push(`${reply.context} of ${room} tokens of context are full`);
  parts.push({ stopped: "stopped" }[reply.state], reply.finish === "length" && "cut at the limit", reply.state === "done" && !reply.messages.length && "nothing said");
  foot.firstChild.textContent = parts.filter(Boolean).join(" · ");
  foot.hidden = isOn(reply) || (reply.state === "failed" && !reply.messages.length);
  if (following) $("scroll").scrollTop = $("scroll").scrollHeight;
}

const waiting = new Set(); // replies to be shown at the next frame

function grown(reply) {
  if (!waiting.size) {
    requestAnimationFrame(() => {
      for (const one of waiting) showReply(one);
      waiting.clear();
    });
  }
  waiting.add(reply);
}

// A round's element is made anew only where the round itself has changed: what is unfolded in the others stays so.
const made = new Map();

function render() {
  const rounds = path(), names = info.models.map((one) => one.id);
  $("empty").hidden = rounds.length > 0;
  $("clear").disabled = $("export").disabled = !rounds.length;
  const items = rounds.map((round) => {
    const missing = round === rounds.at(-1) && !running ? talk.picked.filter((name) => !round.replies.some((reply) => reply.model === name)) : [];
    const look = JSON.stringify([siblings(round).map((one) => one.id), editing === round.id, round.replies.map((reply) => reply.id), missing, names]);
    if (made.get(round.id)?.look === look) return made.get(round.id).item;
    const item = element("li", "round"), columns = element("div", "replies");
    columns.append(...round.replies.map((reply) => replyBox(round, reply)));
    for (const name of missing) {
      const more = button("ask-too", `Ask ${shown(name)} too`, () => {
        if (running) return;
        round.replies.push(newReply(name));
        answer(round, round.replies.slice(-1));
      });
      columns.append(idle(more));
    }
    item.classList.toggle("many", columns.children.length > 1);
    item.append(question(round), columns);
    made.set(round.id, { look, item });
    return item;
  });
  const there = [...$("talk").children];
  if (items.length !== there.length || items.some((item, at) => item !== there[at])) $("talk").replaceChildren(...items);
  if (following) $("scroll").scrollTop = $("scroll").scrollHeight;
}

// ------------------------------------------------------------------ the rest of the page

function download() {
  const last = path().at(-1);
  const files = last.replies.map((reply) => [reply.model, [...messagesTo(last, reply.model), ...spoken(reply.messages)]]);
  const content = files.length === 1 ? files[0][1] : Object.fromEntries(files);
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }));
  link.download = "conversation.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function clear() {
  running?.abort();
  const { rounds, chosen } = talk;
  Object.assign(talk, { rounds: [], chosen: null });
  editing = null;
  made.clear();
  save();
  render();
  const undo = () => {
    Object.assign(talk, { rounds, chosen });
    notify("");
    save();
    render();
  };
  notify("The conversation is cleared, here and in the browser's storage.", undo, "Undo");
  $("draft").focus();
}

$("compose").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!send($("draft").value, path().at(-1)?.id ?? null)) return;
  $("draft").value = "";
  fit($("draft"));
});
$("draft").addEventListener("keydown", (event) => {
  enterSends(event, $("compose"));
  if (event.key !== "ArrowUp" || $("draft").value || !path().length) return;
  event.preventDefault();
  edit(path().at(-1));
});
$("draft").addEventListener("input", () => fit($("draft")));
$("stop").addEventListener("click", () => (running?.abort(), $("draft").focus()));
$("clear").addEventListener("click", clear);
$("export").addEventListener("click", download);
$("open-keys").addEventListener("click", () => $("keys").showModal());
$("open-settings").addEventListener("click", () => openSettings($("settings").hidden));
followSettings(save);
for (const idea of $("ideas").children) idea.addEventListener("click", () => send(idea.lastElementChild.textContent, null));
$("scroll").addEventListener("scroll", () => {
  const { scrollHeight, scrollTop, clientHeight } = $("scroll");
  following = scrollHeight - scrollTop - clientHeight < 60;
  $("latest").hidden = following;
});
$("latest").addEventListener("click", () => $("scroll").scrollTo({ top: $("scroll").scrollHeight, behavior: "smooth" }));
addEventListener("pagehide", () => {
  if (!running) return;
  running.abort();
  save();
});

function openSettings(open) {
  $("settings").hidden = !open;
  $("open-settings").setAttribute("aria-expanded", open);
  (open ? $("system") : $("draft")).focus();
}

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.defaultPrevented || $("keys").open) return;
  if (event.key === "Escape") {
    if (editing !== null) edit(null);
    else if (running) running.abort();
    else if (!$("settings").hidden) openSettings(false);
    else document.querySelector(".token-view .token-top .icon")?.click();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("textarea, input, select")) return;
  const last = $("talk").lastElementChild?.querySelector(".reply");
  if (event.key === "/") $("draft").focus();
  else if (event.key === "?") $("keys").showModal();
  else if (event.key === "r" && last && !event.repeat) send(path().at(-1).text, path().at(-1).parent);
  else if (event.key === "t" && last && !event.repeat) last.querySelector(".open-tokens").click();
  else if (/^[1-9]$/.test(event.key)) $("models").children[event.key - 1]?.click();
  else return;
  event.preventDefault();
});

$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").elements[0].value);
  load();
});

async function load() {
  $("key").hidden = true;
  try {
    Object.assign(info, await (await ask("api/info")).json());
    notify(lost);
  } catch (error) {
    notify(error.message, load);
    $("key").hidden = error.status !== 401;
  }
  showModels();
  showSettings();
  render();
}

try {
  restore();
  render();
} catch {
  forget();
  render();
  lost = "The conversation kept in this browser could not be read; a new one begins.";
}
load();
