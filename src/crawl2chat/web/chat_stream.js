// What the server says: a reply as it streams in, and texts made fit to be shown. No elements in here.

// Controls (terminal colours among them) and marks that turn the direction of text are shown as signs.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;
const sign = (c) => (c < " " ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : `⟨U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);

export const wellFormed = (text) => text.replace(/\p{Surrogate}/gu, "\ufffd"); // half a pair is no character
export const shown = (text) => wellFormed(text).replace(/\r\n/g, "\n").replace(HIDDEN, sign);

let key = ""; // kept nowhere: a page that is opened anew asks for it again
export const useKey = (given) => (key = given);

export async function ask(path, body, signal) {
  const headers = { ...(body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) };
  const text = JSON.stringify(body, (_, value) => (typeof value === "string" ? wellFormed(value) : value));
  const post = body && { method: "POST", body: text };
  let answer;
  try {
    answer = await fetch(path, { ...post, headers, signal });
  } catch (error) {
    throw signal?.aborted ? error : new Error("The server does not answer. Is its command still running?");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => null);
  let message = typeof said?.error?.message === "string" ? said.error.message : `The server answered with status ${answer.status}.`;
  if (said?.error?.code === "context_length_exceeded") message += ". Begin a new conversation, or edit an earlier message.";
  throw Object.assign(new Error(message), { status: answer.status });
}

// Server-sent events; true once the server said that it is done.
async function read(answer, each) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) return false;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") {
        reader.cancel();
        return true;
      }
      each(JSON.parse(data));
    }
  }
}

// One chunk into the reply's messages: assistant {content, reasoning_content?, tool_calls?} and tool {content}.
function take(reply, chunk) {
  if (chunk.error) throw Object.assign(new Error(String(chunk.error.message ?? "The server failed.")), { said: true });
  reply.tokens = chunk.usage?.completion_tokens ?? reply.tokens;
  reply.context = chunk.usage?.total_tokens ?? reply.context;
  const { delta = {}, finish_reason } = chunk.choices?.[0] ?? {};
  if (finish_reason) reply.finish = finish_reason;
  const { messages } = reply;
  if (delta.role === "tool") {
    const open = messages.flatMap((message) => message.tool_calls ?? []).find((call) => !resultOf(messages, call));
    const tool_call_id = delta.tool_call_id ?? open?.id ?? `call_${messages.length}`;
    messages.push({ role: "tool", tool_call_id, name: String(delta.name ?? open?.function.name ?? "tool"), content: String(delta.content ?? "") });
    return;
  }
  if (!delta.content && !delta.reasoning_content && !delta.tool_calls?.length) return;
  if (messages.at(-1)?.role !== "assistant") messages.push({ role: "assistant", content: "" });
  const message = messages.at(-1);
  if (delta.reasoning_content) message.reasoning_content = (message.reasoning_content ?? "") + delta.reasoning_content;
  if (delta.content) message.content += delta.content;
  for (const part of delta.tool_calls ?? []) {
    const calls = (message.tool_calls ??= []);
    let call = part.index === undefined ? undefined : calls.find((one) => one.index === part.index);
    if (!call || (part.id && part.id !== call.id)) {
      const id = part.id ?? `call_${messages.length}_${calls.length}`;
      calls.push((call = { index: part.index, id, type: "function", function: { name: "", arguments: "" } }));
    }
    const { name = "", arguments: given = "" } = part.function ?? {};
    call.function.name += name;
    call.function.arguments += typeof given === "string" ? given : JSON.stringify(given);
  }
}

export const resultOf = (messages, call) => messages.find((message) => message.role === "tool" && message.tool_call_id === call.id);

// Fill `reply` {messages, state, error} from the server; it keeps what came, whatever happens. Never throws.
export async function complete(reply, request, signal, changed) {
  const begun = performance.now();
  Object.assign(reply, { messages: [], state: "waiting", error: "", finish: "" });
  changed();
  try {
    const answer = await ask("v1/chat/completions", { ...request, stream: true, stream_options: { include_usage: true } }, signal);
    reply.state = "streaming";
    const broken = new Error("The connection broke off before the reply was finished.");
    const done = await read(answer, (chunk) => {
      take(reply, chunk);
      changed();
    }).catch((error) => Promise.reject(error.said ? error : broken));
    if (!done && !reply.finish) throw broken;
    reply.state = "done";
  } catch (error) {
    Object.assign(reply, signal.aborted ? { state: "stopped" } : { state: "failed", error: error.message });
  }
  reply.seconds = (performance.now() - begun) / 1000;
  changed();
}

// Whether a call can be sent back: it was answered, and it is one of a name with an object of arguments.
function whole(messages, call) {
  try {
    const given = JSON.parse(call.function.arguments);
    return resultOf(messages, call) && /^[\w.-]{1,64}$/.test(call.function.name) && given !== null && typeof given === "object" && !Array.isArray(given);
  } catch {
    return false;
  }
}

// A reply's messages as a request or a file has them: without calls that are not whole, and turns left empty by that.
export function spoken(messages) {
  const calls = messages.flatMap((message) => message.tool_calls ?? []).filter((call) => whole(messages, call));
  const said = messages.map((message) => {
    const { tool_calls = [], ...rest } = message;
    const kept = tool_calls.filter((call) => calls.includes(call)).map(({ index, ...call }) => call);
    return kept.length ? { ...rest, tool_calls: kept } : rest;
  });
  const isKept = ({ role, content, reasoning_content, tool_calls, tool_call_id }) =>
    role === "tool" ? calls.some((call) => call.id === tool_call_id) : content || reasoning_content || tool_calls;
  return said.filter(isKept);
}
