/** What a form's grammar lets through, its reading takes apart again: calls are valid whatever the model draws. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { Chat, type ChatOptions } from "../../lib/chat/chat.ts";
import { TOOL_FORMS } from "../../lib/chat/forms.ts";
import { SchemaError } from "../../lib/grammar/json_schema.ts";
import { Grammar } from "../../lib/grammar/grammar.ts";
import type { Rule } from "../../lib/grammar/rule.ts";
import { Tokenizer } from "../../lib/tokenizer/tokenizer.ts";
import { Random } from "../support/random.ts";
import { writeByteLevel } from "../tokenizer/fixture.ts";
import { withFolder } from "../weights/fixture.ts";

const seed = Date.now() % 2 ** 31, random = new Random(seed);
const END = 257;

const tools = [
  {
    name: "paint",
    strict: true,
    parameters: {
      type: "object",
      properties: { colour: { enum: ["red", "<|end|>"] }, size: { type: "integer", minimum: 1, maximum: 9 } },
      required: ["colour", "size"],
      additionalProperties: false,
    },
  },
  { name: "stop.it", strict: true, parameters: { type: "object", properties: {}, additionalProperties: false } },
];

/** A tokenizer of bytes with these control tokens, and a chat over it. */
async function withChat(
  form: string,
  template: string,
  call: (tokenizer: Tokenizer, chat: Chat) => void,
): Promise<void> {
  await withFolder((folder) => {
    const controls = TOOL_FORMS.find(({ name }) => name === form)!.controls;
    const added = ["<s>", "</s>", ...controls, "<think>", "</think>"].map((content, i) => ({
      id: 256 + i,
      content,
      special: true,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
    }));
    writeByteLevel(folder, { added_tokens: added });
    writeFileSync(join(folder, "tokenizer_config.json"), JSON.stringify({ chat_template: template }));
    const tokenizer = Tokenizer.open(folder);
    call(tokenizer, new Chat(tokenizer, false, form));
  });
}

/** A text that a rule lets through, drawn token by token; `likely` ends it where it may. */
function drawn(rule: Rule, tokenizer: Tokenizer): number[] {
  const size = tokenizer.vocabularySize, state = new Grammar(rule, tokenizer.vocabulary, { size, ends: [END] }).start();
  const ids: number[] = [];
  for (;;) {
    const bias = state.bias(null), allowed = [...bias.keys()].filter((id) => bias[id] === 0);
    assert(
      allowed.length > 0 && ids.length < 5000,
      `seed ${seed}: ${tokenizer.decode(ids, { skipSpecialTokens: false })}`,
    );
    const ends = allowed.includes(END);
    if (ends && (allowed.length === 1 || random.uniform() < 0.3 || ids.length > 300)) break;
    const others = allowed.filter((id) => id !== END), marks = others.filter((id) => id > END);
    // Free text would hide the marks among all bytes.
    const from = marks.length > 0 && others.length > 100 && random.uniform() < 0.2 ? marks : others;
    const id = from[random.integer(0, from.length - 1)];
    ids.push(id);
    state.push(id);
  }
  return ids;
}

/** Whether a rule lets a text through. */
function accepts(rule: Rule, text: string | number[], tokenizer: Tokenizer): boolean {
  const size = tokenizer.vocabularySize, state = new Grammar(rule, tokenizer.vocabulary, { size, ends: [END] }).start();
  for (const id of typeof text === "string" ? tokenizer.encode(text, { addSpecialTokens: false }) : text) {
    if (state.bias(null)[id] !== 0) return false;
    state.push(id);
  }
  return state.complete;
}

/** The calls of an answer, and its text. */
function read(chat: Chat, options: ChatOptions, text: string): { text: string; calls: [name: string, json: string][] } {
  const { text: content, calls: deltas } = chat.reader(options, false)!.push(text, true),
    calls: [string, string][] = [];
  for (const { index, name, arguments: json } of deltas) {
    if (name !== undefined) calls[index] = [name, ""];
    calls[index][1] += json;
  }
  return { text: content, calls };
}

