import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { Chat } from "../../lib/chat/chat.ts";
import { formNamed } from "../../lib/chat/forms.ts";
import { type ChatMessage, Tokenizer, TokenizerError } from "../../lib/tokenizer/tokenizer.ts";
import { writeByteLevel } from "../tokenizer/fixture.ts";
import { withFolder } from "../weights/fixture.ts";

/** A chat over a model with this template. */
function withTemplate(
  template: string | undefined,
  call: (chat: Chat, render: Render) => void,
  form?: string,
): Promise<void> {
  return withFolder((folder) => {
    writeByteLevel(folder);
    if (template !== undefined) {
      writeFileSync(join(folder, "tokenizer_config.json"), JSON.stringify({ chat_template: template }));
    }
    const tokenizer = Tokenizer.open(folder), chat = new Chat(tokenizer, template === undefined, form);
    call(chat, (messages, options) => {
      const prepared = chat.prepare(messages, options);
      return tokenizer.applyChatTemplate(prepared.messages, prepared.options);
    });
  });
}

type Render = (messages: readonly ChatMessage[], options?: Parameters<Chat["prepare"]>[1]) => string;

const tools = [{
  name: "f",
  description: "does f",
  parameters: { type: "object", properties: { a: { type: "string" } } },
}];
const call = (id: string, a: string, name = "f") => ({
  id,
  type: "function",
  function: { name, arguments: JSON.stringify({ a }) },
});
const history: ChatMessage[] = [
  { role: "system", content: "S" },
  { role: "user", content: "Q" },
  { role: "assistant", content: null, tool_calls: [call("call_1", "x"), call("call_2", "y")] },
  { role: "tool", tool_call_id: "call_1", content: "1" },
  { role: "tool", tool_call_id: "call_2", content: [{ type: "text", text: "2" }] },
  { role: "assistant", content: "A", tool_calls: [] },
];

const each = (inner: string) =>
  `{% for m in messages %}[{{ m.role }}]${inner}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}`;
const listed =
  "{% if tools %}{% for t in tools %}<{{ t.function.name }} {{ t.function.description }}>{% endfor %}{% endif %}";
const marks = "{# <tool_call> #}";

test("chat: a template that prints arguments as JSON gets objects, one that joins them as text gets text", async () => {
  const calls = "{% if m.tool_calls %}{% for c in m.tool_calls %}";
  const objects = `${marks}${listed}${
    each(`{{ m.content }}${calls}{{ c.function.name }}:{{ c.function.arguments | tojson }};{% endfor %}{% endif %}`)
  }`;
  const texts = `${marks}${listed}${
    each(`{{ m.content }}${calls}{{ c.function.name + ":" + c.function.arguments }};{% endfor %}{% endif %}`)
  }`;
  await withTemplate(objects, (chat, render) => {
    assertEquals([chat.form.name, chat.toolPrompt], ["hermes", "model"]);
    assertEquals(
      render(history, { tools }),
      '<f does f>[system]S[user]Q[assistant]f:{"a": "x"};f:{"a": "y"};[tool]1[tool]2[assistant]A[assistant]',
    );
  });
  await withTemplate(texts, (chat, render) => {
    assertEquals(chat.toolPrompt, "model");
    assertEquals(
      render(history, { tools }),
      '<f does f>[system]S[user]Q[assistant]f:{"a":"x"};f:{"a":"y"};[tool]1[tool]2[assistant]A[assistant]',
    );
  });
});

test("chat: a template with one call a message gets a message for each call, its result behind it", async () => {
  const one = "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one') }}{% endif %}" +
    "{{ m.tool_calls[0].function.arguments | tojson }}{% endif %}";
  await withTemplate(`${marks}${listed}${each(`{{ m.content }}${one}`)}`, (_, render) => {
    assertEquals(
      render(history, { tools }),
      '<f does f>[system]S[user]Q[assistant]{"a": "x"}[tool]1[assistant]{"a": "y"}[tool]2[assistant]A[assistant]',
    );
  });
});

