import { assertEquals } from "@std/assert";
import { test } from "node:test";
import { formNamed } from "../../lib/chat/forms.ts";
import { ChatReader, type ReaderOptions } from "../../lib/chat/reader.ts";
import { Random } from "../support/random.ts";

/** What an answer came to: its text, its reasoning, its calls. */
type Answer = [text: string, reasoning: string, ...calls: [name: string, json: string][]];

const think = { open: "<think>", close: "</think>" };
const tools = ["f", "get_weather", "python"].map((name) => ({ name }));

/** Reads a text in pieces of up to so many characters. */
function read(text: string, options: Partial<ReaderOptions> & { form?: string }, most: () => number): Answer {
  const { form, ...rest } = options;
  const all = { tools, single: false, read: form ? formNamed(form).read : undefined, id: () => "id", ...rest };
  const reader = new ChatReader(all), answer: Answer = ["", ""], calls: [string, string][] = [];
  const take = ({ text, reasoning, calls: deltas }: ReturnType<ChatReader["push"]>): void => {
    answer[0] += text;
    answer[1] += reasoning;
    for (const { index, id, name, arguments: json } of deltas) {
      assertEquals(id === undefined, name === undefined);
      if (name === undefined) assertEquals(index, calls.length - 1);
      else assertEquals(index, calls.push([name, ""]) - 1);
      calls[index][1] += json;
    }
  };
  for (let at = 0; at < text.length && !reader.done;) {
    const next = at + 1 + most();
    take(reader.push(text.slice(at, next)));
    at = next;
  }
  if (!reader.done) take(reader.push("", true));
  return [...answer, ...calls];
}

