// What the server offers and what was set in its place: the system message, how tokens are drawn, and the tools.

import { talk } from "./chat_talk.js";

const $ = (id) => document.getElementById(id);
export const info = { models: [], tools: [], defaults: {} }; // what GET /api/info said

export function settings() {
  const { system, temperature = 0, top_p = 1, max_tokens = null } = info.defaults;
  return { system: system ?? "", temperature, top_p, max_tokens, run_tools: true, ...talk.settings };
}

export function showSettings() {
  const now = settings();
  for (const name of ["temperature", "top_p"]) {
    $(name).value = now[name];
    $(`${name}-said`).textContent = Number(now[name]).toFixed(2);
  }
  if (document.activeElement !== $("system")) $("system").value = now.system;
  if (document.activeElement !== $("max_tokens")) $("max_tokens").value = now.max_tokens ?? "";
  $("run_tools").checked = now.run_tools;
  $("tools-label").hidden = !info.tools.length;
  $("tools-said").textContent = info.tools.join(", ");
}

// Take over what is set on the page; `save` keeps it.
export function followSettings(save) {
  const set = (name, value) => {
    talk.settings[name] = value;
    showSettings();
    save();
  };
  $("settings").addEventListener("submit", (event) => event.preventDefault());
  $("system").addEventListener("input", () => set("system", $("system").value));
  for (const name of ["temperature", "top_p"]) $(name).addEventListener("input", () => set(name, Number($(name).value)));
  $("max_tokens").addEventListener("input", () => set("max_tokens", Math.max(0, Math.floor(Number($("max_tokens").value))) || null));
  $("run_tools").addEventListener("change", () => set("run_tools", $("run_tools").checked));
}
