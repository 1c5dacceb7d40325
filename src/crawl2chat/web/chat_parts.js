// Elements: a reply's thoughts, words, tool calls and results. Whatever a model wrote is set as text, never as HTML.

import { resultOf, shown } from "./chat_stream.js";

export function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

export function svg(name) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  made.setAttribute("aria-hidden", "true");
  made.append(use);
  return made;
}

export function button(name, text, pressed) {
  const made = element("button", name, text);
  made.type = "button";
  made.addEventListener("click", pressed);
  return made;
}

export function icon(name, label, pressed) {
  const made = button("icon", undefined, pressed);
  made.title = label;
  made.setAttribute("aria-label", label);
  made.append(svg(name));
  return made;
}

// As high as its text.
export function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

export function enterSends(event, form) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!event.repeat) form.requestSubmit();
}

// Set a text that may have grown: what is there already stays, and with it what a person has selected.
function write(node, text) {
  const safe = shown(text), there = node.firstChild;
  if (there && safe.startsWith(there.data)) safe.length > there.data.length && there.appendData(safe.slice(there.data.length));
  else if (safe || there) node.textContent = safe;
}

// The child of `parent` that shows the part `key`, made at its first use.
function part(parent, key, make) {
  let child = [...parent.children].find((one) => one.dataset.key === key);
  if (!child) {
    child = make();
    child.dataset.key = key;
    parent.append(child);
  }
  return child;
}

// What a call says: its one text alone (the code, the query), else all of its arguments.
function argumentsOf(call) {
  try {
    const values = Object.entries(JSON.parse(call.function.arguments));
    if (values.length === 1 && typeof values[0][1] === "string") return values[0][1];
    return values.map(([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`).join("\n");
  } catch {
    return call.function.arguments;
  }
}

function toolCard(name) {
  const card = element("section", "call");
  const top = element("p", "call-top");
  top.append(svg(name === "search" ? "search" : "tool"), element("b"), element("small"));
  card.append(top, element("pre", "given"), element("pre", "result"));
  return card;
}

function paintCall(card, name, given, result, fate) {
  const [top, code, output] = card.children;
  write(top.children[1], name);
  top.lastChild.textContent = result ? "" : fate;
  card.classList.toggle("open", !result && fate === "running …");
  card.setAttribute("aria-label", `Tool call: ${shown(name)}`);
  write(code, given);
  code.hidden = !given;
  output.hidden = !result;
  if (result) write(output, result.content || "(nothing)");
  output.classList.toggle("failed", Boolean(result) && /^error\b/i.test(result.content));
}

const words = (text) => text.split(/\s+/).filter(Boolean).length;

export const isOn = (reply) => reply.state === "waiting" || reply.state === "streaming";

// Show `reply` as it is now in `body`; called again and again while it grows.
export function paint(body, reply) {
  const { messages } = reply, fate = isOn(reply) ? "running …" : "not run";
  messages.forEach((message, at) => {
    if (message.role === "tool") {
      const asked = messages.some((one) => one.tool_calls?.some((call) => call.id === message.tool_call_id));
      if (!asked) paintCall(part(body, `${at} result`, () => toolCard(message.name)), message.name, "", message, fate);
      return;
    }
    if (message.reasoning_content) {
      const thoughts = part(body, `${at} thoughts`, () => {
        const made = element("details", "thoughts");
        made.append(element("summary"), element("div", "text"));
        return made;
      });
      const thinking = isOn(reply) && at === messages.length - 1 && !message.content && !message.tool_calls;
      thoughts.classList.toggle("open", thinking);
      thoughts.firstChild.textContent = thinking ? "Thinking …" : `Thoughts, ${words(message.reasoning_content)} words`;
      write(thoughts.lastChild, message.reasoning_content);
    }
    if (message.content) write(part(body, `${at} text`, () => textBlock()), message.content);
    (message.tool_calls ?? []).forEach((call, i) => {
      const card = part(body, `${at} call ${i}`, () => toolCard(call.function.name));
      paintCall(card, call.function.name || "tool", argumentsOf(call), resultOf(messages, call), fate);
    });
  });
  body.classList.toggle("waiting", isOn(reply) && !messages.length);
  body.classList.toggle("growing", isOn(reply));
}

function textBlock() {
  const made = element("div", "text");
  made.dir = "auto";
  return made;
}

// What a reply says in words, for copying and for a screen reader.
export const textOf = (reply) => reply.messages.filter((message) => message.role === "assistant" && message.content).map((message) => message.content).join("\n\n");
