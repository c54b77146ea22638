import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import process from "node:process";
import { test } from "node:test";
import { GrammarError } from "../../lib/grammar/grammar.ts";
import { json, SchemaError } from "../../lib/grammar/json_schema.ts";
import { byte, choice, type Rule, sequence } from "../../lib/grammar/rule.ts";
import { accepts, byteGrammar, passes } from "../support/grammar.ts";

/** Milliseconds of this process, whatever else the machine does. */
function time(work: () => void): number {
  const before = process.cpuUsage();
  work();
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1000;
}

/** A schema of 8 times the same type a level, `depth` levels. */
function repeated(depth: number): Record<string, unknown> {
  return depth === 0 ? {} : { type: Array(8).fill("object"), properties: { a: repeated(depth - 1) } };
}

test("types named again and again cost nothing: 12 levels of 8 are as many rules as of 1", () => {
  assert(time(() => void json(repeated(8))) < 1000);
  assert(accepts(repeated(12), '{"a":'.repeat(12) + "1" + "}".repeat(12)));
});

const operation = (op: string) => ({
  type: "object",
  properties: { left: { $ref: "#" }, op: { const: op }, right: { $ref: "#" } },
  required: ["left", "op", "right"],
});
const lists = Array.from({ length: 5 }, (_, i) => ({ type: "array", items: { $ref: "#" }, minItems: i }));

for (
  const [name, schema, open, close] of [
    [
      "objects that begin alike",
      { anyOf: [{ type: "integer" }, operation("+"), operation("-")] },
      '{"left":',
      ',"op":"-","right":2}',
    ],
    ["lists of which some need more items", { anyOf: [{ type: "integer" }, ...lists] }, "[", ",1,1,1,1]"],
  ] as [string, Record<string, unknown>, string, string][]
) {
  test(`alternatives that recur, ${name}: 64 levels cost about as much a level as 8`, () => {
    const text = (depth: number) => open.repeat(depth) + "1" + close.repeat(depth);
    const run = (depth: number) =>
      time(() => assert(passes(byteGrammar(json(schema)), text(depth)), `${depth} levels`));
    run(8);
    const [few, many] = [run(8), run(64)];
    assert(many < 100 * Math.max(few, 5), `8 levels ${few} ms, 64 levels ${many} ms`);
  });
}

for (
  const [name, schema] of [
    ["a product of alternatives", {
      allOf: Array.from(
        { length: 12 },
        (_, i) => ({
          anyOf: [0, 1, 2, 3].map((n) => ({ properties: { [`p${i}${n}`]: { const: n } }, required: [`p${i}${n}`] })),
        }),
      ),
    }],
    ["alternatives told apart", {
      oneOf: Array.from(
        { length: 40 },
        (_, i) => ({
          type: "object",
          properties: Object.fromEntries(Array.from({ length: 9 }, (_, n) => [`p${n}`, { minimum: i }])),
        }),
      ),
    }],
    ["a pattern of many states", { type: "string", pattern: "^(.*a.{20})$" }],
    ["a pattern that counts counts", { type: "string", pattern: "^((a{1,99}){1,99}){1,99}$" }],
    ["lookaheads that pile up", { type: "string", pattern: "^((?=.*a.{12}).)*$" }],
    ["patterns that multiply", {
      type: "string",
      allOf: [7, 11, 13, 17, 19].map((n) => ({ pattern: `^(.{${n}})*$` })),
    }],
    ["references that double", {
      $ref: "#/$defs/d0",
      $defs: Object.fromEntries(
        Array.from({ length: 40 }, (_, i) => [`d${i}`, {
          anyOf: i < 39
            ? [{ $ref: `#/$defs/d${i + 1}`, minimum: i }, { $ref: `#/$defs/d${i + 1}`, maximum: -i }]
            : [{ type: "number" }],
        }]),
      ),
    }],
    [
      "schemas inside schemas",
      Array.from({ length: 4000 }).reduce<Record<string, unknown>>((inner) => ({ not: inner }), {}),
    ],
    ["a range of names", {
      type: "object",
      properties: Object.fromEntries(Array.from({ length: 6000 }, (_, i) => [`p${i}`, {}])),
      patternProperties: Object.fromEntries(Array.from({ length: 30 }, (_, i) => [`${i}`, {}])),
    }],
    ["a long list that counts", {
      type: "array",
      contains: { const: 1 },
      minContains: 1000,
      maxContains: 1000,
      maxItems: 1000,
    }],
    ["lengths of long texts", { type: "string", pattern: "a.{500}b", maxLength: 1_000_000_000 }],
  ] as [string, Record<string, unknown>][]
) {
  test(`a schema has a budget: ${name}`, () => {
    let error: unknown;
    const spent = time(() => {
      try {
        json(schema);
      } catch (thrown) {
        error = thrown;
      }
    });
    assert(error === undefined || error instanceof SchemaError, String(error));
    assert(spent < 2500, `${spent} ms`);
  });
}

test("9300 members that may be left out: taken or refused, and no stack overflows", () => {
  const properties = Object.fromEntries(Array.from({ length: 3000 }, (_, i) => [`p${i}`, true]));
  const schema = { type: "object", properties };
  const grammar = byteGrammar(json(schema));
  for (let i = 0; i < 16; i++) grammar.start();
  assert(passes(grammar, '{"p17":1,"p2999":2}') && !passes(grammar, '{"p18":1,"p17":2}'));
  const more = Object.fromEntries(Array.from({ length: 9300 }, (_, i) => [`p${i}`, {}]));
  assertThrows(() => json({ type: "object", properties: more }), SchemaError);
});

test("a text that can be read in too many ways ends alone: others of the grammar go on", () => {
  // Each level begins in 200 ways that stay apart: 40,000 places after two bytes.
  const any = byte([0x20, 0x7e]);
  const wide = (depth: number, tag: number): Rule =>
    depth === 0
      ? sequence(any, byte([0x20 + tag % 90, 0x20 + tag % 90]))
      : choice(...Array.from({ length: 200 }, (_, i) => sequence(any, wide(depth - 1, i))));
  const grammar = byteGrammar(choice(sequence(byte("b"), byte("b")), sequence(byte("a"), wide(2, 0))));
  const bad = grammar.start(), good = grammar.start();
  bad.push(0x61);
  const error = assertThrows(() => {
    for (let i = 0; i < 4; i++) bad.push(0x61);
  }, GrammarError) as Error;
  assertStringIncludes(error.message, "too many ways");
  good.push(0x62);
  good.push(0x62);
  assert(good.complete);
  const after = grammar.start();
  after.push(0x62);
  assertEquals([...after.bias(null).entries()].filter(([, bias]) => bias === 0).map(([id]) => id), [0x62]);
});
