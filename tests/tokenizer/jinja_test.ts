import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { strftime } from "../../lib/tokenizer/jinja/globals.ts";
import { JinjaError } from "../../lib/tokenizer/jinja/lexer.ts";
import { JinjaTemplate } from "../../lib/tokenizer/jinja/render.ts";
import { type ChatMessage, Tokenizer, TokenizerError } from "../../lib/tokenizer/tokenizer.ts";
import { withFolder } from "../weights/fixture.ts";
import { tinyLlama, writeByteLevel } from "./fixture.ts";

/** Texts of Python's jinja2; the file says how they were made. */
interface Golden {
  named: { variables: Record<string, unknown>; templates: { name: string; template: string; expected: string }[] };
  variables: Record<string, unknown>;
  cases: [template: string, expected: string | null][];
}
const golden: Golden = JSON.parse(readFileSync(new URL("golden/jinja.json", import.meta.url), "utf8"));

test("jinja: expressions and statements give the text of Python's jinja2, or an error where it raises", () => {
  for (const [source, expected] of golden.cases) {
    const render = () => new JinjaTemplate(source).render(golden.variables);
    if (expected === null) assertThrows(render, JinjaError, undefined, source);
    else assertEquals(render(), expected, source);
  }
});

for (const { name, template, expected } of golden.named.templates) {
  test(`jinja: ${name}`, () => {
    assertEquals(new JinjaTemplate(template).render(golden.named.variables), expected);
  });
}

test("jinja: an error names the line and the cause", () => {
  const fails = (source: string, part: string) =>
    assertStringIncludes(assertThrows(() => new JinjaTemplate(source).render({}), JinjaError).message, part);
  fails("a\n{% if true %}\nb", "without endif");
  fails("\n\n{{ a b }}", "line 3");
  fails("{% include 'other' %}", '"include" is not known');
  fails("{{ x | nothing }}", '"nothing"');
  fails("{{ x is nothing }}", '"nothing"');
  fails("{{ message.content }}", "'message' is undefined");
  fails("{{ raise_exception('roles must alternate') }}", "roles must alternate");
});

test("jinja: a list may be appended to, as some templates do outside of the sandbox", () => {
  assertEquals(new JinjaTemplate("{% set x = [1] %}{% set _ = x.append(2) %}{{ x }}").render({}), "[1, 2]");
});

test("jinja: times as the C locale writes them", () => {
  const time = new Date(2024, 6, 5, 9, 3, 7);
  assertEquals(
    strftime(time, "%d %b %Y|%B %-d, %Y|%Y-%m-%d %H:%M:%S|%A %j %I%p %y %%|%Q"),
    "05 Jul 2024|July 5, 2024|2024-07-05 09:03:07|Friday 187 09AM 24 %|%Q",
  );
});

/** Applies a template of a tokenizer.json's folder. */
function applied(template: string, messages: ChatMessage[], options = {}): string {
  const description = JSON.parse(readFileSync(join(tinyLlama, "tokenizer.json"), "utf8"));
  const templates = new Map([["default", template]]);
  return Tokenizer.from({ path: "file", description, config: {}, eosIds: [], templates }).applyChatTemplate(
    messages,
    options,
  );
}

test("messages: null, absent and parts of text are text; other parts are refused by name", () => {
  const template = "{% for m in messages %}[{{ m['content'] | trim }}]{% endfor %}";
  const parts = [{ type: "text", text: "a " }, { type: "text", text: "b" }];
  assertEquals(
    applied(template, [{ role: "user", content: null }, { role: "user" }, { role: "user", content: parts }]),
    "[][][a b]",
  );
  const refused = (content: unknown, part: string) => {
    const messages = [{ role: "user", content: "a" }, { role: "user", content }];
    assertStringIncludes(assertThrows(() => applied(template, messages), TokenizerError).message, part);
  };
  refused(
    [{ type: "text", text: "a" }, { type: "image_url", image_url: {} }],
    'messages[1].content[1]: a part of type "image_url"',
  );
  refused([{ type: "text" }], "messages[1].content[0].text");
  refused([null], "messages[1].content[0]");
  refused(5, "messages[1].content");
});

test("messages: tools and documents are None where they are not given, as in transformers", () => {
  const template = "{{ tools is none }}{{ documents is none }}{{ tools is defined }}{{ extra is defined }}";
  assertEquals(applied(template, []), "TrueTrueTrueFalse");
  const options = { tools: [{ type: "function" }], variables: { documents: ["x"], extra: 1 } };
  assertEquals(applied(template, [], options), "FalseFalseTrueTrue");
});

test("messages: further fields reach the template, what is undefined does not", () =>
  withFolder((folder) => {
    writeByteLevel(folder);
    const template = "{{ messages[0].name }}{{ messages[0].other is defined }}{{ messages[0].tool_calls|tojson }}";
    writeFileSync(join(folder, "tokenizer_config.json"), JSON.stringify({ chat_template: template }));
    const message = { role: "user", content: "x", name: "n", other: undefined, tool_calls: [{ id: "é" }] };
    assertEquals(Tokenizer.open(folder).applyChatTemplate([message]), 'nFalse[{"id": "é"}]');
  }));
