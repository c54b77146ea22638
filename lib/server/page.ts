/**
 * The page at `/`: a chat, and what the cache holds while it runs. It needs nothing but this server.
 *
 * @module
 */

const STYLE = `
:root {
  color-scheme: light dark;
  --back: light-dark(#fbfbfa, #16181a); --panel: light-dark(#ffffff, #1f2225); --text: light-dark(#1c1e21, #e7e9ea);
  --faint: light-dark(#5b6168, #a2a9b0); --line: light-dark(#d7dadd, #3a3f44); --mark: light-dark(#0a5f52, #58cbb4);
  --mine: light-dark(#e6f1ef, #20342f); --exact: light-dark(#b4690e, #e0a458); --bf16: light-dark(#8a9097, #767d84);
  --error: light-dark(#a5281b, #f08a7c);
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--back); color: var(--text); height: 100dvh; display: grid;
  grid-template: auto minmax(0, 1fr) / minmax(0, 1fr) 21rem; font: 1rem/1.5 system-ui, sans-serif;
}
header { grid-column: 1 / -1; display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; padding: .6rem 1rem;
  border-bottom: 1px solid var(--line); background: var(--panel); }
h1 { font-size: 1.05rem; margin: 0 auto 0 0; }
h2 { font-size: .95rem; margin: 0 0 .5rem; }
main { display: flex; flex-direction: column; min-height: 0; }
#log { flex: 1; overflow-y: auto; padding: 1rem; display: flex; flex-direction: column; gap: .75rem; }
#log article { max-width: 46rem; white-space: pre-wrap; overflow-wrap: anywhere; padding: .6rem .8rem; border-radius: .5rem;
  border: 1px solid var(--line); background: var(--panel); }
#log article.user { align-self: flex-end; background: var(--mine); }
#log article.error { color: var(--error); border-color: currentColor; }
#log article[aria-busy=true]::after { content: "\\2588"; color: var(--mark); }
#log p { color: var(--faint); margin: 0; max-width: 46rem; }
main form { display: flex; gap: .5rem; padding: .75rem 1rem; border-top: 1px solid var(--line); background: var(--panel); }
textarea { flex: 1; min-width: 0; resize: none; height: 3.4rem; }
textarea, input, select, button { font: inherit; color: inherit; background: var(--back); border: 1px solid var(--bf16);
  border-radius: .4rem; padding: .35rem .6rem; }
button { cursor: pointer; }
button.main { background: var(--mark); border-color: var(--mark); color: var(--panel); font-weight: 600; }
button:disabled { opacity: .5; cursor: default; }
:focus-visible { outline: 2px solid var(--mark); outline-offset: 2px; }
aside { border-left: 1px solid var(--line); padding: 1rem; overflow-y: auto; background: var(--panel); }
dl { display: grid; grid-template-columns: 1fr auto; gap: .15rem .75rem; margin: 0 0 1rem; font-size: .9rem; }
dt { color: var(--faint); } dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.bar { height: .9rem; display: flex; background: var(--back); border: 1px solid var(--line); border-radius: .3rem;
  overflow: hidden; margin: .15rem 0 .5rem; }
.bar span { flex: none; width: 0; }
.pages { background: var(--mark); } .exact { background: var(--exact); } .bf16 { background: var(--bf16); }
.key { display: inline-block; width: .7rem; height: .7rem; border-radius: .15rem; margin-right: .35rem; }
details label { display: grid; grid-template-columns: 1fr 8rem; align-items: center; gap: .5rem; margin: .35rem 0; font-size: .9rem; }
details label input { min-width: 0; width: 100%; }
small { color: var(--faint); display: block; }
@media (max-width: 50rem) {
  body { grid-template: auto minmax(0, 1fr) auto / minmax(0, 1fr); }
  header { flex-wrap: nowrap; padding: .5rem; } header label { min-width: 0; display: flex; align-items: center; gap: .4rem; }
  header select { min-width: 0; flex: 1; width: 100%; } header button { flex: none; }
  aside { border-left: 0; border-top: 1px solid var(--line); max-height: 38dvh; padding: .6rem 1rem; }
}
@media (prefers-reduced-motion: no-preference) { .bar span { transition: width .2s; } }
`;

