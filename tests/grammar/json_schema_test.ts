import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { fileURLToPath } from "node:url";
import { test } from "node:test";
import { EMBEDDED_MODEL, Tokenizer } from "../../mod.ts";
import { jsonGrammar } from "../../lib/grammar/json_schema.ts";
import { Random } from "../support/random.ts";

const tokenizer = Tokenizer.open(fileURLToPath(EMBEDDED_MODEL)), size = 6144, end = 1;
type Schema = true | Record<string, unknown>;
const grammar = (schema: Schema) => jsonGrammar(schema, tokenizer.vocabulary, { size, ends: [end] });

/** Whether a text, cut into tokens, passes and may end. */
function accepts(schema: Schema, text: string): boolean {
  const state = grammar(schema).start();
  for (const id of tokenizer.encode(text, { addSpecialTokens: false })) {
    if (state.bias(null)[id] !== 0) return false;
    state.push(id);
  }
  return state.complete && state.bias(null)[end] === 0;
}

/** A text of tokens drawn at random from those allowed; prefers to end. */
function draw(schema: Schema, random: Random, most = 400): string {
  const state = grammar(schema).start(), ids: number[] = [];
  while (ids.length < most) {
    const allowed = [...state.bias(null).entries()].filter(([, bias]) => bias === 0).map(([id]) => id);
    assert(allowed.length > 0);
    if (state.complete && random.uniform() < 0.7) break;
    // Short tokens close brackets and strings sooner.
    const short = allowed.filter((id) => id !== end && /["\]}]/.test(tokenizer.decode([id])));
    const others = allowed.filter((id) => id !== end);
    if (others.length === 0) break;
    const from = short.length > 0 && random.uniform() < 0.5 ? short : others;
    const id = from[random.integer(0, from.length - 1)];
    ids.push(id);
    state.push(id);
  }
  return state.complete ? tokenizer.decode(ids) : "";
}

const tree = {
  $defs: {
    node: {
      type: "object",
      properties: { value: { type: "number" }, next: { anyOf: [{ $ref: "#/$defs/node" }, { type: "null" }] } },
      required: ["value", "next"],
    },
  },
  $ref: "#/$defs/node",
};

for (
  const [name, schema, yes, no] of [
    ["string", { type: "string", minLength: 1, maxLength: 3 }, ['"a"', '"é東\\n"', '"\\u00e9𝒳"'], [
      '""',
      '"abcd"',
      "a",
      '"\\x"',
      '"\\ud800"',
      '"a\n"',
    ]],
    ["integer", { type: "integer" }, ["0", "-7", "1234"], ["01", "-", "1.0", "+1", "1e3", ""]],
    ["number", { type: "number" }, ["0", "-0.5", "12e3", "1.5E-7"], ["1.", ".5", "NaN", "1e", "00"]],
    ["non-negative", { type: "number", minimum: 0 }, ["0", "2.5"], ["-1"]],
    ["range", { type: "integer", minimum: -12, maximum: 105 }, ["-12", "-1", "0", "9", "10", "99", "100", "105"], [
      "-13",
      "106",
      "200",
      "1000",
      "-0",
      "007",
    ]],
    ["range of one sign", { type: "integer", minimum: 17, maximum: 2345 }, ["17", "99", "100", "2345", "2299"], [
      "16",
      "2346",
      "9",
      "3000",
      "-17",
    ]],
    ["enum", { enum: ["a", 1, null, { b: [true] }] }, ['"a"', "1", "null", '{"b":[true]}'], ['"b"', "2", "true"]],
    ["array", { type: "array", items: { type: "boolean" }, minItems: 1, maxItems: 2 }, [
      "[true]",
      "[true,false]",
      "[true, false]",
    ], ["[]", "[1]", "[true,true,true]", "[true,]"]],
    ["tuple", { type: "array", prefixItems: [{ const: 1 }, { type: "string" }], items: false }, [
      '[1,"x"]',
      "[1]",
      "[]",
    ], [
      '[1,"x",2]',
      '["x",1]',
    ]],
    ["object", { type: "object", properties: { a: { type: "null" }, b: { type: "boolean" } }, required: ["b"] }, [
      '{"b":true}',
      '{"a":null,"b":false}',
      '{"a": null, "b": true}',
    ], ["{}", '{"a":null}', '{"b":1}', '{"b":true,}', '{"c":1,"b":true}']],
    ["optional", { type: "object", properties: { a: { const: 1 }, b: { const: 2 }, c: { const: 3 } } }, [
      "{}",
      '{"a":1}',
      '{"c":3}',
      '{"a":1,"c":3}',
      '{"a":1,"b":2,"c":3}',
    ], ['{,"a":1}', '{"a":1"b":2}', '{"c":3,"a":1}']],
    ["map", { type: "object", additionalProperties: { type: "integer" } }, ["{}", '{"x":1,"y":2}'], [
      '{"x":"y"}',
      "[]",
    ]],
    ["union", { type: ["string", "null"] }, ['"x"', "null"], ["1"]],
    ["recursion", tree, ['{"value":1,"next":null}', '{"value":1,"next":{"value":2,"next":null}}'], [
      '{"value":1}',
      '{"value":1,"next":1}',
    ]],
    ["any object", true, ["{}", '{"a":[1,{"b":null}],"c":"d"}'], ["[]", "1", '{"a"}', "{"]],
  ] as [string, Schema, string[], string[]][]
) {
  test(`JSON schema, ${name}: what it allows passes, what it forbids does not, and what is drawn is JSON`, () => {
    for (const text of yes) assert(accepts(schema, text), `${text} is refused`);
    for (const text of no) assert(!accepts(schema, text), `${text} is let through`);
    const random = new Random(7);
    let drawn = 0;
    for (let i = 0; i < 20; i++) {
      const text = draw(schema, random);
      if (text === "") continue;
      drawn++;
      JSON.parse(text);
      assert(accepts(schema, text), text);
    }
    assert(drawn > 0, "nothing came to an end");
  });
}

test("every whole number of a range passes, and none beside it", () => {
  for (const [minimum, maximum] of [[0, 0], [-3, 3], [8, 12], [95, 1001], [-1005, -98]]) {
    for (let value = minimum - 15; value <= maximum + 15; value++) {
      assertEquals(
        accepts({ type: "integer", minimum, maximum }, String(value)),
        value >= minimum && value <= maximum,
        `${value} in ${minimum} to ${maximum}`,
      );
    }
  }
});

test("what a schema asks for and the grammar does not know is refused by name", () => {
  for (
    const [schema, words] of [
      [{ type: "integer", minimum: 3, maximum: 2 }, "no value is valid"],
      [{ $ref: "#/$defs/x" }, 'there is no "#/$defs/x"'],
      [{ $ref: "#/%" }, 'a "%" that is no escape'],
      [{ $ref: "http://a.example/x" }, "references inside the schema"],
      [{ $ref: "#" }, "refers to itself"],
      [{ anyOf: [] }, "anyOf is not a list"],
      [{ type: "thing" }, '"thing", which is no type'],
      [{ type: "array", minItems: 3, maxItems: 2 }, "no value is valid"],
      [{ properties: { a: 5 } }, "#/properties/a is not an object"],
      [{ enum: [1], type: "string" }, "no value is valid"],
      [{ enum: ["x".repeat(70_000)] }, "65536 are possible"],
      [{ type: "array", items: { type: "string" }, uniqueItems: true }, 'at # has "uniqueItems"'],
      [{ type: "object", properties: { a: { $recursiveRef: "#" } } }, 'at #/properties/a has "$recursiveRef"'],
      [{ type: "string", pattern: "(a)\\1" }, "the pattern has"],
      [{ type: "string", pattern: "(" }, "is no regular expression"],
      [{ type: "string", pattern: "(?<=a)b" }, "the pattern has"],
      [{ type: "number", multipleOf: 0.123456789 }, '"multipleOf" 0.123456789'],
      [{ type: "object", minProperties: 3, additionalProperties: { type: "null" } }, '"minProperties"'],
      [{ type: "object", required: ["a"], properties: { a: { $ref: "#" } } }, "no value is valid"],
      [{
        oneOf: [{ type: "object", additionalProperties: false }, { type: "object", propertyNames: { maxLength: 3 } }],
      }, "oneOf has"],
    ] as [Record<string, unknown>, string][]
  ) {
    assertStringIncludes((assertThrows(() => grammar(schema), RangeError) as Error).message, words);
  }
});

test("the user's biases stay on what is allowed, and a text that cannot go on may end", () => {
  const base = new Float32Array(size).fill(2.5), state = grammar({ const: "x" }).start();
  const bias = state.bias(base), allowed = [...bias].filter((value) => value === 2.5).length;
  assert(allowed > 0 && allowed < 20, `${allowed} tokens`);
  assertEquals(bias[end], -Infinity);
  const [other] = tokenizer.encode("]", { addSpecialTokens: false });
  state.push(other);
  assertEquals([...state.bias(null)].flatMap((value, id) => value === 0 ? [id] : []), [end]);
});
