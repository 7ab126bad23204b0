"use strict";

const at = (id) => document.getElementById(id);
let turns = [];
let chats = true;
let asking = null;

function show(title, text) {
  const turn = document.createElement("div");
  turn.className = "turn";
  const head = document.createElement("h2");
  const body = document.createElement("p");
  head.textContent = title;
  body.textContent = text;
  turn.append(head, body);
  at("log").append(turn);
  turn.scrollIntoView({ block: "nearest" });
  return body;
}

async function reason(answer) {
  const said = await answer.json().catch(() => null);
  return said?.error?.message ?? `The server answers with status ${answer.status}.`;
}

async function* events(answer) {
  const decoder = new TextDecoder();
  let rest = "";
  for (const reader = answer.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.slice("data: ".length);
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function body(text) {
  const settings = { max_tokens: at("most").valueAsNumber, stream: true, stream_options: { include_usage: true } };
  if (at("temperature").value !== "") settings.temperature = at("temperature").valueAsNumber;
  return chats ? { ...settings, messages: turns } : { ...settings, prompt: text };
}

async function ask(text) {
  at("error").textContent = "";
  show(chats ? "You" : "Prompt", text);
  const own = turns;  // "Clear" begins another conversation
  own.push({ role: "user", content: text });
  const place = show(at("name").textContent, "");
  at("log").setAttribute("aria-busy", "true");
  asking = new AbortController();
  at("send").disabled = true;
  at("stop").disabled = false;
  at("status").textContent = "Answering …";
  const since = performance.now();
  let said = "", count = null;
  try {
    const answer = await fetch(chats ? "v1/chat/completions" : "v1/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body(text)),
      signal: asking.signal,
    });
    if (!answer.ok) throw new Error(await reason(answer));
    for await (const event of events(answer)) {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) count = event.usage.completion_tokens;
      const choice = event.choices[0];
      said += choice?.delta?.content ?? choice?.text ?? "";
      place.textContent = said;
    }
  } catch (error) {
    if (error.name !== "AbortError") at("error").textContent = error.message;
  }
  const seconds = (performance.now() - since) / 1000;
  at("status").textContent = count === null ? "" : `${count} tokens in ${seconds.toFixed(1)} s.`;
  if (said) own.push({ role: "assistant", content: said });
  else { own.pop(); place.parentElement.remove(); }
  at("log").removeAttribute("aria-busy");
  asking = null;
  at("send").disabled = false;
  at("stop").disabled = true;
  at("text").focus();
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("text").value;
  if (asking || !text.trim()) return;
  at("text").value = "";
  ask(text);
});
at("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("ask").requestSubmit();
});
at("stop").addEventListener("click", () => asking?.abort());
at("clear").addEventListener("click", () => {
  asking?.abort();
  turns = [];
  at("log").replaceChildren();
  at("error").textContent = at("status").textContent = "";
  at("text").focus();
});

fetch("v1/models").then((answer) => answer.json()).then(({ data: [model] }) => {
  chats = model.chat;
  at("name").textContent = document.title = model.id;
  at("about").textContent = chats
    ? "Answers come from this machine; nothing leaves it."
    : "This model has no chat template: it goes on from what you write.";
  if (!chats) at("text-label").textContent = "Prompt";
}).catch(() => { at("error").textContent = "The server does not answer."; });