const BODY = `
<header>
  <h1>VecInfer</h1>
  <label>Cache <select id="model"></select></label>
  <button id="clear" type="button">New chat</button>
</header>
<main>
  <div id="log" role="log" aria-live="polite" aria-label="Chat" tabindex="0"><p id="hint">Loading the model.</p></div>
  <form id="form">
    <textarea id="input" aria-label="Message" placeholder="Message (Enter sends, Shift+Enter is a new line)"></textarea>
    <button id="send" class="main" disabled>Send</button>
  </form>
</main>
<aside aria-label="Cache">
  <h2>Cache in use</h2>
  <small><span class="key pages"></span>this cache: codes, and <span class="key exact"></span>exact rows</small>
  <div class="bar" id="used" role="meter" aria-label="Bytes in use by this cache" aria-valuemin="0"><span class="pages"></span><span class="exact"></span></div>
  <small><span class="key bf16"></span>the same tokens in bf16</small>
  <div class="bar" id="plain" role="meter" aria-label="Bytes that bf16 would use" aria-valuemin="0"><span class="bf16"></span></div>
  <dl id="live"></dl>
  <h2>Configuration</h2>
  <dl id="config"></dl>
  <form id="settings"><details>
    <summary>Settings</summary>
    <label>System message <input id="system" autocomplete="off"></label>
    <label>Temperature <input id="temperature" type="number" min="0" max="2" step="0.1" value="0.7"></label>
    <label>Tokens at most <input id="tokens" type="number" min="1" step="1" value="200"></label>
    <label>API key <input id="key" type="password" autocomplete="off"></label>
  </details></form>
</aside>
`;

