// A conversation as a tree of rounds (a question and the replies of the checkpoints picked for it), kept in this browser
// alone. Editing a question or replying again begins a round beside the old one: nothing is lost. No elements in here.

import { spoken } from "./chat_stream.js";

const KEPT = "crawl2chat.chat";
const fresh = () => ({ rounds: [], chosen: null, next: 1, picked: [], settings: {} });
export const talk = fresh(); // all that is kept; a round is {id, parent, text, replies, chosen: the id of what follows}

const find = (id) => talk.rounds.find((round) => round.id === id);
export const siblings = (round) => talk.rounds.filter((other) => other.parent === round.parent);

// The rounds that are shown, from the first question on.
export function path() {
  const rounds = [];
  for (let round = find(talk.chosen); round; round = find(round.chosen)) rounds.push(round);
  return rounds;
}

export function choose(round) {
  if (round.parent === null) talk.chosen = round.id;
  else find(round.parent).chosen = round.id;
}

export const newReply = (model) => ({ id: talk.next++, model, messages: [], state: "waiting", error: "" });

export function newRound(parent, text, replies) {
  const round = { id: talk.next++, parent, text, replies, chosen: null };
  talk.rounds.push(round);
  choose(round);
  return round;
}

// A round beside this one, with `made` in the place of `reply` and the other replies as they are.
export function beside(round, reply, made) {
  const replies = round.replies.map((other) => (other === reply ? made : { ...structuredClone(other), id: talk.next++ }));
  return newRound(round.parent, round.text, replies);
}

// The messages up to the round's question as `model` is to read them: its own replies, else those that there are.
export function historyOf(round, model, system) {
  const said = [{ role: "user", content: round.text }];
  for (let at = find(round.parent); at; at = find(at.parent)) {
    const replies = [...at.replies.filter((reply) => reply.model === model), ...at.replies];
    const reply = replies.find((one) => spoken(one.messages).length);
    if (reply) said.unshift({ role: "user", content: at.text }, ...spoken(reply.messages));
  }
  return system.trim() ? [{ role: "system", content: system }, ...said] : said;
}

// False where the browser's storage is full or closed.
export function keep() {
  try {
    if (talk.rounds.length) localStorage.setItem(KEPT, JSON.stringify(talk));
    else localStorage.removeItem(KEPT);
    return true;
  } catch {
    return false;
  }
}

export const forget = () => Object.assign(talk, fresh());

// Throws for what is no conversation.
export function restore() {
  const kept = JSON.parse(localStorage.getItem(KEPT));
  if (kept === null) return;
  for (const { id, parent, chosen, text, replies } of kept.rounds) {
    const isTree = Number.isInteger(id) && (parent === null || parent < id) && (chosen === null || chosen > id);
    const isSaid = typeof text === "string" && replies.every(({ model, messages }) => typeof model === "string" && messages.every((one) => typeof one.content === "string"));
    if (!isTree || !isSaid) throw new Error("damaged");
  }
  if (!Array.isArray(kept.picked) || !Number.isInteger(kept.next)) throw new Error("damaged");
  for (const reply of kept.rounds.flatMap((round) => round.replies)) if (["waiting", "streaming"].includes(reply.state)) reply.state = "stopped";
  Object.assign(talk, kept, { settings: { ...kept.settings } });
}
