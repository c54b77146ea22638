import { assert, assertEquals, assertThrows } from "@std/assert";
import { fileURLToPath } from "node:url";
import { test } from "node:test";
import { EMBEDDED_MODEL, Tokenizer } from "../../mod.ts";
import { Grammar } from "../../lib/grammar/grammar.ts";
import { json } from "../../lib/grammar/json_schema.ts";
import { choice, control, literal, repeat, type Rule, sequence, until, without } from "../../lib/grammar/rule.ts";

const tokenizer = Tokenizer.open(fileURLToPath(EMBEDDED_MODEL)), size = 6144, end = 1;

/** Whether a text, cut into tokens, passes and may end. */
function accepts(rule: Rule, text: string): boolean {
  const state = new Grammar(rule, tokenizer.vocabulary, { size, ends: [end] }).start();
  for (const id of tokenizer.encode(text, { addSpecialTokens: false })) {
    if (state.bias(null)[id] !== 0) return false;
    state.push(id);
  }
  return state.complete && state.bias(null)[end] === 0;
}

const city = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tool = (name: string, schema: Record<string, unknown>) =>
  sequence(
    literal(`<tool_call>\n{"name": ${JSON.stringify(name)}, "arguments": `),
    json(schema),
    literal("}\n</tool_call>"),
  );
const tools = choice(tool("weather", city), tool("time", { type: "object", additionalProperties: false }));

for (
  const [name, rule, yes, no] of [
    ["a call of one of two tools", tools, [
      '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>',
      '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>',
    ], [
      '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>',
      '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>',
      "hello",
    ]],
    [
      "several calls",
      sequence(tools, repeat(sequence(literal("\n"), tools), 0, 1)),
      [
        '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>',
      ],
      ['<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>\n'],
    ],
    ["text until a trigger", sequence(until("<call>", "<cat>"), literal("!")), [
      "<call>!",
      "a <c <cal<call>!",
      "<ca<cat>!",
      "déjà <ca<ca<call>!",
    ], ["<call>", "<call>a", "text", "<call><call>!"]],
    ["text without a trigger", without("<call>"), ["", "a < b <cal", "<cal"], ["<call>", "a<call>b", "<c<call>"]],
    ["free text, or a call", choice(without("<tool_call>"), sequence(until("<tool_call>"), literal("x"))), [
      "hello",
      "hello <tool_call>x",
      "<tool_call>x",
    ], ["hello <tool_call>", "<tool_call>y"]],
    ["a control token that the vocabulary has as text", sequence(control("[CALLS]"), literal("{}")), ["[CALLS]{}"], [
      "{}",
    ]],
  ] as [string, Rule, string[], string[]][]
) {
  test(`rules, ${name}: what they allow passes, and nothing else`, () => {
    for (const text of yes) assert(accepts(rule, text), `${text} is refused`);
    for (const text of no) assert(!accepts(rule, text), `${text} is let through`);
  });
}

test("a control token comes only where it is asked for, and as itself", () => {
  const name = tokenizer.vocabulary.token(end)!;
  assert(tokenizer.vocabulary.isSpecial(end));
  const state = new Grammar(sequence(literal("x"), control(name), literal("y")), tokenizer.vocabulary, {
    size,
    ends: [0],
  }).start();
  const allowed = () => [...state.bias(null).entries()].filter(([, bias]) => bias === 0).map(([id]) => id);
  const [x] = tokenizer.encode("x", { addSpecialTokens: false }),
    [y] = tokenizer.encode("y", { addSpecialTokens: false });
  assertEquals(allowed(), [x]);
  state.push(x);
  assertEquals(allowed(), [end]);
  state.push(end);
  assertEquals(allowed(), [y]);
  state.push(y);
  assert(state.complete);
});

test("a trigger has characters, and text until nothing is refused", () => {
  assertThrows(() => until(), RangeError, "something to end it");
  assertThrows(() => until(""), RangeError, "empty");
});