const SCRIPT = `
"use strict";
const $ = (id) => document.getElementById(id);
const element = (name, text, kind) => {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
};
const bytes = (n) => {
  const power = n < 1024 ? 0 : Math.min(4, Math.floor(Math.log2(n) / 10));
  return (n / 2 ** (10 * power)).toFixed(power ? 1 : 0) + " " + ["B", "KiB", "MiB", "GiB", "TiB"][power];
};
const headers = () => ({ "content-type": "application/json", ...($("key").value ? { authorization: "Bearer " + $("key").value } : {}) });
let messages = [], running, config, last;

const rows = (list, pairs) => list.replaceChildren(...pairs.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
const shown = () => config?.models.find(({ id }) => id === $("model").value);

function showConfig() {
  const model = shown();
  if (!model) return;
  rows($("config"), [["Device", model.device], ["Keys / values", model.keys + " / " + model.values],
    ["Sinks / window", model.sinks + " / " + model.window], ["Bytes a token", model.bytesPerToken + " (bf16: " + model.bf16BytesPerToken + ")"],
    ["Context", model.context + " tokens"], ["Allocated", bytes(model.cacheBytes)], ["Chat template", config.chatTemplate.split(":")[0]]]);
}

async function load() {
  try {
    const response = await fetch("config", { headers: headers() });
    if (response.status === 401) {
      $("hint").textContent = "This server wants an API key: enter it under Settings.";
      document.querySelector("details").open = true;
      return;
    }
    if (!response.ok) throw new Error((await response.json()).error.message);
    config = await response.json();
    const chosen = $("model").value;
    $("model").replaceChildren(...config.models.map(({ id, kv }) => {
      const option = element("option", kv + " (" + id + ")");
      option.value = id;
      return option;
    }));
    if (config.models.some(({ id }) => id === chosen)) $("model").value = chosen;
    $("send").disabled = false;
    $("hint").textContent = config.chatTemplate.startsWith("plain")
      ? "This model has no chat template: it continues your text." : "Ask something.";
    showConfig();
  } catch (error) {
    $("hint").textContent = "Not ready: " + error.message;
    setTimeout(load, 1000);
  }
}

function meter(id, parts, most) {
  const bar = $(id), sum = parts.reduce((a, b) => a + b, 0);
  parts.forEach((part, i) => bar.children[i].style.width = (most ? 100 * part / most : 0) + "%");
  bar.setAttribute("aria-valuenow", sum);
  bar.setAttribute("aria-valuemax", most);
  bar.setAttribute("aria-valuetext", bytes(sum));
}

async function look() {
  try {
    if (config && !document.hidden) {
      const response = await fetch("stats", { headers: headers() });
      const stats = (await response.json()).models.find(({ id }) => id === $("model").value);
      const now = performance.now(), generated = stats.totals.generatedTokens;
      const rate = last && last.id === stats.id ? (generated - last.generated) / (now - last.now) * 1000 : 0;
      last = { id: stats.id, generated, now };
      const most = Math.max(stats.bytes.pages + stats.bytes.exact, stats.bf16Bytes);
      meter("used", [stats.bytes.pages, stats.bytes.exact], most);
      meter("plain", [stats.bf16Bytes], most);
      rows($("live"), [["Codes", bytes(stats.bytes.pages)], ["Exact rows", bytes(stats.bytes.exact)], ["In bf16", bytes(stats.bf16Bytes)],
        ["Sequences", stats.sequences + " running, " + stats.waiting + " waiting"], ["Prompts kept", String(stats.prefixes)],
        ["Pages", (stats.pages.total - stats.pages.free) + " of " + stats.pages.total], ["Shared pages", String(stats.pages.shared)],
        ["Tokens/s", rate.toFixed(0)]]);
    }
  } catch { /* The server is away; the next look may find it. */ }
}

async function watch() {
  await look();
  setTimeout(watch, running ? 250 : 1000);
}

async function send(text) {
  $("hint")?.remove();
  messages.push({ role: "user", content: text });
  $("log").append(element("article", text, "user"));
  const answer = element("article", "", "assistant");
  answer.setAttribute("aria-busy", "true");
  $("log").append(answer);
  running = new AbortController();
  $("send").textContent = "Stop";
  let said = "", complete = false;
  try {
    const system = $("system").value ? [{ role: "system", content: $("system").value }] : [];
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: headers(),
      signal: running.signal,
      body: JSON.stringify({ model: $("model").value, messages: [...system, ...messages], stream: true,
        temperature: $("temperature").valueAsNumber, max_completion_tokens: $("tokens").valueAsNumber }),
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let held = "";
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const events = (held + part.value).split("\\n\\n");
      held = events.pop();
      if (!said) void look(); // A short answer would be over before the next look.
      for (const event of events) {
        if (!event.startsWith("data: ") || event === "data: [DONE]") continue;
        const data = JSON.parse(event.slice(6));
        if (data.error) throw new Error(data.error.message);
        said += data.choices[0]?.delta.content ?? "";
      }
      const log = $("log"), below = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
      answer.textContent = said;
      if (below) log.scrollTop = log.scrollHeight;
    }
    complete = true;
  } catch (error) {
    if (error.name !== "AbortError") $("log").append(element("article", error.message, "error"));
  } finally {
    answer.removeAttribute("aria-busy");
    if (said) messages.push({ role: "assistant", content: said });
    else {
      messages.pop();
      if (complete) answer.textContent = "(The model ended its answer before the first word.)";
      else answer.remove();
    }
    running = undefined;
    $("send").textContent = "Send";
    $("input").focus();
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return running.abort();
  const text = $("input").value.trim();
  if (!text || !config) return $("input").focus();
  $("input").value = "";
  void send(text);
});
$("input").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) $("form").requestSubmit();
});
$("clear").addEventListener("click", () => {
  running?.abort();
  messages = [];
  $("log").replaceChildren();
  $("input").focus();
});
$("model").addEventListener("change", showConfig);
$("key").addEventListener("change", load);
$("settings").addEventListener("submit", (event) => event.preventDefault());
void load();
void watch();
`;

/** HTML, complete in itself. */
export const PAGE: string = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>VecInfer</title>
<link rel="icon" href="data:,">
<style>${STYLE}</style>
<body>${BODY}<script>${SCRIPT}</script></body>
</html>
`;