test("chat: ids have nine letters where the template asks for them, and results keep their calls", async () => {
  const ids = "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('id') }}{% endif %}" +
    "{{ c.id }}={{ c.function.arguments | tojson }}{% endfor %}{% if m.tool_call_id is defined %}{{ m.tool_call_id }}:{% endif %}";
  await withTemplate(`{# [TOOL_CALLS] #}${listed}${each(`${ids}{{ m.content }}`)}`, (chat, render) => {
    assertEquals([chat.form.name, chat.toolPrompt], ["mistral", "model"]);
    const text = render(history, { tools });
    const [, one, two] = /\[assistant\]([0-9a-f]{9})={"a": "x"}([0-9a-f]{9})=/.exec(text)!;
    assertStringIncludes(text, `[tool]${one}:1[tool]${two}:2`);
  });
});

test("chat: without a template for tools the system message tells of them, and calls are text", async () => {
  await withTemplate(each("{{ m.content }}"), (chat, render) => {
    assertEquals([chat.form.name, chat.toolPrompt], ["hermes", "built-in"]);
    const text = render(history, { tools });
    assertEquals(text.startsWith("[system]S\n\nYou can call functions."), true);
    assertStringIncludes(text, '{"name":"f","description":"does f","parameters":{"type":"object"');
    assertStringIncludes(
      text,
      '[assistant]<tool_call>\n{"name": "f", "arguments": {"a":"x"}}\n</tool_call>\n<tool_call>',
    );
    assertStringIncludes(
      text,
      "[user]<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>[assistant]A[assistant]",
    );
    assertEquals(render([{ role: "user", content: "Q" }], { tools, toolChoice: "none" }), "[user]Q[assistant]");
  });
  const noSystem = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}";
  await withTemplate(noSystem + each("{{ m.content }}"), (_, render) => {
    assertEquals(render([{ role: "user", content: "Q" }], { tools }).startsWith("[user]You can call functions."), true);
  });
});

test("chat: the form is set by an option, and one that there is not is refused", async () => {
  await withTemplate(
    undefined,
    (chat) => assertEquals([chat.form.name, chat.toolPrompt], ["llama3", "built-in"]),
    "llama3",
  );
  assertThrows(() => formNamed("x"), RangeError, 'no tool form "x"; there are harmony, ');
});

test("chat: variables reach the template, an answer goes on with the last message", async () => {
  const template = `{{ mood }}${each("{{ m.content | trim }}{% if m.role == 'assistant' %}<end>{% endif %}")}`;
  await withTemplate(template, (_, render) => {
    const messages = [{ role: "user", content: "Q" }, { role: "assistant", content: "A \n" }];
    assertEquals(render(messages, { variables: { mood: "!" } }), "![user]Q[assistant]A<end>[assistant]");
    assertEquals(render(messages, { continueFinal: true }), "[user]Q[assistant]A \n");
    assertEquals(render(messages, { addGenerationPrompt: false }), "[user]Q[assistant]A<end>");
  });
  const drops = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}";
  await withTemplate(drops, (_, render) => {
    const messages = [{ role: "user", content: "Q" }, { role: "assistant", content: "A" }];
    assertThrows(() => render(messages, { continueFinal: true }), TokenizerError, "leaves out the last message");
  });
});

test("chat: a prompt that ends inside of reasoning is told from one that does not", async () => {
  await withTemplate(`${each("{{ m.content }}")}{# </think> #}`, (chat) => {
    assertEquals(["<think>\n", "<think>", "</think>\n\n", "x"].map((end) => chat.thinks(end)), [
      true,
      true,
      false,
      false,
    ]);
    assertEquals(chat.reader({ reasoning: false }, false), undefined);
  });
  await withTemplate(each("{{ m.content }}"), (chat) => assertEquals(chat.thinks("<think>"), false));
});