function check([name, json]: [string, string], what: string): void {
  const value = JSON.parse(json);
  if (name === "stop.it") return assertEquals(value, {}, what);
  assertEquals(name, "paint", what);
  assert(["red", "<|end|>"].includes(value.colour) && value.size >= 1 && value.size <= 9, what);
  assertEquals(Object.keys(value).length, 2, what);
}

for (const { name: form } of TOOL_FORMS) {
  test(`rules of ${form}: calls that are asked for are valid, as many as are asked for`, async () => {
    await withChat(form, "{{ messages[0].content }}", (tokenizer, chat) => {
      for (let i = 0; i < 20; i++) {
        const toolChoice = i % 3 === 0 ? { name: "paint" } : "required", parallelToolCalls = i % 2 === 0;
        const options = { tools, toolChoice, parallelToolCalls } as const;
        const ids = drawn(chat.rule(options, false), tokenizer);
        const text = tokenizer.decode(ids, { visible: chat.visible }), what = `seed ${seed}: ${text}`;
        const answer = read(chat, options, text);
        assertEquals(answer.text, "", what);
        assert(answer.calls.length > 0, what);
        if (i % 3 === 0 || !parallelToolCalls) assertEquals(answer.calls.length, 1, what);
        if (i % 3 === 0) assertEquals(answer.calls[0][0], "paint", what);
        answer.calls.forEach((call) => check(call, what));
      }
    });
  });

  test(`rules of ${form}: where text may come as well, a strict tool is called by its schema or not at all`, async () => {
    await withChat(form, "{{ messages[0].content }}", (tokenizer, chat) => {
      const free = chat.rule({ tools }, false);
      for (let i = 0; i < 10; i++) {
        const ids = drawn(chat.rule({ tools, toolChoice: "required" }, false), tokenizer);
        const text = tokenizer.decode(ids, { skipSpecialTokens: false });
        assert(accepts(free, ids, tokenizer), `seed ${seed}: ${text}`);
        const wrong = text.replaceAll(/"size":( ?)\d/g, '"size":$10');
        if (wrong !== text) assert(!accepts(free, wrong, tokenizer), `seed ${seed}: ${wrong}`);
      }
      const other = chat.form.write("other", "{}"), part = form === "functionary-3.2" ? other.slice(3) : other;
      assert(!accepts(free, part, tokenizer), other);
      const said = form === "functionary-3.2"
        ? "all\nHi {}."
        : form === "harmony"
        ? "<|channel|>final<|message|>Hi {}."
        : "Hi {}.";
      assert(accepts(free, said, tokenizer), said);
    });
  });
}

test("rules: reasoning comes before a call and before JSON, also where the prompt began it", async () => {
  await withChat("hermes", "{{ messages[0].content }}{# </think> #}", (tokenizer, chat) => {
    const options = { tools, toolChoice: "required" } as const, seen = new Set<boolean>();
    for (let i = 0; i < 20; i++) {
      const thinks = i % 2 === 0, ids = drawn(chat.rule(options, thinks), tokenizer);
      const text = tokenizer.decode(ids, { visible: chat.visible });
      if (thinks) assert(text.includes("</think>"), text);
      seen.add(text.includes("<think>"));
      const { calls, reasoning } = chat.reader(options, thinks)!.push(text, true);
      assert(calls.length > 0, text);
      assert(!reasoning.includes("</think>"), text);
    }
    assertEquals(seen.has(false), true);
  });
});

test("rules: schemas that together take too long are refused, a neighbour waits no longer than a moment", async () => {
  await withChat("hermes", "{{ messages[0].content }}", (_, chat) => {
    const heavy = Array.from({ length: 128 }, (_, i) => ({
      name: `f${i}`,
      parameters: { type: "object", properties: { a: { type: "string", pattern: "^[ab]*a[ab]{10}$" } } },
    }));
    const started = performance.now();
    assertThrows(() => chat.rule({ tools: heavy, toolChoice: "required" }, false), SchemaError, "all tools together");
    assert(performance.now() - started < 2000);
  });
});