const cases: [name: string, options: Partial<ReaderOptions> & { form?: string }, text: string, expected: Answer][] = [
  ["text alone", { form: "hermes" }, " Hi <there> \n", [" Hi <there> \n", ""]],
  [
    "hermes: text and two calls",
    { form: "hermes" },
    'Let me see.\n<tool_call>\n{"name": "f", "arguments": {"a": "}\\"</tool_call>", "b": [1, {}]}}\n</tool_call>\n' +
    '<tool_call>{"arguments":{"c":1.5e3},"name":"g"}</tool_call>\n',
    ["Let me see.", "", ["f", '{"a": "}\\"</tool_call>", "b": [1, {}]}'], ["g", '{"c":1.5e3}']],
  ],
  [
    "hermes: arguments as text, none, and without the end",
    { form: "hermes" },
    '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call><tool_call>{"name": "f"}</tool_call>' +
    '<tool_call>{"name":"f","arguments":null}</tool_call><tool_call>\n{"name": "f", "arguments": {"a": "b',
    ["", "", ["f", '{"a": 1}'], ["f", "{}"], ["f", "{}"], ["f", '{"a": "b']],
  ],
  [
    "hermes: what is no call is text",
    { form: "hermes" },
    "<tool_call>not JSON</tool_call> and <tool_call> is a mark",
    ["<tool_call>not JSON</tool_call> and <tool_call> is a mark", ""],
  ],
  [
    "hermes: a call that is cut off before its name",
    { form: "hermes" },
    'Yes.\n<tool_call>\n{"name": "f',
    ["Yes.\n", ""],
  ],
  [
    "llama3: where calls are forced, nothing else is text",
    { form: "llama3", forced: true },
    '{"name": "f", "parameters": {}}; {"nam',
    ["", "", ["f", "{}"]],
  ],
  [
    "hermes: one call only",
    { form: "hermes", single: true },
    '<tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>{"name": "g", "arguments": {}}</tool_call>',
    ["", "", ["f", "{}"]],
  ],
  [
    "reasoning before text and call",
    { form: "hermes", thinking: think },
    '\n<think>\nHm, <tool_call>?\n</think>\n\nYes.\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
    ["Yes.", "Hm, <tool_call>?", ["f", "{}"]],
  ],
  ["reasoning that the prompt began", { thinking: think, thinks: true }, "\na b\n\n</think>\n\nc\n", ["c\n", "a b"]],
  ["reasoning that does not end", { thinking: think }, "<think>a </thin", ["", "a </thin"]],
  ["no reasoning", { thinking: think }, " <b> </think>", [" <b> </think>", ""]],
  [
    "llama3: objects",
    { form: "llama3" },
    '{"name": "f", "parameters": {"a": 1}}; {"type": "function", "name": "get_weather", "parameters": {}}',
    ["", "", ["f", '{"a": 1}'], ["get_weather", "{}"]],
  ],
  ["llama3: JSON that is no call", { form: "llama3" }, '{"name": "Ada", "parameters": 1} x', [
    '{"name": "Ada", "parameters": 1} x',
    "",
  ]],
  ["llama3: JSON of another shape", { form: "llama3" }, ' {"a": {"name": "f"}}', [' {"a": {"name": "f"}}', ""]],
  [
    "llama3: after the tag, an object",
    { form: "llama3" },
    '<|python_tag|>{"name": "f", "parameters": {"q": "x"}}',
    ["", "", ["f", '{"q": "x"}']],
  ],
  [
    "llama3: after the tag, a built-in tool",
    { form: "llama3" },
    'Now.<|python_tag|>brave_search.call(query="a, \\"b\\"", n=2)',
    ["Now.", "", ["brave_search", '{"query":"a, \\"b\\"","n":2}']],
  ],
  ["llama3: after the tag, code", { form: "llama3" }, "<|python_tag|>print(1)\n", ["", "", [
    "python",
    '{"code":"print(1)\\n"}',
  ]]],
  [
    "mistral: a list",
    { form: "mistral" },
    'Yes. [TOOL_CALLS] [{"name": "f", "arguments": {"a": [1]}, "id": "abcdefghi"}, {"name": "g", "arguments": {}}]',
    ["Yes.", "", ["f", '{"a": [1]}'], ["g", "{}"]],
  ],
  [
    "mistral: names and arguments",
    { form: "mistral-args" },
    '[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"a": "[ARGS]"}[TOOL_CALLS]g[ARGS]{}[TOOL_CALLS]get_weather{"b": 2}',
    ["", "", ["f", '{"a": "[ARGS]"}'], ["g", "{}"], ["get_weather", '{"b": 2}']],
  ],
  [
    "functionary 3.1",
    { form: "functionary-3.1" },
    'See <b>.\n<function=f>{"a": "<function=g>"}</function><function=g>{}</function>',
    ["See <b>.", "", ["f", '{"a": "<function=g>"}'], ["g", "{}"]],
  ],
  ["functionary 3.1: code", { form: "functionary-3.1" }, "<|python_tag|>1 + 1", ["", "", [
    "python",
    '{"code":"1 + 1"}',
  ]]],
  [
    "functionary 3.2: text and calls",
    { form: "functionary-3.2" },
    'all\nIn Python, >>> is a prompt.>>>f\n{"a": ">>>f\\n"}>>>get_weather\n{}',
    ["In Python, >>> is a prompt.", "", ["f", '{"a": ">>>f\\n"}'], ["get_weather", "{}"]],
  ],
  ["functionary 3.2: code", { form: "functionary-3.2" }, "python\n1 + 1", ["", "", ["python", '{"code":"1 + 1"}']]],
  [
    "harmony: reasoning, a preamble and a call",
    { form: "harmony" },
    "<|channel|>analysis<|message|>Need f.<|end|><|start|>assistant<|channel|>commentary<|message|>A moment." +
    '<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>',
    ["A moment.", "Need f.", ["f", '{"a": 1}']],
  ],
  [
    "harmony: the recipient before the channel",
    { form: "harmony" },
    " to=functions.f<|channel|>commentary json<|message|>{}",
    ["", "", ["f", "{}"]],
  ],
  [
    "harmony: reasoning twice and the answer",
    { form: "harmony" },
    "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>" +
    "<|start|>assistant<|channel|>final<|message|>Hi <|b|> <|return|>",
    ["Hi <|b|> ", "a\nb"],
  ],
];

for (const [name, options, text, expected] of cases) {
  test(`reader: ${name}`, () => {
    assertEquals(read(text, options, () => text.length), expected, "in one piece");
    assertEquals(read(text, options, () => 0), expected, "character by character");
    const seed = Date.now() % 2 ** 31, random = new Random(seed);
    for (let i = 0; i < 20; i++) {
      assertEquals(read(text, options, () => random.integer(0, 8)), expected, `seed ${seed}`);
    }
  });
}
